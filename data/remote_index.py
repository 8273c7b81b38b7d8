"""The index of a prepared folder in object storage: copied to this node once, and verified."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
from pathlib import Path

from allinone.common.atomic_io import atomic_path, content_hash, write_atomic
from allinone.common.errors import DataError, LostDataError, StorageError
from allinone.common.object_storage import ObjectStore, cache_folder, remote_url

MAPPED = ("index.arrow", "videos.arrow")
"""Files of the index that loaders map into memory."""


def local_index(folder: Path) -> Path:
    """The local folder that holds dataset.json and the mapped files of a prepared folder.

    The folder itself, or a copy of the index of a folder in object storage. A process sees one
    version of the latter, that of its first call.

    Args:
        folder: A prepared folder, here or in object storage.

    Raises:
        DataError: The remote folder is unfinished or damaged, or may not be read.
        StorageError: The storage failed.
    """
    url = remote_url(folder)
    return folder if url is None else _copied(url)


@functools.lru_cache(maxsize=64)
def _copied(url: str) -> Path:
    store = ObjectStore(url)
    try:
        facts = store.read("dataset.json")
    except LostDataError as error:
        raise DataError(
            f"{url} is not a finished prepared data set (no dataset.json). Check --data and --val,"
            f" or run: python tools/prepare.py SOURCE --out {url}"
        ) from error
    # dataset.json holds the hashes of the other files: one folder per version of the index
    target = cache_folder() / "indexes" / content_hash(url.encode() + facts)
    try:
        hashes = json.loads(facts)["hashes"]
        wanted = {name: str(hashes[name]) for name in MAPPED}
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{url}/dataset.json is damaged ({error!r}); prepare it again") from error
    try:
        target.mkdir(parents=True, exist_ok=True)
        # the ranks of a node start together: one copies, the others wait
        with (target / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for name, digest in wanted.items():
                if not (target / name).exists():
                    _copy(store, name, target / name, digest)
            write_atomic(target / "dataset.json", facts)
    except OSError as error:
        raise StorageError(
            f"the index of {url} cannot be kept in {target}: {error}. ALLINONE_CACHE names another"
            " folder for it"
        ) from error
    return target


def _copy(store: ObjectStore, name: str, target: Path, digest: str) -> None:
    """Copy a file of the index; it exists only with the content that dataset.json announces."""
    with atomic_path(target) as temporary:
        store.download(name, temporary)
        with temporary.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != digest:
            raise DataError(
                f"{store.address(name)} is not the file that dataset.json describes: the folder"
                " is being prepared again, or was copied incompletely; run the command that"
                " prepared it"
            )
