"""Who writes the tags: the offline annotator's rules, and the resumable run over any annotator."""
