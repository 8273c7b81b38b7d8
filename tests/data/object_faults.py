"""An object storage in memory that fails as real ones do."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

from allinone.data import remote_index

BUCKET = "memory://bucket"


class HttpError(Exception):
    """As aiohttp and gcsfs raise it: with the status as an attribute."""

    def __init__(self, status: int, message: str = "") -> None:
        super().__init__(message or f"HTTP {status}")
        self.status = status


class ClientError(Exception):
    """As botocore raises it."""

    def __init__(self, status: int, code: str, message: str = "") -> None:
        super().__init__(
            f"An error occurred ({code}) when calling the GetObject operation: {message}"
        )
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


class FaultyStorage(MemoryFileSystem):
    """fsspec's memory file system, with faults of the next requests."""

    cachable = False
    faults: ClassVar[list[Callable[[bytes], bytes]]] = []
    """Taken one by one: each gets the right answer of a request, and returns or raises another."""
    requests: ClassVar[list[tuple[str, int | None, int | None]]] = []
    """(path, start, end) of every range request."""

    def cat_file(self, path: str, start: Any = None, end: Any = None, **kwargs: Any) -> bytes:
        self.requests.append((self._strip_protocol(path), start, end))
        content = super().cat_file(path, start=start, end=end, **kwargs)
        return self.faults.pop(0)(content) if self.faults else content


def failing(error: BaseException) -> Callable[[bytes], bytes]:
    """A fault that raises."""

    def fail(content: bytes) -> bytes:
        raise error

    return fail


def cut(content: bytes) -> bytes:
    """A connection that ends after half of the answer."""
    return content[: len(content) // 2]


def slow(content: bytes) -> bytes:
    """An answer that takes longer than the tests' time limit of 0.2 s."""
    time.sleep(1.0)
    return content


@contextmanager
def faulty_storage() -> Iterator[type[FaultyStorage]]:
    """Replace memory:// by an empty FaultyStorage."""

    def clear() -> None:
        FaultyStorage.store.clear()
        FaultyStorage.pseudo_dirs[:] = [""]
        FaultyStorage.faults, FaultyStorage.requests = [], []
        remote_index._copied.cache_clear()

    clear()
    fsspec.register_implementation("memory", FaultyStorage, clobber=True)
    yield FaultyStorage
    fsspec.register_implementation("memory", MemoryFileSystem, clobber=True)
    clear()


def upload(folder: Path, url: str) -> Path:
    """Copy a folder into the storage; returns its address as options hold it."""
    storage = fsspec.filesystem("memory")
    for path in folder.rglob("*"):
        if path.is_file():
            storage.pipe_file(f"{url}/{path.relative_to(folder)}", path.read_bytes())
    return Path(url)


def copy_of(folder: Path, target: Path) -> str:
    """Copy a folder to another one; returns the address of that by file://."""
    shutil.copytree(folder, target)
    return f"file://{os.fspath(target)}"
