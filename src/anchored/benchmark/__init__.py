"""Sample models on benchmarks and compare them: `anchored evaluate` and `anchored capability`."""
