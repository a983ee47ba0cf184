"""Models for others: the card, and the push to the hub."""

CARD = "README.md"
PLACE = "path/to/this/model"
