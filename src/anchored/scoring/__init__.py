"""Score generations: the backends that read texts, and the comparison of sets of texts."""
