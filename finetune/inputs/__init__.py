"""Media and texts to batches."""
