"""What of a prepared folder stands already, what is to be tried again, and whether the media are
there at all."""

from __future__ import annotations

import json
from pathlib import Path

from allinone.common.atomic_io import TEMPORARY, write_atomic
from allinone.common.errors import DataError
from allinone.data.prepare.merge import bad_files, fragment_paths
from allinone.data.prepare.options import PrepareOptions
from allinone.data.sources import SourceRow

NOTHING_FOUND = 1000
"""Files missing one after the other, and none found, after which the folder of the media must be a
wrong one."""
RETRY = "retry.json"
"""The reasons of a retry that goes on. What is younger than this file has been made anew already,
by a run that was interrupted."""


class MediaRoots:
    """Whether the media are where they are looked for: a wrong folder, or one that is not mounted,
    would make every clip bad for good."""

    def __init__(self, options: PrepareOptions, found: bool) -> None:
        self.found = found or bool(options.retry)
        """Any file; before that, no shard is written."""
        self._options, self._missing, self._first = options, 0, ""
        root = (
            options.videos
            or (options.source if options.source.is_dir() else options.source.parent) / "videos"
        )
        self._root = root if _holds_something(root) else None

    def check(self) -> None:
        """DataError where the folder of the videos, which held something at the start, does not any
        more."""
        if self._root is not None and not _holds_something(self._root):
            raise DataError(
                f"{self._root} has become empty: is the storage still mounted here? When it is, the"
                " same command continues"
            )

    def lost(self, detail: object) -> None:
        """A file is missing. DataError after NOTHING_FOUND of them."""
        self._missing += 1
        self._first = self._first or str(detail)
        if self._missing >= NOTHING_FOUND:
            self._refuse()

    def end(self) -> None:
        """After the last file. DataError where all of the source's are missing; a small part may
        have drawn the missing ones."""
        if self._missing and self._options.part is None:
            self._refuse()
        self.found = True

    def _refuse(self) -> None:
        if not self.found:
            raise DataError(
                f"none of the first {self._missing:,} files that {self._options.source} lists is"
                f" there (first: {self._first}), and nothing was written of them. Is the storage"
                " mounted here, and does --videos name the right folder?"
            )


def _holds_something(folder: Path) -> bool:
    try:
        return next(folder.iterdir(), None) is not None
    except OSError:
        return False


def standing_shards(out: Path) -> tuple[frozenset[str], dict[str, list[Path]]]:
    """Shards whose tar and fragments stand, and unfinished files by shard. Each folder is listed
    once: it may hold a hundred thousand files."""
    tars, fragments, leftovers = set[str](), set[str](), dict[str, list[Path]]()
    for folder, names in (("shards", tars), ("parts", fragments)):
        for path in (out / folder).iterdir():
            if path.name.startswith(TEMPORARY):
                leftovers.setdefault(
                    path.name.removeprefix(TEMPORARY).partition(".")[0], []
                ).append(path)
            else:
                names.add(path.name)
    whole = (name.removesuffix(".tar") for name in tars)
    return (
        frozenset(
            name
            for name in whole
            if all(path.name in fragments for path in fragment_paths(out, name))
        ),
        leftovers,
    )


def begin_retry(options: PrepareOptions) -> None:
    """Write down what --retry asks for, unless an interrupted run did."""
    reasons, marker = sorted(options.retry), options.out / RETRY
    if reasons and not (marker.exists() and json.loads(marker.read_text()) == reasons):
        write_atomic(marker, json.dumps(reasons) + "\n")


def to_retry(options: PrepareOptions, name: str, rows: list[SourceRow]) -> bool:
    """Whether a shard that stands holds what --retry names, and was not made anew for it
    already."""
    if not options.retry:
        return False
    fragment = fragment_paths(options.out, name)[1]
    if fragment.stat().st_mtime_ns > (options.out / RETRY).stat().st_mtime_ns:
        return False
    lost = {
        key: reason
        for key, reason in bad_files(options.out, name).items()
        if reason in options.retry
    }
    here = (
        row for row in rows if row.reason is None and lost.get(f"{row.split}/{row.id}") == "missing"
    )
    return bool(set(lost.values()) - {"missing"}) or any(
        path.is_file() for row in here for path in (row.path, *row.others)
    )
