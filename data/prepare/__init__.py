"""Official files to shards."""
