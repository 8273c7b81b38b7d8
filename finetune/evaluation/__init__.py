"""Scores, intervals, results and submissions."""
