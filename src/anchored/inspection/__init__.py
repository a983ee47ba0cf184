"""`anchored inspect`: datasets, models and tags, shown."""
