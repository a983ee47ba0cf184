"""Annotation-anchored training: post-train a language model and keep its range."""

__version__ = "0.1.0"
