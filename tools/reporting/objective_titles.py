"""Titles of the pre-training objectives."""

from __future__ import annotations

_TITLES = {
    "mlm": "masked language modelling (MLM)",
    "vtm": "video-text matching (VTM)",
    "vtc": "video-text contrast (VTC)",
    "wpa": "word-patch alignment (WPA)",
}


def objective_title(name: str) -> str:
    """What charts call an objective; an unknown one by its name."""
    return _TITLES.get(name, name)
