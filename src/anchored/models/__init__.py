"""Building, loading, checking, adapting and saving models, and the record beside each model."""

RECORD = "anchored.json"
MODEL_FOLDER = "model"
