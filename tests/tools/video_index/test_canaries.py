"""No file of an index of videos runs what a pickle in it names."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from allinone.common.errors import AllInOneError
from allinone.tools.inspection.checkpoints import load_checkpoint
from allinone.tools.video_index.build import update_index
from allinone.tools.video_index.search import Searcher
from allinone.tools.video_index.store import VideoIndex
from tests.canary import HARMS, Canary, assert_the_canary_works
from tests.data.media import write_video


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("index") / "videos"
    for number in range(2):
        write_video(root / f"{number}.mp4", first=50 * number)
    return root


def test_no_file_of_an_index_runs(checkpoint: Path, videos: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(checkpoint, "cpu")
    canary = tmp_path / "canary"

    def update(index: Path) -> None:
        update_index(loaded, str(checkpoint), videos, index, workers=0, quiet=True)

    readers: list[Callable[[Path], object]] = [
        lambda index: Searcher(loaded, VideoIndex(index)).search("a dog", top=2, rerank=1),
        update,
    ]
    good = tmp_path / "index"
    update(good)
    names = [path.relative_to(good) for path in good.rglob("*") if path.is_file()]
    assert {".json", ".parquet", ".safetensors", ".jsonl"} <= {name.suffix for name in names}
    number = 0
    for name in names:
        for harm in HARMS:
            for reader in readers:
                number += 1
                index = tmp_path / f"index{number}"
                shutil.copytree(good, index)
                harm(index / name, Canary(canary))
                with contextlib.suppress(AllInOneError):
                    reader(index)
                assert not canary.exists(), name
    assert_the_canary_works(canary)
