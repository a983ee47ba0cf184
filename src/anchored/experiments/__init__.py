"""Studies as configurations and code."""
