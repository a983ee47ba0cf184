"""Models sampled on prompts and compared: `anchored evaluate` and `anchored capability`."""
