"""Models, objectives and the training run."""

RECORD = "anchored.json"
