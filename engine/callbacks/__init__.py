"""Everything that takes part in a run besides the training step; base.py describes the hooks."""
