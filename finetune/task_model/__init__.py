"""The model of a task: backbone, heads, and weights from any kind of checkpoint."""
