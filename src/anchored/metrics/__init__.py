"""Pure functions from texts, vectors and partitions to the numbers we report."""
