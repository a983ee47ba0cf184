"""Models for others: the card, and the push to the hub."""
