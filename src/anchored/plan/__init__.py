"""`anchored plan`: what a training run will take, before it is paid for."""
