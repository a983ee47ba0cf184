"""Quality of tags: breadth, variants, agreement, informativeness, dependence on prompts."""
