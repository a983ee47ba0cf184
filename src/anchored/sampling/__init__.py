"""Sampling: annotation first, then the response."""
