"""Videos in object storage, copied to this machine while they are embedded or shown.

A local folder stands for the storage: every object is a file of its size without content, whose
time of change is made from the object's version. What compares files then sees what has changed.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from allinone.common.atomic_io import content_hash
from allinone.common.errors import DataError, InputError
from allinone.common.object_storage import (
    ObjectStore,
    ObjectVersion,
    cache_folder,
    remote_url,
    stand_in,
)
from allinone.data.decoding.codecs import IMAGES, VIDEOS

log = logging.getLogger(__name__)

PARALLEL = 8
"""Files that are copied at the same time."""


class RemoteMedia:
    """The videos and images below an address.

    Args:
        url: The address.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.local = cache_folder() / "media" / content_hash(url.encode())
        """The local folder."""
        self._store = ObjectStore(url)
        self._here: set[str] = set()
        """Files that this process has copied."""
        self._lock = threading.Lock()

    def list(self) -> None:
        """Make the local folder agree with the storage.

        Raises:
            InputError: There is no video or image.
            DataError: The storage may not be read.
            StorageError: It failed.
        """
        found = {name: v for name, v in self._store.list().items() if self._is_media(name)}
        if not found:
            raise InputError(
                f"DIR {self.url} lists no video or image; web servers (https://) list nothing"
            )
        self.local.mkdir(parents=True, exist_ok=True)
        for path in [path for path in self.local.rglob("*") if path.is_file()]:
            if path.relative_to(self.local).as_posix() not in found:
                path.unlink()
        for name, version in found.items():
            path = self.local / name
            facts = path.stat() if path.exists() else None
            # blocks: the content that a killed process has left
            if facts is None or facts.st_blocks or _key(facts) != (version.size, _time(version)):
                self._stand_in(path, version)

    def _is_media(self, name: str) -> bool:
        suffix = PurePosixPath(name).suffix.lstrip(".").lower()
        if suffix not in VIDEOS | IMAGES:
            return False
        if name.startswith("/") or not {"..", ".", ""}.isdisjoint(name.split("/")):
            log.warning("left out: %s, its name is no path below the address", name)
            return False
        return True

    @staticmethod
    def _stand_in(path: Path, version: ObjectVersion) -> None:
        stand_in(path, version.size)
        os.utime(path, ns=(_time(version), _time(version)))

    def file(self, path: str) -> Path:
        """The local file of an object, without its content unless `fetch` has copied it.

        Raises:
            DataError: The path leaves the folder, or the object does not exist.
        """
        local = inside(self.local, path)
        if not local.exists():  # another machine has made the index
            self._stand_in(local, self._store.version(path))
        return local

    def fetch(self, paths: Iterable[str]) -> None:
        """Copy the content of files that this process has not copied yet.

        Raises:
            DataError: A path leaves the folder, an object does not exist, or may not be read.
            StorageError: The storage failed.
        """
        with self._lock, ThreadPoolExecutor(PARALLEL) as pool:
            wanted = dict.fromkeys(path for path in paths if path not in self._here)
            for path in pool.map(self._fetch, wanted):
                self._here.add(path)

    def _fetch(self, path: str) -> str:
        local, version = inside(self.local, path), self._store.version(path)
        self._store.download(path, local)
        os.utime(local, ns=(_time(version), _time(version)))
        return path

    def release(self, paths: Iterable[str]) -> None:
        """Free the room of files."""
        for path in self._here.intersection(paths):
            facts = (self.local / path).stat()
            stand_in(self.local / path, facts.st_size)
            os.utime(self.local / path, ns=(facts.st_mtime_ns, facts.st_mtime_ns))
            self._here.discard(path)


def _key(facts: os.stat_result) -> tuple[int, int]:
    return facts.st_size, facts.st_mtime_ns


def _time(version: ObjectVersion) -> int:
    """A time of change for a version, ns: complete seconds, which every file system keeps."""
    return int(content_hash(version.tag.encode())[:7], 16) * 10**9


@functools.cache
def remote_media(root: Path) -> RemoteMedia | None:
    """The object storage that a folder of videos is in; None for a local folder."""
    url = remote_url(root)
    return None if url is None else RemoteMedia(url)


def inside(root: Path, path: str) -> Path:
    """Join a stored path to a folder.

    Raises:
        DataError: The path is absolute, contains "..", or leads out of the folder by a link.
    """
    relative = PurePosixPath(path)
    joined = root / relative
    leaves = relative.is_absolute() or ".." in relative.parts or "\0" in path
    if leaves or not joined.resolve().is_relative_to(root.resolve()):
        raise DataError(f"{path!r} leaves the folder of the videos, {root}")
    return joined
