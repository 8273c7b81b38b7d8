"""Readers of official annotation files, one module per benchmark family, with
`load(folder, split, **options) -> Split`."""
