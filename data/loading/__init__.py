"""Prepared shards → batches on the training device."""
