"""Node checks, run state and rank servers."""
