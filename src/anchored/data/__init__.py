"""Rows in, prepared dataset out, batches from it: readers, prepare, packing, store, collate."""
