"""One training loop on DeepSpeed."""
