"""Readers of official annotation files, one module per benchmark family: `load(folder, split,
**options) -> Split`."""
