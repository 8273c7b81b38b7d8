"""Runs a trained model on single videos and texts, and draws what it computes."""
