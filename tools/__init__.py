"""Command-line programs around training."""
