"""Ranks, process groups, signals and hangs."""
