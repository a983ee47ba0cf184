"""Diversity watched while any trainer of transformers or TRL runs: `CollapseMonitor`."""
