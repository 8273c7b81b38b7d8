"""Preparation: official files → shards and an index."""
