"""Loss spikes and NaN: detected, reported, replayed."""
