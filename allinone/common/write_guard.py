"""Files that only report on a run: a storage that refuses them does not stop it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)


def is_milestone(number: int) -> bool:
    """Whether a failure is logged: 1, 10, 100, ... A disk that fails for hours does not fill the
    log."""
    return str(number).rstrip("0") == "1"


class WriteGuard:
    """Turns an OSError of a block into a warning, see `is_milestone`.

    Args:
        what: What is written.
    """

    def __init__(self, what: Path | str) -> None:
        self._what = what
        self.failures = 0
        """Blocks that failed."""

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failures += 1
            if is_milestone(self.failures):
                times = "" if self.failures == 1 else f", {self.failures} times by now"
                log.warning("%s is not written (%s)%s; the run continues", self._what, error, times)
