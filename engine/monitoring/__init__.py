"""What a run records: metrics, timings, history, TensorBoard."""
