"""Media files: found by name, probed once, and read by one rule."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from allinone.common.errors import DataError
from allinone.data.config import ClipConfig, DataConfig
from allinone.data.prepare.probe import PACKET_CODECS, probe, probe_packets
from allinone.finetune.annotations.schema import Media
from allinone.finetune.inputs.batch import VisualInput
from allinone.finetune.inputs.clip_reader import MediaReader, media_window
from allinone.finetune.inputs.media_library import LIMITS, MediaError, MediaFile, MediaLibrary
from tests.data.media import GOOD, read_frame_number, write_video
from tests.finetune.inputs.conftest import library
from tests.users import AS_OTHER_USER, nobody, open_path


def numbers(
    found: MediaLibrary, media: Media, random: np.random.Generator | None = None, views: int = 1
) -> list[list[int]]:
    """What the chosen frames spell."""
    read = MediaReader(found, ClipConfig(3, 32, 16), DataConfig(workers=0))
    visuals = read(VisualInput(media), random, views)
    return [[read_frame_number(frame) for frame in np.asarray(visual.media)] for visual in visuals]


def test_all_kinds_of_media_are_found_by_any_suffix(folder: Path, tmp_path: Path) -> None:
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
    second = Media("y", "frames", 1.0, 2.0)  # images 4 to 6 at 3 per second
    late = Media("z", "a/clip", 5.0, 6.0)
    found = library(folder, tmp_path, part, second, late)
    assert numbers(found, part) == [[6, 8, 10]]
    assert numbers(found, second) == [[104, 105, 106]]
    assert {n for _ in range(20) for n in numbers(found, part, np.random.default_rng(_))[0]} <= set(
        range(6, 12)
    )
    with pytest.raises(MediaError, match=r"a/clip\.mp4: shown from 5 s on, it ends at 2\.0 s"):
        media_window(found[late], late)


def test_bad_files_have_reasons_and_probes_are_cached(
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
    with pytest.raises(DataError, match=r"is not a folder\. Source: the archive"):
        library(folder / "absent", tmp_path, Media("b", "nowhere"))


@pytest.mark.parametrize("name", sorted(GOOD))
def test_packet_probes_equal_a_full_decode_or_give_nothing(name: str, tmp_path: Path) -> None:
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


@AS_OTHER_USER
@pytest.mark.parametrize("from_earlier_version", [False, True])
def test_a_file_that_was_unreadable_is_read_once_it_is_repaired(
    tmp_path: Path, from_earlier_version: bool
) -> None:
    """Permissions change neither size nor modification time, by which probes are remembered."""
    root = open_path(tmp_path) / "media"
    write_video(root / "a.mp4")
    (root / "a.mp4").chmod(0o600)
    media = Media("a", "a.mp4")
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    with nobody():
        assert "Permission denied" in library(root, tmp_path, media).reason(media)
    if from_earlier_version:
        facts = (root / "a.mp4").stat()
        key = f"a.mp4|{facts.st_size}|{facts.st_mtime_ns}"
        bad = MediaFile("a.mp4", "", reason="unreadable: [Errno 13] Permission denied: 'a.mp4'")
        store = library(root, tmp_path, Media("a", "a.mp4"))._store
        store.mkdir(parents=True, exist_ok=True)
        for path in store.glob("*.jsonl"):
            path.unlink()
        (store / "x.jsonl").write_text(json.dumps([key, asdict(bad)]) + "\n")
    (root / "a.mp4").chmod(0o644)
    assert library(root, tmp_path, media).reason(media) == ""


def test_squash_is_for_videos_and_folders_of_frames(folder: Path, tmp_path: Path) -> None:
    """Both sides of a squashed crop are the same share; a still image shows its central square."""
    media = {name: Media(name, name) for name in ("a/clip", "moving", "frames", "still")}
    found = library(folder, tmp_path / "cache", *media.values())
    config = DataConfig(workers=0, geometry="squash")
    read = MediaReader(found, ClipConfig(3, 32, 16), config)
    for name, item in media.items():
        (visual,) = read(VisualInput(item), None)
        squashed = visual.choices.box[2:] == (224 / 268, 224 / 268)
        assert squashed == (name != "still"), name
