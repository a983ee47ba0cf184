"""Training runs: configuration, the stock Trainer composed, replay, checkpoints, metrics.jsonl."""

DATA_FOLDER = "data"
