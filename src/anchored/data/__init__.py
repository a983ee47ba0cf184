"""Rows in, prepared dataset out, batches: readers, plans, packing, store, prepare, collate."""
