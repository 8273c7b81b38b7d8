"""Shards in object storage, read in ranges through a block cache on a local disk."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from allinone.common.atomic_io import content_hash
from allinone.common.errors import DataError
from allinone.common.object_storage import (
    ObjectStore,
    ObjectVersion,
    cache_folder,
    remote_url,
)
from allinone.data.config import DataConfig
from allinone.data.decoding.containers import ByteRange
from allinone.data.decoding.frames import DecodeError
from allinone.data.loading.block_cache import BlockCache
from allinone.data.loading.open_files import OpenFiles

BLOCK = 1 << 20
"""Bytes of a block: at 50 ms and 100 MB/s a request of 1 MiB takes 60 ms, one of 200 kB, a clip of
256 lines, 52 ms."""
CHECK_S = 60.0
"""Seconds after which an object is asked again for its version, before parts of a long video are
read. Complete files are compared with their hashes instead."""


class RemoteFile:
    """A shard in object storage.

    Args:
        store: The prepared folder.
        name: The shard.
        version: The one that was there when the folder was opened.
        cache: Keeps blocks.
    """

    def __init__(
        self, store: ObjectStore, name: str, version: ObjectVersion, cache: BlockCache
    ) -> None:
        self._store, self._name, self._version, self._cache = store, name, version, cache
        self._key = f"{store.address(name)}\0{version.tag}\0{version.size}\0"
        self._checked = time.monotonic()

    def read(self, offset: int, size: int) -> bytes:
        """Read up to `size` bytes; fewer only at the end of the object."""
        end = min(offset + size, self._version.size)
        if end <= offset:
            return b""
        if not self._cache.limit:
            return self._store.read(self._name, offset, end)
        numbers = range(offset // BLOCK, (end - 1) // BLOCK + 1)
        content = b"".join(self._blocks(numbers))
        start = offset - numbers[0] * BLOCK
        return content[start : start + end - offset]

    def _blocks(self, numbers: range) -> list[bytes]:
        """The content of consecutive blocks."""
        cached = {number: self._cache.get(f"{self._key}{number}") for number in numbers}
        blocks = {number: block for number, block in cached.items() if block is not None}
        first = None
        # one request for each run of missing blocks
        for number in [*numbers, numbers.stop]:
            if number in numbers and number not in blocks:
                first = number if first is None else first
            elif first is not None:
                blocks |= self._fetch(first, number)
                first = None
        return [blocks[number] for number in numbers]

    def _fetch(self, first: int, stop: int) -> dict[int, bytes]:
        """Read the blocks [first, stop) from the storage, and store them."""
        content = self._store.read(self._name, first * BLOCK, min(stop * BLOCK, self._version.size))
        blocks = {
            number: content[(number - first) * BLOCK : (number - first + 1) * BLOCK]
            for number in range(first, stop)
        }
        for number, block in blocks.items():
            self._cache.put(f"{self._key}{number}", block)
        return blocks

    def member(self, offset: int, size: int, digest: str) -> bytes:
        """Read a stored file, and compare it with its hash.

        Args:
            offset: Its first byte.
            size: Its bytes.
            digest: Its hash, from the index.

        Raises:
            DataError: The object has changed since it was opened.
            DecodeError: Its bytes are not those that the index describes.
        """
        content = self.read(offset, size)
        if content_hash(content) == digest:
            return content
        self.require_unchanged()
        # the cached blocks may be of an object that was replaced and put back
        for number in range(offset // BLOCK, (offset + size - 1) // BLOCK + 1):
            self._cache.discard(f"{self._key}{number}")
        content = self.read(offset, size)
        if content_hash(content) != digest:
            raise DecodeError(
                f"{self._store.address(self._name)}: the {size:,} bytes at {offset:,} are not those"
                " that the index describes"
            )
        return content

    def range(self, offset: int, size: int) -> ByteRange:
        """A stored file as a file object, for reading parts of it."""
        if time.monotonic() - self._checked > CHECK_S:
            self.require_unchanged()
        return _RemoteRange(self, offset, size)

    def require_unchanged(self) -> None:
        """Raise DataError if the object is not the one that was there when it was opened."""
        now = self._store.version(self._name)
        # not every service has a tag in its listings and in its answers for one object
        known = now if now.tag and self._version.tag else replace(now, tag=self._version.tag)
        if known != self._version:
            raise DataError(
                f"{self._store.address(self._name)} has changed since it was opened (size"
                f" {self._version.size:,} → {now.size:,}, version {self._version.tag} → {now.tag})."
                " Restart the command once the new data is complete; to keep both, prepare into"
                " another folder"
            )
        self._checked = time.monotonic()


class _RemoteRange(ByteRange):
    """A range of a shard in object storage."""

    def __init__(self, file: RemoteFile, offset: int, size: int) -> None:
        super().__init__(-1, offset, size)
        self._file = file
        self._held: tuple[int, bytes] = (-1, b"")

    def _read_at(self, offset: int, size: int) -> bytes:
        # a demuxer reads the same block several times; it accepts fewer bytes than it asks for
        number, start = divmod(offset, BLOCK)
        if self._held[0] != number:
            self._held = number, self._file.read(number * BLOCK, BLOCK)
        return self._held[1][start : start + size]


class RemoteFiles:
    """The shards of a prepared folder in object storage by name; see `OpenFiles`.

    Their versions are listed once. A pickled copy expects the same versions.

    Args:
        store: The prepared folder.
        cache: Keeps blocks.
        versions: Versions of the shards; None lists them.
    """

    def __init__(
        self,
        store: ObjectStore,
        cache: BlockCache,
        versions: dict[str, ObjectVersion] | None = None,
    ) -> None:
        self.cache = cache
        self._store = store
        self._versions = store.list("shards") if versions is None else versions
        self._opened: dict[str, RemoteFile] = {}

    def __reduce__(
        self,
    ) -> tuple[type[RemoteFiles], tuple[ObjectStore, BlockCache, dict[str, ObjectVersion]]]:
        return RemoteFiles, (self._store, self.cache, self._versions)

    def __getitem__(self, name: str) -> RemoteFile:
        """Return a shard; raises LostDataError if it does not exist."""
        if name not in self._opened:
            version = self._versions.get(name) or self._store.version(name)
            self._opened[name] = RemoteFile(self._store, name, version, self.cache)
        return self._opened[name]

    def close(self) -> None:
        """Nothing is open between requests."""


def open_shards(folder: Path, config: DataConfig) -> OpenFiles | RemoteFiles:
    """The shards of a prepared folder, here or in object storage.

    Args:
        folder: The prepared folder.
        config: Folder and size of the block cache.
    """
    url = remote_url(folder)
    if url is None:
        return OpenFiles(folder)
    # a folder of its own: the cache deletes what is in it
    cache = (config.cache_dir or cache_folder()) / "allinone-blocks"
    return RemoteFiles(ObjectStore(url), BlockCache(cache, int(1e9 * config.cache_gb)))
