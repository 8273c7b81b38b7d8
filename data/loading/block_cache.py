"""Parts of objects on a local disk, shared by all processes of a node, up to a given size."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

from allinone.common.atomic_io import delete, temporary_path
from allinone.common.write_guard import WriteGuard

_DIGEST = 16
"""Bytes at the start of a file: the hash of what follows. Files are not fsynced, so that a power
cut may leave a file of the right size with other content."""
_KEPT_SHARE = 0.9
"""Share of the limit that is kept when the cache is full: the folder is listed once per tenth."""
USED = "used"
"""File with the bytes of all blocks, which processes lock while they change it."""


class BlockCache:
    """Blocks by key; the least recently used ones are removed.

    A disk that refuses a block costs a request the next time, not the run. A pickled copy uses the
    same folder.

    Args:
        folder: Where the blocks are; on a disk of this node, because every node locks it.
        limit: Bytes of all blocks, never exceeded; 0 keeps none.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self.limit = folder, limit
        self._guard = WriteGuard(f"a block in {folder} (--cache-dir)")
        self.hits = 0
        """Blocks found by this process."""
        self.misses = 0
        """Blocks that were not there."""

    def __reduce__(self) -> tuple[type[BlockCache], tuple[Path, int]]:
        return BlockCache, (self._folder, self.limit)

    def _path(self, key: str) -> Path:
        name = blake2b(key.encode(), digest_size=16).hexdigest()
        return self._folder / name[:2] / name

    def get(self, key: str) -> bytes | None:
        """The content of a block; None if it is not there, or damaged."""
        path = self._path(key)
        try:
            stored = path.read_bytes()
            os.utime(
                path
            )  # its last use, by which `_evict` chooses; many disks are mounted noatime
        except OSError:
            self.misses += 1
            return None
        content = stored[_DIGEST:]
        if _digest(content) != stored[:_DIGEST]:
            delete(path)
            self.misses += 1
            return None
        self.hits += 1
        return content

    def put(self, key: str, content: bytes) -> None:
        """Store a block; others see it completely or not at all."""
        size = len(content) + _DIGEST
        if size > self.limit:
            return
        path = self._path(key)
        temporary = temporary_path(path)
        with self._guard():
            path.parent.mkdir(parents=True, exist_ok=True)
            # the room is taken before the block is written: the limit holds at any time
            self._take(size)
            try:
                temporary.write_bytes(_digest(content) + content)
                temporary.replace(path)
            finally:
                delete(temporary)

    def discard(self, key: str) -> None:
        """Remove a block."""
        delete(self._path(key))

    def _take(self, size: int) -> None:
        """Count `size` more bytes, and remove blocks if there is no room for them."""
        with _locked(self._folder / USED) as file:
            text = os.pread(file, 32, 0)
            # a file that is cut short counts as full, and the folder is counted
            used = int(text) if text.isdigit() else self.limit
            if used + size > self.limit:
                used = self._evict(int(_KEPT_SHARE * self.limit) - size)
            os.pwrite(file, f"{used + size:032d}".encode(), 0)

    def _evict(self, target: int) -> int:
        """Remove blocks until at most `target` bytes are left; returns the bytes that are left."""
        found = []
        for folder in self._folder.iterdir():
            for path in folder.iterdir() if folder.is_dir() else ():
                with contextlib.suppress(FileNotFoundError):  # discarded by another process
                    facts = path.stat()
                    found.append((facts.st_mtime_ns, facts.st_size, path))
        left = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if left <= target:
                break
            delete(path)
            left -= size
        return left


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=_DIGEST).digest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """The descriptor of a file that no other process of this node has locked."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # released when it is closed, also by a kill
        yield descriptor
    finally:
        os.close(descriptor)
