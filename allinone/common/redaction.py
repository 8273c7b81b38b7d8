"""Removes credentials from texts of other libraries before they are logged."""

from __future__ import annotations

import os
import re

_NAMES = re.compile(r"(API_KEY|ACCESS_KEY|ACCESS_KEY_ID|TOKEN|PASSWORD|SECRET|JWT)$")
"""Ends of the names of environment variables whose values are secret."""
_IN_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_MIN_LENGTH = 6
"""Shorter values are words that occur in any message, such as a switch set to "1"."""


def redact(text: str) -> str:
    """`text` without user and password in URLs and without values of secret variables."""
    text = _IN_URL.sub("***", text)
    for name, value in os.environ.items():
        if len(value) >= _MIN_LENGTH and _NAMES.search(name.upper()):
            text = text.replace(value, "***")
    return text
