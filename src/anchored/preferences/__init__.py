"""Datasets and a tokenizer for TRL's DPO and GRPO, with the annotation in the prompt."""
