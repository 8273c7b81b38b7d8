"""Files that stay open between reads, as many as a process may hold open: HowTo100M has 12,000
shards, YT-Temporal 60,000, a process by default 1,024 descriptors, for every data set of a mixture
and all else together."""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path

KEPT = 64
"""Files of one folder that stay open, those used last."""


class OpenFile:
    """A file open for reading; closed when nothing refers to it any more, so never below a thread
    that reads it."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def read(self, offset: int, size: int) -> bytes:
        """That many bytes, or as many as there are: a single read of Linux ends at 2 GiB."""
        content = os.pread(self.descriptor, size, offset)
        while len(content) < size and (
            more := os.pread(self.descriptor, size - len(content), offset + len(content))
        ):
            content += more
        return content

    def __del__(self) -> None:
        with contextlib.suppress(
            AttributeError, OSError
        ):  # it could not be opened; Python is ending
            os.close(self.descriptor)


class OpenFiles:
    """The files of a folder by their names, opened when they are asked for. For several threads; a
    copy by pickle opens its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(
            folder
            # not a Path: pathlib enters every part of a name into Python's table of strings, for
            # every clip
        )
        self._opened = functools.lru_cache(maxsize=KEPT)(OpenFile)

    def __reduce__(self) -> tuple[type[OpenFiles], tuple[Path]]:
        return OpenFiles, (Path(self._folder),)

    def __getitem__(self, name: str) -> OpenFile:
        """To be held as long as its descriptor is used; raises OSError."""
        return self._opened(f"{self._folder}/{name}")
