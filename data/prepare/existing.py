"""Which shards exist, which are made again, and whether the media are there at all."""

from __future__ import annotations

import json
from pathlib import Path

from allinone.common.atomic_io import TEMPORARY, write_atomic
from allinone.common.errors import OF_THE_NAME, DataError
from allinone.data.prepare.merge import bad_files, fragment_paths
from allinone.data.prepare.options import PrepareOptions
from allinone.data.prepare.probe import ProbeError
from allinone.data.prepare.worker import find_file
from allinone.data.sources import SourceRow
from allinone.data.sources.media import media_folder

MISSING_LIMIT = 1000
"""If this many files are missing and none was found, the folder of the media must be wrong."""
RETRY = "retry.json"
"""Holds the reasons of a retry in progress. Shards that are newer than this file were already made
again, by a run that was interrupted."""


class MissingMediaGuard:
    """Stops the preparation if the folder of the media is wrong or not mounted.

    Otherwise every clip would be recorded as bad.

    Args:
        options: Resolved options.
        found: Whether files were already found, by an earlier run.
    """

    def __init__(self, options: PrepareOptions, found: bool) -> None:
        # a retry only works on shards of earlier runs
        self.found = found or bool(options.retry)
        """Whether any file was found; before that, no shard is written."""
        self._options = options
        self._missing = 0
        self._first = ""
        root = media_folder(options.source, options.videos, "videos")
        self._root = root if _holds_something(root) else None

    def check_mounted(self) -> None:
        """Raise DataError if the folder of the videos was not empty at the start, and is now."""
        # the mount point of a file system that is gone is an empty folder, not an error
        if self._root is not None and not _holds_something(self._root):
            raise DataError(
                f"{self._root} has become empty: is the storage still mounted here? Once it is, the"
                " same command continues"
            )

    def add_missing(self, detail: object) -> None:
        """Count a missing file; raises DataError at the limit."""
        self._missing += 1
        self._first = self._first or str(detail)
        if self._missing >= MISSING_LIMIT:
            self._require_found()

    def finish(self) -> None:
        """After the last file: raise DataError if all of the source's files are missing.

        A part of an array may be small enough to have only missing files.
        """
        if self._missing and self._options.part is None:
            self._require_found()
        self.found = True

    def _require_found(self) -> None:
        if not self.found:
            raise DataError(
                f"none of the first {self._missing:,} files that {self._options.source} lists"
                f" exists (first: {self._first}); nothing was written. Is the storage mounted here,"
                " and does --videos name the right folder?"
            )


def _holds_something(folder: Path) -> bool:
    try:
        # the first entry, not a listing: it is called for every missing file
        return next(folder.iterdir(), None) is not None
    except OSError:
        return False


def existing_shards(out: Path) -> tuple[frozenset[str], dict[str, list[Path]]]:
    """Find what earlier runs have left.

    Each folder is listed once, because it may hold a hundred thousand files.

    Args:
        out: The prepared folder.

    Returns:
        (names of the complete shards, unfinished files by shard).
    """
    tars, fragments = set[str](), set[str]()
    leftovers: dict[str, list[Path]] = {}
    for folder, names in (("shards", tars), ("parts", fragments)):
        for path in (out / folder).iterdir():
            if path.name.startswith(TEMPORARY):
                # <prefix>SHARD.00012 of a re-encoded file, <prefix>SHARD.tar-1a2b3c4d of a tar
                name = path.name.removeprefix(TEMPORARY).partition(".")[0]
                leftovers.setdefault(name, []).append(path)
            else:
                names.add(path.name)
    shards = (name.removesuffix(".tar") for name in tars)
    complete = frozenset(
        name for name in shards if all(path.name in fragments for path in fragment_paths(out, name))
    )
    return complete, leftovers


def record_retry(options: PrepareOptions) -> None:
    """Write down the reasons of --retry, unless an interrupted run with the same ones did."""
    reasons = sorted(options.retry)
    marker = options.out / RETRY
    content = json.dumps(reasons) + "\n"
    if reasons and not (marker.exists() and marker.read_bytes() == content.encode()):
        write_atomic(marker, content)


def needs_retry(options: PrepareOptions, name: str, rows: list[SourceRow]) -> bool:
    """Whether an existing shard must be made again for --retry.

    Args:
        options: Resolved options.
        name: The shard.
        rows: Its rows.

    Returns:
        True if it holds files that are bad for one of the reasons (missing ones only if they exist
        now), and was not already made again.
    """
    if not options.retry:
        return False
    fragment = fragment_paths(options.out, name)[1]
    # Both times are of one file system. An NFS server sets them itself, so the clocks of the nodes
    # that wrote the files do not matter.
    if fragment.stat().st_mtime_ns > (options.out / RETRY).stat().st_mtime_ns:
        return False
    bad = {
        k: reason for k, reason in bad_files(options.out, name).items() if reason in options.retry
    }
    if set(bad.values()) - {"missing"}:
        return True
    return any(
        _exists((row.path, *row.alternatives))
        for row in rows
        if row.reason is None and bad.get(f"{row.split}/{row.id}") == "missing"
    )


def _exists(paths: tuple[Path, ...]) -> bool:
    try:
        find_file(paths)
    except ProbeError:
        return False
    except OSError as error:
        if error.errno not in OF_THE_NAME:
            raise
        return False
    return True
