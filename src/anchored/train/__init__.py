"""Training runs: configuration, the composed stock Trainer, replay, checkpoints, metrics.jsonl."""

DATA_FOLDER = "data"
