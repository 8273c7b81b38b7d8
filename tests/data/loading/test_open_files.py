"""Data sets have more shards than a process may hold open."""

from __future__ import annotations

import errno
import gc
import os
import pickle
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from allinone.data.loading import open_files
from allinone.data.loading.open_files import KEPT, OpenFile, OpenFiles, retried

FILES, SIZE = 4 * KEPT, 4096


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(FILES):
        (tmp_path / f"{number}.tar").write_bytes(number.to_bytes(4, "little") * (SIZE // 4))
    return tmp_path


@pytest.fixture
def little_room() -> Iterator[None]:
    """Descriptors for half of the files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors() + FILES // 2, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_threads_read_more_files_than_may_be_open(folder: Path, little_room: None) -> None:
    gc.collect()  # files of earlier tests would be closed meanwhile
    files, at_start = OpenFiles(folder), descriptors()

    def read(seed: int) -> int:
        wrong = 0
        for number in map(int, np.random.default_rng(seed).integers(FILES, size=3000)):
            opened = files[f"{number}.tar"]
            wrong += os.pread(opened.descriptor, SIZE, 0) != number.to_bytes(4, "little") * (
                SIZE // 4
            )
        return wrong

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(read, range(8))) == [0] * 8
    assert KEPT <= descriptors() - at_start <= KEPT + 8


def test_a_file_stays_open_while_it_is_held(folder: Path) -> None:
    files = OpenFiles(folder)
    held = files["7.tar"]
    for number in range(FILES):
        files[f"{number}.tar"]
    assert os.pread(held.descriptor, 1, 0) == b"\x07"
    again = pickle.loads(pickle.dumps(files))["7.tar"]
    assert again.descriptor != held.descriptor
    assert os.pread(again.descriptor, 1, 0) == b"\x07"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.tar"):
        OpenFiles(tmp_path)["gone.tar"]
    with pytest.raises(FileNotFoundError):
        OpenFile(str(tmp_path / "gone.tar"))


def test_short_reads_are_continued_to_the_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read of Linux ends at 2 GiB; here at 1,000 bytes."""
    whole, once = OpenFiles(folder)["9.tar"], os.pread
    monkeypatch.setattr(
        os, "pread", lambda descriptor, size, offset: once(descriptor, min(size, 1000), offset)
    )
    assert whole.read(4, SIZE) == (9).to_bytes(4, "little") * (SIZE // 4 - 1)
    assert whole.read(100, 2500) == (9).to_bytes(4, "little") * 625


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT])
@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_failed_read_is_repeated_with_a_new_handle(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    failing: int,
) -> None:
    files, once = OpenFiles(folder), os.pread
    lost = [files["9.tar"]]  # held: its descriptor is not given to another file

    def pread(descriptor: int, size: int, offset: int) -> bytes:
        if descriptor in [opened.descriptor for opened in lost] and len(lost) <= failing:
            raise OSError(number, os.strerror(number))
        return once(descriptor, size, offset)

    def reopen() -> None:
        files.close()
        if len(lost) < failing:
            lost.append(files["9.tar"])
        else:
            lost.extend([files["1.tar"]] * failing)

    monkeypatch.setattr(os, "pread", pread)
    monkeypatch.setattr(open_files, "PAUSES_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(open_files, "_repeated", 0)
    said: list[str] = []
    monkeypatch.setattr(open_files.log, "warning", lambda text, *values: said.append(text % values))
    content = retried(lambda: files["9.tar"].read(0, SIZE), "9.tar", reopen)
    assert content == (9).to_bytes(4, "little") * (SIZE // 4)
    assert said == [f"9.tar is read again: [Errno {number}] {os.strerror(number)} (failed read 1)"]


def test_a_read_that_fails_for_good_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_files, "PAUSES_S", (0.0, 0.0))
    for number, expected in ((errno.EIO, 3), (errno.ENOENT, 1), (errno.EMFILE, 1)):
        read = Mock(side_effect=OSError(number, "x"))
        with pytest.raises(OSError, match="x"):
            retried(read, "9.tar")
        assert read.call_count == expected
