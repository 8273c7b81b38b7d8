"""Shared by the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.users import open_path


@pytest.fixture
def public(tmp_path: Path) -> Path:
    """A folder that every user may enter."""
    return open_path(tmp_path)
