"""Ranks, process groups, signals, hangs, and losses over all ranks."""
