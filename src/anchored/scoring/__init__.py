"""Generations measured: the backends that read texts, and the comparison of several sets."""
