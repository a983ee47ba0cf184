"""Checkpoints: built, loaded, checked, adapted and saved, and the record that lies beside each."""

RECORD = "anchored.json"
MODEL_FOLDER = "model"
