"""Files that are replaced while they are prepared: what is stored is what was examined."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest

from allinone.common.errors import DataError
from allinone.data.decoding.frames import Timeline, decode_frames
from allinone.data.prepare import pipeline, shards
from allinone.data.prepare.writer import write_shard
from tests.data.helpers import prepare_source
from tests.data.media import read_frame_number, write_video
from tests.data.prepare.test_odd_media import own_list


def replace_before_writing(monkeypatch: pytest.MonkeyPatch, change: Any) -> list[str]:
    """Call `change` with the number of the attempt before each writing of a shard."""
    attempts: list[str] = []

    def wrapped(options: Any, shard: Any) -> None:
        attempts.append(shard.name)
        change(len(attempts))
        write_shard(options, shard)

    monkeypatch.setattr(shards, "write_shard", wrapped)
    return attempts


def test_a_replaced_file_is_examined_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = own_list(tmp_path / "in", ["a.mp4", "b.mp4", "c.mp4"])
    for name in "abc":
        write_video(source.parent / f"{name}.mp4", frames=24)

    def change(attempt: int) -> None:
        if attempt == 1:
            write_video(source.parent / "new.mp4", frames=10, first=1000, width=96)
            (source.parent / "new.mp4").replace(source.parent / "a.mp4")
            (source.parent / "b.mp4").unlink()

    attempts = replace_before_writing(monkeypatch, change)
    summary, good, bad = prepare_source(source, tmp_path / "out")
    assert len(attempts) == 2
    assert summary.clips == {"train": 2}
    assert bad["train/b.mp4"][0] == "missing"
    row = good["train/a.mp4"]
    assert (row["frames"], row["width"]) == (10, 96)
    stored = (tmp_path / "out" / row["shard"]).read_bytes()[row["offset"] :][: row["size"]]
    frames = decode_frames(stored, [0, 9], Timeline.of(row))
    assert [read_frame_number(frame) for frame in frames] == [1000, 1009]


@pytest.mark.parametrize("options", [{}, {"short_side": 32}])
def test_a_file_that_always_changes_is_a_bad_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, int]
) -> None:
    source = own_list(tmp_path / "in", ["a.mp4", "b.mp4"])
    for name in "ab":
        write_video(source.parent / f"{name}.mp4", frames=12)

    def change(attempt: int) -> None:
        write_video(source.parent / "a.mp4", frames=12 + attempt)

    replace_before_writing(monkeypatch, change)
    _, good, bad = prepare_source(source, tmp_path / "out", **options)
    if options:  # the re-encoded file is stored; the source was read once
        assert good["train/a.mp4"]["frames"] == 12
    else:
        assert bad["train/a.mp4"][0] == "changed"
        assert list(good) == ["train/b.mp4"]


def test_a_tar_replaced_after_listing_stops_the_preparation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = [write_video(tmp_path / f"{k}.mp4", frames=6 + 6 * k) for k in range(2)]
    path = tmp_path / "in" / "0.tar"
    path.parent.mkdir()

    def write(order: list[int]) -> None:
        with tarfile.open(path, "w") as archive:
            for place, number in enumerate(order):
                archive.add(clips[number], f"{place}.mp4")
                (tmp_path / "caption").write_text(f"clip {number}")
                archive.add(tmp_path / "caption", f"{place}.txt")

    write([0, 1])
    make_shards = pipeline.make_shards

    def late(*arguments: Any) -> Any:
        write([1, 0])
        return make_shards(*arguments)

    monkeypatch.setattr(pipeline, "make_shards", late)
    with pytest.raises(DataError, match=r"0\.tar has changed since it was listed"):
        prepare_source(path.parent, tmp_path / "out")
    monkeypatch.setattr(pipeline, "make_shards", make_shards)
    _, good, _ = prepare_source(path.parent, tmp_path / "out")
    assert {row["captions"][0]: row["frames"] for row in good.values()} == {
        "clip 1": 12,
        "clip 0": 6,
    }
