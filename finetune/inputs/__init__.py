"""Media files and task texts → batches; the shared part is data/loading/."""
