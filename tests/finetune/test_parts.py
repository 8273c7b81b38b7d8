"""Texts, media, order, heads and caches of fine-tuning, each alone."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from allinone.common.errors import DataError
from allinone.data.config import ClipConfig, DataConfig
from allinone.data.loading.sampling import middle_frames, segments, view_frames
from allinone.data.prepare.probe import PACKET_CODECS, probe, probe_packets
from allinone.finetune.annotations.schema import Media, QAItem
from allinone.finetune.inputs.batch import VisualInput
from allinone.finetune.inputs.clip_reader import Reader, window
from allinone.finetune.inputs.loader import Source, TaskStream
from allinone.finetune.inputs.media_library import LIMITS, MediaError, MediaLibrary
from allinone.finetune.tasks.open_ended_qa import QAExamples
from tests.data.media import GOOD, read_frame_number, truncate, write_image, write_video

CPU = torch.device("cpu")


# -- frames ----------------------------------------------------------------------------------------


@given(frames=st.integers(1, 300), wanted=st.integers(1, 8), views=st.integers(1, 5))
def test_views_take_one_frame_of_every_segment_and_one_view_takes_the_middle(
    frames: int, wanted: int, views: int
) -> None:
    chosen = view_frames(frames, wanted, views)
    assert len(chosen) == views
    for view in chosen:
        assert all(
            first <= number <= last
            for number, (first, last) in zip(view, segments(frames, wanted), strict=True)
        )
    assert view_frames(frames, wanted, 1) == [middle_frames(frames, wanted)]
    if frames >= wanted * views:
        assert len(set(chosen)) == views


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of 24 frames at 12 per second, a picture, a folder of 9 pictures, a broken file."""
    root = tmp_path_factory.mktemp("media")
    write_video(root / "a" / "clip.mp4", gop=6)
    write_video(root / "Loud.AVI", codec="mpeg4")
    write_video(root / "moving.gif", codec="gif", rate=10)
    write_video(root / "movie_00.01.02.345-00.01.05.678.mkv", gop=6)
    write_image(root / "still.png", 77)
    for number in range(1, 10):
        write_image(root / "frames" / f"{number:05d}.jpg", 100 + number)
    truncate(write_video(root / "cut.mp4", frames=48))
    return root


def library(folder: Path, cache: Path, *media: Media) -> MediaLibrary:
    found = MediaLibrary(folder, cache, source="the archive", picture_rate=3.0)
    found.prepare(media, quiet=True)
    return found


def numbers(
    found: MediaLibrary, media: Media, random: np.random.Generator | None = None, views: int = 1
) -> list[list[int]]:
    """What the chosen frames spell."""
    read = Reader(found, ClipConfig(3, 32, 16), DataConfig(workers=0))
    visuals = read(VisualInput(media), random, views)
    return [[read_frame_number(frame) for frame in np.asarray(visual.media)] for visual in visuals]


def test_videos_gifs_pictures_and_folders_are_found_by_any_suffix_and_read_by_one_rule(
    folder: Path, tmp_path: Path
) -> None:
    names = [
        "a/clip",
        "a/clip.webm",
        "loud.mp4",
        "moving",
        "movie_00.01.02.345-00.01.05.678",
        "still",
        "frames",
    ]
    media = [Media(name, name) for name in names]
    found = library(folder, tmp_path, *media)
    shown = {item.id: numbers(found, item)[0] for item in media}
    for name in ("a/clip", "a/clip.webm", "loud.mp4", "moving", "movie_00.01.02.345-00.01.05.678"):
        assert shown[name] == [3, 11, 19], name
    assert shown["still"] == [77, 77, 77]
    assert shown["frames"] == [102, 105, 108]
    assert numbers(found, media[0], views=2) == [[1, 9, 17], [5, 13, 21]]


def test_a_part_of_a_video_is_a_window_in_seconds(folder: Path, tmp_path: Path) -> None:
    part = Media("x", "a/clip", 0.5, 1.0)  # frames 6 to 11 at 12 per second
    second = Media("y", "frames", 1.0, 2.0)  # pictures 4 to 6 at 3 per second
    late = Media("z", "a/clip", 5.0, 6.0)
    found = library(folder, tmp_path, part, second, late)
    assert numbers(found, part) == [[6, 8, 10]]
    assert numbers(found, second) == [[104, 105, 106]]
    assert {n for _ in range(20) for n in numbers(found, part, np.random.default_rng(_))[0]} <= set(
        range(6, 12)
    )
    with pytest.raises(MediaError, match=r"a/clip\.mp4: shown from 5 s on, it ends at 2\.0 s"):
        window(found[late], late)


def test_what_is_missing_or_broken_has_a_reason_and_a_second_start_opens_no_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    media = [
        Media("a", "a/clip"),
        Media("b", "nowhere"),
        Media("c", "cut"),
        Media("d", "../outside"),
    ]
    first = library(folder, tmp_path, *media)
    assert first.reason(media[0]) == ""
    assert first.reason(media[1]).startswith("nowhere: no such file")
    assert first.reason(media[2]).split(": ")[:2] in (
        ["cut.mp4", "undecodable"],
        ["cut.mp4", "truncated"],
    )
    assert first.reason(media[3]).startswith("../outside: no such file")
    monkeypatch.setattr(
        "allinone.finetune.inputs.media_library.probe_file",
        lambda *_: pytest.fail("a known file was opened again"),
    )
    again = library(folder, tmp_path, *media)
    assert [again.reason(item) for item in media] == [first.reason(item) for item in media]
    assert again.content(media[0]) == first.content(media[0]) != ""
    facts = (folder / "a" / "clip.mp4").stat()
    os.utime(folder / "a" / "clip.mp4", ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    with pytest.raises(pytest.fail.Exception):
        library(folder, tmp_path, *media)


def test_a_folder_without_any_of_the_files_names_the_archive(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds none of the 1 files.*nowhere.*the archive"):
        library(folder, tmp_path, Media("b", "nowhere"))
    with pytest.raises(DataError, match=r"is no folder\. Source: the archive"):
        library(folder / "absent", tmp_path, Media("b", "nowhere"))


@pytest.mark.parametrize("name", sorted(GOOD))
def test_packets_tell_what_decoding_the_whole_finds_or_nothing(name: str, tmp_path: Path) -> None:
    path = GOOD[name](tmp_path / name)
    by_packets = probe_packets(path, path.suffix[1:].lower(), LIMITS)
    decoded = probe(path.read_bytes(), path.suffix[1:], LIMITS)
    if by_packets is None:
        assert decoded["codec"] not in PACKET_CODECS
        return
    assert by_packets["frame_times"] == pytest.approx(decoded["frame_times"])
    assert {**by_packets, "frame_times": None} == {**decoded, "frame_times": None}


def test_a_long_file_is_not_decoded_and_gives_the_same_frames(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = Media("x", "a/clip", 0.5, 1.0)
    whole = numbers(library(folder, tmp_path / "a", part), part)
    monkeypatch.setattr("allinone.finetune.inputs.media_library.LONG_BYTES", 100)
    monkeypatch.setattr("allinone.finetune.inputs.media_library._END_BYTES", 50)
    monkeypatch.setattr(
        "allinone.finetune.inputs.media_library.probe",
        lambda *_: pytest.fail("a long file was decoded"),
    )
    assert numbers(library(folder, tmp_path / "b", part), part) == whole


# -- training order --------------------------------------------------------------------------------


def stream(folder: Path, cache: Path, ledger: Path, share: float = 0.5) -> TaskStream:
    items = [
        QAItem(str(n), Media(name, name), f"what is {n} ?", ("x",))
        for n, name in enumerate(["a/clip", "loud", "cut", "moving"])
    ]
    found = library(folder, cache, *(item.media for item in items))
    clip, config = ClipConfig(2, 32, 16), DataConfig(workers=0, max_bad_share=share)
    make = QAExamples(items, {"x": 0}, soft=False)
    source = Source(
        "made-up/train", [item.id for item in items], make, Reader(found, clip, config), clip
    )
    return TaskStream(source, config, seed=3, ledger=ledger)


def taken(
    data: TaskStream, batches: int, first: int = 0, rank: int = 0, world: int = 1
) -> list[tuple[int, int, tuple[str, ...]]]:
    found = data.batches(first=first, rank=rank, world=world, micro_batch=2, device=CPU)
    return [
        (batch.first_position, batch.digest, batch.clips)
        for batch, _ in zip(found, range(batches), strict=False)
    ]


def test_batches_equal_at_any_world_size_and_after_restart(folder: Path, tmp_path: Path) -> None:
    alone = taken(stream(folder, tmp_path, tmp_path / "ledger"), 6)
    assert [position for position, *_ in alone] == [0, 2, 4, 6, 8, 10]
    assert all("2" not in clips for *_, clips in alone)  # item 2 shows cut.mp4
    ledger = (tmp_path / "ledger" / "rank-0.jsonl").read_text()
    assert '"clip": "2"' in ledger
    assert "cut.mp4: " in ledger
    ranks = [
        taken(stream(folder, tmp_path, tmp_path / "other"), 3, rank=rank, world=2)
        for rank in (0, 1)
    ]
    assert sorted(ranks[0] + ranks[1]) == alone
    assert taken(stream(folder, tmp_path, tmp_path / "third"), 3, first=6) == alone[3:]
