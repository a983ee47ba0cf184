"""Measuring collapse: pure functions from texts, readings and vectors to the numbers we report."""
