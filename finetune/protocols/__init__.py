"""One module per task protocol: what a sample is, the head, the loss, the scores."""
