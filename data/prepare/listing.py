"""The rows of a source and their counts.

Counting the largest lists takes half an hour. Only the progress display needs the counts, so the
work starts without them.
"""

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


class SourceListing:
    """A source's rows and their counts.

    The counts are stored in a file once someone has reached the end of the list: this process while
    it works, a counting process, or another part of the same preparation.

    Args:
        source: Shown in messages.
        read: Yields all rows. A module-level function or a partial of one, because it is sent to
            another process.
        path: The file of the counts.
    """

    def __init__(self, source: Path, read: Callable[[], Iterator[SourceRow]], path: Path) -> None:
        self._source = source
        self._read = read
        self._path = path
        self._counter: tuple[Any, Connection] | None = None
        self.counts: Counts | None = None
        """None until they are known."""
        self.poll()

    def rows(self) -> Iterator[SourceRow]:
        """Yield every row.

        Raises:
            DataError: At the end, if there were no rows, or other counts than before.
        """
        counts: Counts = {}
        for row in self._read():
            counts[row.split] = counts.get(row.split, 0) + 1
            yield row
        self._keep(counts)

    def count(self) -> Counts:
        """Return the counts; reads all rows if they are not known yet."""
        if self.counts is None:
            deque(self.rows(), maxlen=0)
        assert self.counts is not None
        return self.counts

    def start_counting(self) -> None:
        """Count in another process, unless the counts are known; `poll` collects the result.

        This also finds a damaged row long before the work reaches it.
        """
        if self.counts is None:
            # a process, because parsing a list would hold the GIL that reading the rows needs
            context = forkserver_context()
            pipe, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_count_for, args=(theirs, self._read), daemon=True)
            process.start()
            theirs.close()  # the child holds the only other end: its death reads as EOF
            self._counter = process, pipe

    def poll(self) -> Counts | None:
        """Return the counts if they are known by now; raises errors of the counting process."""
        # complete if it exists: written atomically, perhaps by another part
        if self.counts is None and self._path.exists():
            self.counts = dict(json.loads(self._path.read_text()))
        if self.counts is None and self._counter is not None and self._counter[1].poll():
            try:
                found = self._counter[1].recv()
            except EOFError:  # killed, perhaps for lack of memory: `rows` counts too
                self.close()
                return None
            if isinstance(found, Exception):
                raise found
            self._keep(found)
        return self.counts

    def _keep(self, counts: Counts) -> None:
        if not counts:
            raise DataError(f"{self._source} lists no clips; check the file, or --format")
        known = self.poll()
        if known is None:
            write_atomic(self._path, json.dumps(counts) + "\n")
            self.counts = counts
        elif known != counts:
            raise DataError(
                f"{self._source} lists {counts} now, and listed {known} when the preparation of"
                f" {self._path.parent} began; prepare it into another --out"
            )

    def close(self) -> None:
        """End the counting process."""
        if self._counter is not None:
            process, pipe = self._counter
            process.kill()  # SIGTERM would only set a deadline (live_and_die_with_parent)
            process.join()
            pipe.close()
            self._counter = None


def _count_for(pipe: Connection, read: Callable[[], Iterator[SourceRow]]) -> None:
    live_and_die_with_parent()
    try:
        # in order of first appearance, which becomes the order of the shards in the index
        pipe.send(dict(Counter(row.split for row in read())))
    except (DataError, OSError) as error:
        pipe.send(error)
