"""Data sets have more shards than a process may hold open."""

from __future__ import annotations

import os
import pickle
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from allinone.data.loading.open_files import KEPT, OpenFile, OpenFiles

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
