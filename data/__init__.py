"""Official formats → shards → DALI → batches. Knows nothing of model or training."""
