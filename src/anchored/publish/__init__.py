"""Publishing a model or dataset: model card, upload to the hub, export of prepared data."""

CARD = "README.md"
PLACE = "path/to/this/model"
