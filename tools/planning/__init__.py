"""Plans of a training run and of its data path."""
