"""Tests; each folder mirrors a folder of the project."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The project's root."""
