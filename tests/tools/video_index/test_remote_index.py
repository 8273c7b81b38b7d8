"""Indexing and searching videos in object storage."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from allinone.common import object_storage
from allinone.common.errors import DataError, InputError
from allinone.tools.inspection.checkpoints import LoadedModel, load_checkpoint
from allinone.tools.video_index import build
from allinone.tools.video_index.build import BuildSummary, update_index
from allinone.tools.video_index.remote_media import remote_media
from allinone.tools.video_index.search import Searcher
from allinone.tools.video_index.store import VideoIndex
from tests.data.media import write_image, write_video
from tests.data.object_faults import BUCKET, FaultyStorage, faulty_storage, upload

URL = Path(f"{BUCKET}/videos")


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> LoadedModel:
    return load_checkpoint(checkpoint, "cpu")


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    for number in range(3):
        write_video(tmp_path / "videos" / "sub" / f"{number}.mp4", first=50 * number)
    write_image(tmp_path / "videos" / "still.png", 7)
    return tmp_path / "videos"


@pytest.fixture
def storage(
    tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[type[FaultyStorage]]:
    monkeypatch.setenv("ALLINONE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(object_storage, "FIRST_PAUSE_S", 1e-4)
    remote_media.cache_clear()
    with faulty_storage() as found:
        upload(videos, f"{BUCKET}/videos")
        yield found
    remote_media.cache_clear()


def update(loaded: LoadedModel, root: Path, out: Path, **given: Any) -> BuildSummary:
    return update_index(loaded, str(loaded.weights), root, out, workers=0, quiet=True, **given)


def stored_bytes(tmp_path: Path) -> int:
    files = [path for path in (tmp_path / "cache" / "media").rglob("*") if path.is_file()]
    assert files
    return sum(512 * path.stat().st_blocks for path in files)


@pytest.mark.parametrize("group", [1, 2 << 30])
def test_clips_are_those_of_local_files(
    loaded: LoadedModel,
    videos: Path,
    storage: type[FaultyStorage],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    group: int,
) -> None:
    monkeypatch.setattr(build, "GROUP_BYTES", group)
    summary = update(loaded, URL, tmp_path / "remote", precision="fp32")
    expected = update(loaded, videos, tmp_path / "local", precision="fp32")
    assert dataclasses.replace(summary, seconds=0) == dataclasses.replace(expected, seconds=0)
    remote, local = VideoIndex(tmp_path / "remote"), VideoIndex(tmp_path / "local")
    assert remote.manifest.root == f"{BUCKET}/videos"
    paths = [[index.row(int(row)).path for row in index.clips] for index in (remote, local)]
    assert paths[0] == paths[1]
    # batches of other sizes round differently
    torch.testing.assert_close(
        torch.cat(remote.embeddings), torch.cat(local.embeddings), rtol=0, atol=2e-6
    )
    assert stored_bytes(tmp_path) == 0


def test_only_changed_objects_are_embedded_again(
    loaded: LoadedModel, storage: type[FaultyStorage], tmp_path: Path
) -> None:
    update(loaded, URL, tmp_path / "index")
    assert update(loaded, URL, tmp_path / "index").added == 0
    content = storage().cat_file(f"{BUCKET}/videos/sub/0.mp4")
    storage().pipe_file(f"{BUCKET}/videos/sub/1.mp4", content)
    storage().rm_file(f"{BUCKET}/videos/sub/2.mp4")
    storage.requests.clear()
    summary = update(loaded, URL, tmp_path / "index")
    assert (summary.added, summary.deleted_files, summary.clips) == (1, 1, 3)


def test_found_clips_are_shown_and_reranked(
    loaded: LoadedModel, storage: type[FaultyStorage], tmp_path: Path
) -> None:
    update(loaded, URL, tmp_path / "index")
    shutil.rmtree(tmp_path / "cache")  # another machine searches
    found = Searcher(loaded, VideoIndex(tmp_path / "index"))
    hits = found.search("a red ball", top=4, rerank=2)
    assert [hit.note for hit in hits] == [""] * 4
    assert found.read_row(Path(str(int(found.index.clips[0])))).pixels.isfinite().all()
    shown = found.index.file("sub/0.mp4", content=True)
    assert shown.read_bytes() == storage().cat_file(f"{BUCKET}/videos/sub/0.mp4")
    with pytest.raises(DataError, match="leaves the folder"):
        found.index.file("../x.mp4", content=True)


def test_names_that_are_no_paths_are_left_out(
    loaded: LoadedModel,
    storage: type[FaultyStorage],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    storage().store["/bucket/videos/../../../x.mp4"] = storage().store["/bucket/videos/sub/0.mp4"]
    assert update(loaded, URL, tmp_path / "index").clips == 4
    assert "its name is no path below the address" in caplog.text
    assert not [*tmp_path.rglob("x.mp4")]


def test_an_address_without_videos_is_refused(
    loaded: LoadedModel, storage: type[FaultyStorage], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="memory://bucket/none lists no video or image"):
        update(loaded, Path(f"{BUCKET}/none"), tmp_path / "index")
