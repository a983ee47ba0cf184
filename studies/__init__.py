"""Studies of this repository, which the package does not carry: `anchored experiment CONFIG`."""
