"""Loss and gradient anomalies: detected, reported, replayed."""
