"""Atomic writing: write a temporary file in the target's folder, fsync it, rename it.

A reader therefore sees a complete file or none. All files of the project are written here. What is
published has the permissions that the umask and the folder give to new files.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path

TEMPORARY = ".tmp-"
"""Prefix of unfinished files and folders. Readers ignore it; `remove_leftovers` deletes it."""


def fsync_dir(path: Path) -> None:
    """Make renames inside the folder `path` survive a power cut."""
    # Linux syncs a folder through a descriptor opened for reading
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_file(path: Path) -> None:
    """Force the content of `path` to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def temporary_path(target: Path) -> Path:
    """A new name for the unfinished form of a file or folder."""
    # in the same folder, because rename(2) is atomic within a file system only; random, because
    # ranks on several nodes may write the same target
    return target.with_name(f"{TEMPORARY}{target.name}-{uuid.uuid4().hex[:8]}")


def open_to_umask(folder: Path) -> None:
    """Give all files below `folder` the permissions of a new file there.

    Libraries that write through a private temporary file leave 0600 behind: safetensors does since
    version 0.6, and colleagues then cannot read the weights.
    """
    # a new file tells them: reading the umask means setting it, which other threads would notice,
    # and a default ACL of the folder counts too
    probe = folder / f"{TEMPORARY}mode-{uuid.uuid4().hex[:8]}"
    handle = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        mode = stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)
        probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and stat.S_IMODE(path.stat().st_mode) != mode:
            path.chmod(mode)


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `target`.

    On a clean exit it is fsynced and renamed over the target, after an exception it is removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(target)
    try:
        yield temporary
        fsync_file(temporary)
        temporary.replace(target)
        fsync_dir(target.parent)
    finally:
        delete(temporary)


def write_atomic(target: Path, content: bytes | str) -> None:
    """Write a small file completely or not at all."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def content_hash(content: bytes) -> str:
    """BLAKE2b hash of 64 bits, as `b2sum --length 64` prints it; the index's column `hash`."""
    return blake2b(content, digest_size=8).hexdigest()


def publish_dir(target: Path, fill: Callable[[Path], None]) -> None:
    """Create a folder atomically.

    Args:
        target: The new folder, which must not exist.
        fill: Writes the content into the temporary folder that it is given. All of it is fsynced
            before the folder is renamed to `target`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(target)
    temporary.mkdir()
    try:
        fill(temporary)
        open_to_umask(temporary)
        # in reverse order: the content of a folder before the folder
        for path in sorted(temporary.rglob("*"), reverse=True):
            fsync_dir(path) if path.is_dir() else fsync_file(path)
        fsync_dir(temporary)
        temporary.rename(target)
        fsync_dir(target.parent)
    finally:
        delete(temporary)


def delete(path: Path) -> None:
    """Delete a file or folder as far as possible now; what is left does no harm where it is.

    NFS keeps files that a process still reads (EBUSY), and a failing disk deletes nothing.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def remove_leftovers(folder: Path) -> None:
    """Delete unfinished files and folders directly inside `folder`, as far as possible."""
    for path in folder.glob(f"{TEMPORARY}*"):
        delete(path)
