"""LLM judges: what they are asked, what their answers mean, what they cost."""
