"""Pure functions that compute the reported figures from texts, vectors and partitions."""
