"""Studies that are in this repository but not in the package: `anchored experiment CONFIG`."""
