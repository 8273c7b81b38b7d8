"""Embeddings of the clips in a folder of videos, to search them by text, image or clip."""
