"""What earlier starts found out about media is never run, and damage only costs the time to look
again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from allinone.finetune.annotations.schema import Media
from tests.canary import HARMS, Canary
from tests.finetune.inputs.conftest import library


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_no_stored_probe_runs(
    folder: Path, tmp_path: Path, harm: Callable[[Path, Canary], None]
) -> None:
    media = Media("a/clip", "a/clip")
    before = library(folder, tmp_path, media)[media]
    stores = list((tmp_path / "media").rglob("*.jsonl"))
    assert stores
    for path in stores:
        harm(path, Canary(tmp_path / "canary"))
    assert library(folder, tmp_path, media)[media] == before
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        '["a/clip|1|2", 7]',
        '["a/clip|1|2", {"reason": 7}]',
        '["a/clip|1|2", {"reason": "", "keyframes": [1e300]}]',
        "9" * 5000,
        "{}",
        '[["x"], {"reason": ""}]',
    ],
)
def test_a_line_that_is_no_probe_is_looked_up_again(
    folder: Path, tmp_path: Path, line: str
) -> None:
    media = Media("a/clip", "a/clip")
    before = library(folder, tmp_path, media)[media]
    (store,) = (tmp_path / "media").rglob("*.jsonl")
    store.write_text(line + "\n")
    assert library(folder, tmp_path, media)[media] == before
