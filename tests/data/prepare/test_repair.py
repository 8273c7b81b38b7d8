"""The command that made a folder repairs it: lost shards, and files that were not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from allinone.common.errors import DataError
from allinone.data.index import Index
from allinone.data.prepare import shards
from allinone.data.prepare.pipeline import PrepareOptions, PrepareSummary, prepare
from tests.data.helpers import contents, small_demo
from tests.data.media import write_video


def run(source: Path, out: Path, **options: object) -> PrepareSummary:
    return prepare(PrepareOptions(source, out, shard_clips=4, workers=2, **options), progress=False)  # type: ignore[arg-type]


def own(folder: Path, names: list[str]) -> Path:
    folder.mkdir()
    rows = "".join(f"{name},caption of {name}\n" for name in names)
    (folder / "own.csv").write_text(f"path,caption\n{rows}")
    return folder / "own.csv"


def test_a_lost_shard_and_a_broken_index_are_made_again(tmp_path: Path) -> None:
    source, out = small_demo(tmp_path / "source", 10), tmp_path / "out"
    run(source, out)
    before = contents(out)
    (out / "shards" / "train-00001.tar").unlink()
    assert not run(source, out).done_before
    assert contents(out) == before
    (out / "index.arrow").write_bytes(b"broken")
    run(source, out, merge=True)
    assert contents(out) == before
    assert run(source, out).done_before
    (out / "shards" / "train-00001.tar").unlink()
    with pytest.raises(DataError, match="not prepared yet, first: train-00001"):
        run(source, out, merge=True)


@pytest.mark.parametrize("part", [None, (1, 2)])
def test_missing_media_stop_it_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: tuple[int, int] | None
) -> None:
    monkeypatch.setattr("allinone.data.prepare.existing.MISSING_LIMIT", 8)
    names = [f"{k}.mp4" for k in range(20)]
    source, out = own(tmp_path / "in", names), tmp_path / "out"
    (tmp_path / "unmounted").mkdir()
    with pytest.raises(
        DataError, match=r"none of the first \d+ files .* --videos name the right folder"
    ):
        run(source, out, videos=tmp_path / "unmounted", part=part)
    assert not list((out / "shards").iterdir())
    for name in names[:2]:
        write_video(tmp_path / "media" / name, frames=6)
    found = run(source, out, videos=tmp_path / "media", part=part)
    assert found.bad == {"missing": 18 if part is None else 10}


def test_unmounted_storage_makes_no_clip_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = own(tmp_path / "in", [f"{k}.mp4" for k in range(12)])
    media, out = tmp_path / "media", tmp_path / "out"
    options = PrepareOptions(source, out, videos=media, shard_clips=1, workers=1)
    for k in range(12):
        write_video(media / f"{k}.mp4", frames=6)
    write = shards.write_shard

    def write_then_unmount(options: PrepareOptions, shard: object) -> None:
        write(options, shard)  # type: ignore[arg-type]
        media.rename(tmp_path / "unmounted")

    monkeypatch.setattr(shards, "write_shard", write_then_unmount)
    with pytest.raises(DataError, match="has become empty"):
        prepare(options, progress=False)
    monkeypatch.undo()
    (tmp_path / "unmounted").rename(media)
    assert prepare(options, progress=False).bad == {}


def test_a_retry_makes_only_shards_with_new_files_again(tmp_path: Path) -> None:
    source, out = own(tmp_path / "in", [f"{k}.mp4" for k in range(12)]), tmp_path / "out"
    for k in (0, 1, 2, 3, 4, 6, 8):
        write_video(tmp_path / "in" / f"{k}.mp4", frames=6, first=k)
    assert run(source, out).bad == {"missing": 5}
    before = {path.name: path.stat().st_mtime_ns for path in (out / "shards").iterdir()}
    (tmp_path / "in").rename(tmp_path / "moved")
    write_video(tmp_path / "moved" / "7.mp4", frames=6, first=7)
    (tmp_path / "in").mkdir()
    (tmp_path / "moved" / "own.csv").rename(source)
    assert run(source, out, retry=("missing",), videos=tmp_path / "moved").bad == {"missing": 4}
    after = {path.name: path.stat().st_mtime_ns for path in (out / "shards").iterdir()}
    assert [name for name in before if before[name] != after[name]] == ["train-00001.tar"]
    assert [row["key"] for row in map(Index(out, "train").__getitem__, range(8))] == [
        f"train/{k}.mp4" for k in (0, 1, 2, 3, 4, 6, 7, 8)
    ]
    run(source, tmp_path / "fresh", videos=tmp_path / "moved")
    ours, fresh = contents(out), contents(tmp_path / "fresh")
    same = [name for name in fresh if name.endswith((".tar", ".arrow"))]
    assert len(same) == 3 + 2
    assert {name: ours[name] for name in same} == {name: fresh[name] for name in same}, (
        "the details of what is missing name other folders"
    )


def test_an_unknown_retry_reason_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'mising' is none of missing, timeout"):
        run(own(tmp_path / "in", ["0.mp4"]), tmp_path / "out", retry=("mising",))


def test_an_interrupted_retry_does_not_start_over(tmp_path: Path) -> None:
    source, out = own(tmp_path / "in", [f"{k}.mp4" for k in range(8)]), tmp_path / "out"
    for k in range(7):
        write_video(tmp_path / "in" / f"{k}.mp4", frames=6)
    (tmp_path / "in" / "1.mp4").unlink()
    run(source, out)
    write_video(tmp_path / "in" / "1.mp4", frames=6)
    for _ in range(2):
        run(source, out, retry=("missing",), part=(1, 2))
        made = {path.name: path.stat().st_mtime_ns for path in (out / "shards").iterdir()}
        (tmp_path / "in" / "1.mp4").unlink(missing_ok=True)
    assert made == {path.name: path.stat().st_mtime_ns for path in (out / "shards").iterdir()}
    assert run(source, out, retry=("missing",)).bad == {"missing": 1}
    assert not (out / "retry.json").exists()
