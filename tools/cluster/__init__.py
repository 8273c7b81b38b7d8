"""Node checks, the state of a run, and rank processes on one machine."""
