"""Checkpoints: complete or absent, readable at any parallel layout."""
