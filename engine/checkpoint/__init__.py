"""Checkpoints: complete or absent, and loadable at any parallel layout."""
