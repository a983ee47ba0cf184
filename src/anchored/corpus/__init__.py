"""Annotation of a whole corpus: resumable runs, offline, by an endpoint or on a cluster."""
