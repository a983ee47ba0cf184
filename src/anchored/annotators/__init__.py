"""Annotators, which give a text its tags: rules, linear models, language models."""
