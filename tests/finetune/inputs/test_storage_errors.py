"""A storage that fails ends an evaluation; no item is counted as wrong for it, then or later."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from allinone.common.errors import DataError, StorageError
from allinone.common.exit_codes import ExitCode
from allinone.data.config import ClipConfig, DataConfig
from allinone.data.decoding.frames import DecodeError, Timeline, decode_frames
from allinone.data.loading import open_files
from allinone.finetune.annotations.schema import Media
from allinone.finetune.inputs import media_library
from allinone.finetune.inputs.batch import VisualInput
from allinone.finetune.inputs.clip_reader import MediaReader
from allinone.finetune.inputs.media_library import MediaLibrary
from tests.data.media import read_frame_number, write_video
from tests.finetune.inputs.conftest import library

TROUBLE = [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT]


def _failing_read(
    monkeypatch: pytest.MonkeyPatch, at: int, number: int, times: int = 1
) -> list[int]:
    """Let the at-th os.pread fail, and those after it; returns a list that grows with every
    read."""
    real, reads = os.pread, list[int]()

    def pread(descriptor: int, size: int, offset: int) -> bytes:
        reads.append(offset)
        if at <= len(reads) - 1 < at + times:
            raise OSError(number, os.strerror(number))
        return real(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", pread)
    return reads


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        ("mp4", "libx264"),
        ("mkv", "libx264"),
        ("webm", "libvpx"),
        ("avi", "mpeg4"),
        ("ts", "libx264"),
    ],
)
def test_an_io_error_at_any_read_is_not_damage(tmp_path: Path, suffix: str, codec: str) -> None:
    path = write_video(
        tmp_path / f"a.{suffix}", codec=codec, frames=60, width=320, height=240, b_frames=0
    )
    failed = 0
    for at in range(100):
        with pytest.MonkeyPatch.context() as patch:
            reads = _failing_read(patch, at, errno.EIO)
            try:
                frames = decode_frames(path, [2, 59], Timeline(rate=12.0))
            except DecodeError as error:
                pytest.fail(f"read {at} of {suffix} counts as damage: {error}")
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                failed += 1
            else:
                assert [read_frame_number(frame) for frame in frames] == [2, 59]
            if len(reads) <= at:
                break
    assert failed


@pytest.mark.parametrize("number", TROUBLE)
def test_an_io_error_while_evaluating_ends_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    media = Media("x", "a/clip")
    found = library(folder, tmp_path, media)
    read = MediaReader(found, ClipConfig(3, 32, 16), DataConfig(workers=0))
    monkeypatch.setattr(open_files, "PAUSES_S", (0.0, 0.0))
    with monkeypatch.context() as patch:
        _failing_read(patch, 0, number, times=1000)
        with pytest.raises(StorageError) as error:
            read(VisualInput(media), None, 1)
    assert error.value.exit_code == ExitCode.FAILURE
    assert read(VisualInput(media), None, 1), "the next read succeeds"


@pytest.mark.parametrize("number", TROUBLE)
def test_a_single_io_error_is_read_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    media = Media("x", "a/clip")
    read = MediaReader(
        library(folder, tmp_path, media), ClipConfig(3, 32, 16), DataConfig(workers=0)
    )
    monkeypatch.setattr(open_files, "PAUSES_S", (0.0,))
    _failing_read(monkeypatch, 0, number)
    assert read(VisualInput(media), None, 1)


@pytest.mark.parametrize("number", TROUBLE)
def test_an_io_error_while_probing_is_not_remembered(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    media = Media("x", "a/clip")
    with monkeypatch.context() as patch:

        def fail(path: Path) -> bytes:
            raise OSError(number, os.strerror(number))

        patch.setattr(Path, "read_bytes", fail)
        with pytest.raises(StorageError):
            library(folder, tmp_path, media)
    assert not library(folder, tmp_path, media).reason(media)


def test_a_folder_that_cannot_be_listed_has_no_missing_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> object:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(media_library.os, "scandir", fail)
        with pytest.raises(StorageError):
            library(folder, tmp_path, Media("x", "a/clip"))


def test_an_unreadable_file_is_examined_again_once_repaired(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    media = Media("x", "a/clip")
    with monkeypatch.context() as patch:

        def refuse(path: Path) -> bytes:
            raise PermissionError(errno.EACCES, "Permission denied")

        patch.setattr(Path, "read_bytes", refuse)
        assert "Permission denied" in library(folder, tmp_path, media).reason(media)
    found: MediaLibrary = library(folder, tmp_path, media)
    assert not found.reason(media)
    read = MediaReader(found, ClipConfig(3, 32, 16), DataConfig(workers=0))
    assert np.asarray(read(VisualInput(media), None, 1)[0].media).shape[0] == 3


@pytest.mark.parametrize("wanted", ["frames", "stream"])
def test_a_file_replaced_after_probing_ends_the_run(tmp_path: Path, wanted: str) -> None:
    folder = tmp_path / "media"
    write_video(folder / "a.webm", codec="libvpx", frames=24)
    media = Media("a", "a.webm")
    found = library(folder, tmp_path / "cache", media)
    reader = MediaReader(found, ClipConfig(3, 64), DataConfig())
    reader.codecs = frozenset({"vp8"}) if wanted == "stream" else frozenset()
    assert len(reader(VisualInput(media), None)) == 1
    write_video(folder / "a.webm", codec="libvpx", frames=24, first=1000)
    reader = MediaReader(found, ClipConfig(3, 64), DataConfig())
    reader.codecs = frozenset({"vp8"}) if wanted == "stream" else frozenset()
    with pytest.raises(DataError, match="changed since it was examined"):
        reader(VisualInput(media), None)
    # the next start examines it again, also with the cache
    again = library(folder, tmp_path / "cache", media)
    assert again[media].hash != found[media].hash
