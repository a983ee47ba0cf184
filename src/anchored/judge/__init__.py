"""LLM judges: their questions, verdicts and costs."""
