"""`anchored inspect`: show prepared datasets, models and tags."""
