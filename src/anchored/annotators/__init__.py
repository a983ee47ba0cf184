"""Annotators, which write the tags of a text: rules, linear models, language models."""
