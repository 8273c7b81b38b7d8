"""Files that stay open between reads, within the limit on open descriptors.

HowTo100M has 12,000 shards, YT-Temporal 60,000; a process may by default hold 1,024 descriptors,
for every data set of a mixture and everything else together.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from allinone.common.errors import LASTING
from allinone.common.write_guard import is_milestone
from allinone.data.decoding.containers import ByteRange

log = logging.getLogger(__name__)
T = TypeVar("T")

PAUSES_S = (0.2, 1.0, 5.0)
"""Pauses before a failed read is repeated: file servers restart, and NFS handles become stale."""
_repeated = 0

KEPT = 64
"""Files of one folder that stay open: the most recently used ones."""


class OpenFile:
    """A file open for reading.

    Closed when the last reference is gone, so never while a thread still reads it.
    """

    def __init__(self, path: str) -> None:
        # O_NONBLOCK: opening a FIFO would wait for a writer; it changes nothing for regular files
        self.descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(self.descriptor).st_mode):
            raise OSError(errno.EISDIR, "Not a regular file", path)

    def read(self, offset: int, size: int) -> bytes:
        """Read up to `size` bytes; fewer only at the end of the file."""
        # A single read of Linux ends at 2 GiB.
        content = os.pread(self.descriptor, size, offset)
        while len(content) < size and (
            more := os.pread(self.descriptor, size - len(content), offset + len(content))
        ):
            content += more
        return content

    def member(self, offset: int, size: int, digest: str) -> bytes:
        """Read a stored file; its hash counts only where bytes come from elsewhere."""
        return self.read(offset, size)

    def range(self, offset: int, size: int) -> ByteRange:
        """A stored file as a file object; this file must stay referenced while it is used."""
        return ByteRange(self.descriptor, offset, size)

    def __del__(self) -> None:
        # AttributeError: opening failed; OSError: the interpreter is shutting down.
        with contextlib.suppress(AttributeError, OSError):
            os.close(self.descriptor)


class OpenFiles:
    """The files of a folder by name, opened on demand.

    Safe for several threads; a pickled copy opens its own files.
    """

    def __init__(self, folder: Path) -> None:
        # A string: pathlib would intern the parts of every clip's shard name.
        self._folder = str(folder)
        self._opened = functools.lru_cache(maxsize=KEPT)(OpenFile)

    def __reduce__(self) -> tuple[type[OpenFiles], tuple[Path]]:
        return OpenFiles, (Path(self._folder),)

    def __getitem__(self, name: str) -> OpenFile:
        """Return an open file; hold it as long as its descriptor is used. Raises OSError."""
        return self._opened(f"{self._folder}/{name}")

    def close(self) -> None:
        """Open every file again at its next use: a network disk may have lost the handles."""
        self._opened.cache_clear()


def retried(read: Callable[[], T], name: Path | str, reopen: Callable[[], None] | None = None) -> T:
    """Read, and repeat it after errors that say nothing about the file (EIO, ESTALE, ...).

    Args:
        read: Reads something.
        name: What it reads, for the log.
        reopen: Called before each repetition.

    Raises:
        OSError: The error of the last attempt; at once if it lasts (errors.LASTING).
    """
    global _repeated
    for pause in PAUSES_S:
        try:
            return read()
        except OSError as error:
            if error.errno in LASTING:
                raise
            _repeated += 1
            if is_milestone(_repeated):
                log.warning("%s is read again: %s (failed read %d)", name, error, _repeated)
        time.sleep(pause)
        if reopen is not None:
            reopen()
    return read()
