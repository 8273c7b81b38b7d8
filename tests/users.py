"""Acting as another user, for tests that run as root."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

NOBODY = 65534
AS_OTHER_USER = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Act as a user without rights."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def open_path(folder: Path) -> Path:
    """Let every user enter a temporary folder; returns it."""
    for part in (folder, *folder.parents):
        if part == Path(tempfile.gettempdir()):
            break
        part.chmod(0o755)
    return folder
