"""Files that only report on a run: a storage that refuses them does not stop it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from allinone.common.redaction import redact

log = logging.getLogger(__name__)


def is_milestone(number: int) -> bool:
    """Whether a failure is logged: 1, 10, 100, ... A disk that fails for hours does not fill the
    log."""
    return str(number).rstrip("0") == "1"


class WriteGuard:
    """Turns an OSError of a block into a warning, see `is_milestone`.

    Args:
        what: What is written.
        catches: Errors to catch instead, for libraries that raise their own.
    """

    def __init__(self, what: Path | str, catches: type[Exception] = OSError) -> None:
        self._what = what
        self._catches = catches
        self.failures = 0
        """Blocks that failed."""

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        try:
            yield
        except self._catches as error:
            self.failures += 1
            if is_milestone(self.failures):
                times = "" if self.failures == 1 else f", {self.failures} times by now"
                # the error of a server may quote its address, with the password in it
                reason = redact(str(error)) or type(error).__name__
                message = "%s is not written (%s)%s; the run continues"
                log.warning(message, self._what, reason, times)
