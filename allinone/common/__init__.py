"""Leaf modules that every other package may import."""
