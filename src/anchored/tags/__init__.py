"""Are the tags any good: breadth, variants, agreement, what they say, what prompts decide."""
