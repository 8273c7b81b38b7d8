"""How many files a source lists. Counting the largest lists takes half an hour; only the progress
display waits for it, not the work."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from allinone.common.atomic_io import write_atomic
from allinone.common.errors import DataError
from allinone.common.processes import forkserver_context, live_and_die_with_parent
from allinone.data.sources import SourceRow

Counts = dict[str, int]
"""Rows per split, in order of first appearance."""


class Listing:
    """A source's rows, and their counts in `path` once somebody has come to their end: this process
    in its work, one of its own that does nothing else, or another part of the same preparation.
    `read` goes to another process: a function of a module, or a partial of one.
    """

    def __init__(self, source: Path, read: Callable[[], Iterator[SourceRow]], path: Path) -> None:
        self._source, self._read, self._path = source, read, path
        self._counter: tuple[Any, Connection] | None = None
        self.counts: Counts | None = None
        self.look()

    def rows(self) -> Iterator[SourceRow]:
        """Every row. DataError at their end where they are not those that were counted before, or
        none."""
        counts: Counts = {}
        for row in self._read():
            counts[row.split] = counts.get(row.split, 0) + 1
            yield row
        self._keep(counts)

    def counted(self) -> Counts:
        """The counts, if need be after reading all rows."""
        if self.counts is None:
            deque(self.rows(), maxlen=0)
        assert self.counts is not None
        return self.counts

    def count_beside(self) -> None:
        """Let another process count what nobody has counted; `look` tells. It finds what is wrong
        with a list long before the work comes to it."""
        if self.counts is None:
            context = forkserver_context()
            pipe, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_count_for, args=(theirs, self._read), daemon=True)
            process.start()
            theirs.close()
            self._counter = process, pipe

    def look(self) -> Counts | None:
        """The counts, None as long as nobody knows them. Raises what the counting process met."""
        if self.counts is None and self._path.exists():
            self.counts = dict(json.loads(self._path.read_text()))
        if self.counts is None and self._counter is not None and self._counter[1].poll():
            try:
                found = self._counter[1].recv()
            except EOFError:  # it was killed, for want of memory perhaps: the work will count
                self.close()
                return None
            if isinstance(found, Exception):
                raise found
            self._keep(found)
        return self.counts

    def _keep(self, counts: Counts) -> None:
        if not counts:
            raise DataError(f"{self._source} lists no clips")
        known = self.look()
        if known is None:
            write_atomic(self._path, json.dumps(counts) + "\n")
            self.counts = counts
        elif known != counts:
            raise DataError(
                f"{self._source} lists {counts} now, and listed {known} when {self._path.parent}"
                " was begun; prepare it into another --out"
            )

    def close(self) -> None:
        """End the counting process."""
        if self._counter is not None:
            process, pipe = self._counter
            process.kill()
            process.join()
            pipe.close()
            self._counter = None


def _count_for(pipe: Connection, read: Callable[[], Iterator[SourceRow]]) -> None:
    live_and_die_with_parent()
    try:
        pipe.send(dict(Counter(row.split for row in read())))
    except (DataError, OSError) as error:
        pipe.send(error)
