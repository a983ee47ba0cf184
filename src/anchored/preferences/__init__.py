"""Data and tokenizer for TRL's DPO and GRPO, with the annotation inside the prompt."""
