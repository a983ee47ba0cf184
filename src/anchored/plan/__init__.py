"""`anchored plan`: estimate the resources of a training run before it starts."""
