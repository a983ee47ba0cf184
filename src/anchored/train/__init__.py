"""Models, objectives and the training run."""
