"""A prepared folder is mended by the command that made it: what is lost, what was not there, what
somebody killed."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from allinone.common.errors import DataError
from allinone.data.decoding.frames import Timeline, decode_frames
from allinone.data.loading.index import Index
from allinone.data.prepare import shards
from allinone.data.prepare.pipeline import PrepareOptions, PrepareSummary, prepare
from allinone.data.prepare.probe import Limits, ProbeError, ProbePool, probe
from allinone.data.prepare.worker import ClipTask, examine
from allinone.data.sources import ReadOptions, read
from tests.data.media import read_frame_number, write_image, write_video
from tests.data.prepare.test_prepare_and_load import small_demo
from tests.data.prepare.test_prepare_parts import contents


def run(source: Path, out: Path, **options: object) -> PrepareSummary:
    return prepare(PrepareOptions(source, out, shard_clips=4, workers=2, **options), progress=False)  # type: ignore[arg-type]


def test_the_same_command_makes_a_lost_shard_anew_and_merge_a_broken_index(tmp_path: Path) -> None:
    source, out = small_demo(tmp_path / "source", 10), tmp_path / "out"
    run(source, out)
    whole = contents(out)
    (out / "shards" / "train-00001.tar").unlink()
    assert not run(source, out).done_before
    assert contents(out) == whole
    (out / "index.arrow").write_bytes(b"broken")
    run(source, out, merge=True)
    assert contents(out) == whole
    assert run(source, out).done_before
    (out / "shards" / "train-00001.tar").unlink()
    with pytest.raises(DataError, match="not prepared yet, first: train-00001"):
        run(source, out, merge=True)


def own(folder: Path, names: list[str]) -> Path:
    folder.mkdir()
    rows = "".join(f"{name},caption of {name}\n" for name in names)
    (folder / "own.csv").write_text(f"path,caption\n{rows}")
    return folder / "own.csv"


@pytest.mark.parametrize("part", [None, (1, 2)])
def test_media_that_are_nowhere_stop_it_before_anything_is_written(
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


def test_storage_that_goes_away_meanwhile_makes_no_clip_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, media, out = (
        own(tmp_path / "in", [f"{k}.mp4" for k in range(12)]),
        tmp_path / "media",
        tmp_path / "out",
    )
    for k in range(12):
        write_video(media / f"{k}.mp4", frames=6)
    write = shards.write_shard

    def written(options: PrepareOptions, shard: object) -> None:
        write(options, shard)  # type: ignore[arg-type]
        media.rename(tmp_path / "unmounted")

    monkeypatch.setattr(shards, "write_shard", written)
    with pytest.raises(DataError, match="has become empty"):
        prepare(PrepareOptions(source, out, videos=media, shard_clips=1, workers=1), progress=False)
    monkeypatch.undo()
    (tmp_path / "unmounted").rename(media)
    assert (
        prepare(
            PrepareOptions(source, out, videos=media, shard_clips=1, workers=1), progress=False
        ).bad
        == {}
    )


def test_a_retry_takes_what_has_come_meanwhile_and_leaves_the_other_shards(tmp_path: Path) -> None:
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


def test_a_reason_that_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'mising' is none of missing, timeout"):
        run(own(tmp_path / "in", ["0.mp4"]), tmp_path / "out", retry=("mising",))


def test_a_retry_that_was_interrupted_does_not_begin_again(tmp_path: Path) -> None:
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


def dying(pipe: Connection, limits: Limits) -> None:
    """Answers with the task; one that is a path kills the process until the file has a line for
    each time that the task says."""
    while (task := pipe.recv()) is not None:
        path, times = task
        with path.open("a") as file:
            file.write("x")
        if path.stat().st_size <= times:
            os.kill(os.getpid(), signal.SIGKILL)
        pipe.send((None, times))


def test_a_clip_whose_process_was_killed_is_tried_once_more(tmp_path: Path) -> None:
    pool = ProbePool(2, Limits(), dying)
    with contextlib.closing(pool):
        found = {
            number: reason
            for number, reason, _ in pool.map(
                [(tmp_path / str(times), times) for times in (0, 1, 2, 0, 1)]
            )
        }
    assert found[0] == found[1] == found[3] is None
    assert found[2] == "killed"


def test_a_jpeg_that_was_cut_off_is_no_picture(tmp_path: Path) -> None:
    content = write_image(tmp_path / "whole.jpg", 3, 320, 240).read_bytes()
    assert probe(content, "jpg", Limits())["width"] == 320
    for share in (0.05, 0.5, 0.9, 0.97):
        with pytest.raises(ProbeError) as error:
            probe(content[: int(share * len(content))], "jpg", Limits())
        assert error.value.reason == "undecodable"
    size = content.index(b"\xff\xc0") + 5  # height and width in the frame's header
    with pytest.raises(ProbeError, match="DecompressionBomb"):
        probe(content[:size] + b"\xea\x60" * 2 + content[size + 4 :], "jpg", Limits())


@pytest.mark.parametrize("rate", [24, 30, 50, 60])
def test_times_rounded_to_milliseconds_are_a_constant_rate_and_every_frame_is_found(
    tmp_path: Path, rate: int
) -> None:
    """As YouTube's WebM and Matroska files have them; here with 300 frames."""
    path = write_video(tmp_path / "a.mkv", codec="libx264", frames=300, rate=rate, gop=12)
    columns = probe(path.read_bytes(), "mkv", Limits())
    assert columns["frame_times"] is None
    assert columns["frame_rate"] == pytest.approx(rate, rel=1e-3)
    wanted = [0, 11, 12, 13, 100, 155, 156, 299]
    frames = decode_frames(path.read_bytes(), wanted, Timeline.of(columns))
    assert [read_frame_number(frame) for frame in frames] == wanted


def test_a_video_without_a_usable_line_is_not_even_opened(tmp_path: Path) -> None:
    from allinone.data.sources import Narration
    from allinone.data.sources.howto100m import csv_lines

    captions, video = tmp_path / "AAA.csv", tmp_path / "AAA.mp4"
    captions.write_text("start,end,text\n1,2,\n5,4,backwards\n")
    video.write_bytes(b"no video at all")
    with pytest.raises(ProbeError, match="none of 2 caption lines can be used") as error:
        examine(
            ClipTask((video,), 0, None, "mp4", narration=Narration(csv_lines, captions)), Limits()
        )
    assert error.value.reason == "bad_window", "the line without a time comes first"


def test_one_template_does_not_serve_two_lists(tmp_path: Path) -> None:
    for name in ("Train_GCC-training.tsv", "Validation_GCC-1.1.0-Validation.tsv"):
        (tmp_path / name).write_text("a caption\thttp://example.org/a.jpg\n")

    def names(template: str) -> Iterator[str]:
        return (row.source for row in read(tmp_path, "cc3m", ReadOptions(names=template)))

    with pytest.raises(DataError, match=r"put {split} into it"):
        next(names("{number:08d}.jpg"))
    assert list(names("{split}/{number:08d}.jpg")) == ["train/00000000.jpg", "val/00000000.jpg"]
