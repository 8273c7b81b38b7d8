"""Manifest of a checkpoint: sizes and hashes of its files, by which damage is found."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterable
from pathlib import Path

from allinone.common.access import describe_denied, exists
from allinone.common.atomic_io import fsync_dir, fsync_file, temporary_path, write_atomic
from allinone.engine.checkpoint.layout import (
    CHECKPOINTS,
    MANIFEST,
    CheckpointError,
    checkpoints,
)

log = logging.getLogger(__name__)

RETRY_S = 1.0
"""Pause before a checkpoint that the storage did not deliver is read again."""


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path) -> None:
    """Write sizes and hashes of all files below `folder`, after an fsync of each file."""
    # the manifest must not reach the disk before the bytes that it vouches for
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        fsync_file(path)
    # after a power cut, a file exists only if its folder's entry was written too; rglob leaves out
    # `folder` itself, which write_atomic fsyncs below
    for path in (path for path in folder.rglob("*") if path.is_dir()):
        fsync_dir(path)
    entries = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": _hash(path)}
        for path in files
    }
    write_atomic(folder / MANIFEST, json.dumps(entries, indent=1) + "\n")


def find_damage(folder: Path, without: str = "") -> str | None:
    """Compare all files of a checkpoint with its manifest.

    Args:
        folder: The checkpoint.
        without: Name of one file that is not checked.

    Returns:
        The first problem as the rest of a sentence that begins with the folder, or None.

    Raises:
        CheckpointError: A file may not be read: the checkpoint may be good, and is not set aside.
    """
    for chance in (1, 0):
        try:
            return _find_damage(folder, without)
        except PermissionError as error:
            denied = Path(error.filename or folder)
            raise CheckpointError(
                f"checkpoint {folder} cannot be read: {describe_denied(denied)}"
            ) from error
        except OSError as error:
            if not chance:
                return f"cannot be read ({error})"
            time.sleep(RETRY_S)
    raise AssertionError


def _find_damage(folder: Path, without: str) -> str | None:
    manifest = folder / MANIFEST
    if not exists(manifest) or not manifest.is_file():
        return "has no manifest.json: it was not finished"
    try:
        entries = json.loads(manifest.read_text())
        for name, entry in entries.items():
            if name == without:
                continue
            path = folder / name
            if not exists(path) or not path.is_file():
                return f"is missing {name}"
            # before the hash: a truncated file is found without reading gigabytes
            if path.stat().st_size != entry["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {entry['bytes']}"
            if _hash(path) != entry["sha256"]:
                return f"{name} does not have the content that was written"
    # a damaged manifest may be no text, no JSON, JSON of another shape, or name impossible files
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        return f"manifest.json cannot be read ({error})"
    return None


def newest_complete(out: Path, kind: str = CHECKPOINTS) -> tuple[Path | None, list[str]]:
    """Find the newest undamaged checkpoint of a run.

    Args:
        out: The run's folder.
        kind: CHECKPOINTS, or BEST for the best weights.

    Returns:
        The checkpoint, or None; and a line about each damaged checkpoint that is newer.
    """
    notes: list[str] = []
    for folder in checkpoints(out, kind):
        problem = find_damage(folder)
        if problem is None:
            return folder, notes
        notes.append(f"checkpoint {folder} {problem}")
    return None, notes


def set_aside(damaged: Iterable[Path]) -> None:
    """Rename damaged checkpoints to damaged-step-*: pruning then does not count them, and they can
    still be examined."""
    for folder in damaged:
        target = folder.with_name(f"damaged-{folder.name}")
        try:
            # the same step was damaged before: a rename cannot replace a folder with content
            if target.exists():
                target.rename(temporary_path(target))
            folder.rename(target)
        except OSError as error:
            log.warning("%s is damaged and cannot be renamed: %s", folder, error)
