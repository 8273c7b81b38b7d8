"""One module per task: sample, head, loss and metric."""
