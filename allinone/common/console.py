"""Terminal output and logging: printing never decides whether a program goes on.

Modules log with `logging.getLogger(__name__)`. Commands call `setup_logging` once: rank 0 logs to
the terminal, every rank can log to a file of its own. INFO goes to stdout as it is, WARNING to
stdout with the prefix `warning: `, ERROR to stderr with the prefix `error: `.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import Any, TextIO

LOGGER = logging.getLogger("allinone")
_PREFIXES = {logging.WARNING: "warning: ", logging.ERROR: "error: ", logging.CRITICAL: "error: "}


class ForgivingStream:
    """A text stream that goes quiet when nobody reads it any more, and never fails on a character.

    A training run under `| tee log` or `| head` must go on, obey signals and write its checkpoint
    after the reader has died.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]

    def write(self, text: str) -> int:
        """Write, or drop the text where the stream is closed or broken."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            self._go_quiet()
            return len(text)

    def flush(self) -> None:
        """Flush, or go quiet."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._go_quiet()

    def _go_quiet(self) -> None:
        """Point the file descriptor at /dev/null, so that the flush at exit succeeds too."""
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def forgive_output() -> None:
    """Make sys.stdout and sys.stderr forgiving; a second call changes nothing."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the parent (`>&-`)
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
        elif not isinstance(stream, ForgivingStream):
            setattr(sys, name, ForgivingStream(stream))


class _TerminalHandler(logging.Handler):
    """Prints to the sys.stdout and sys.stderr of the moment; everything to stderr with `stderr`."""

    def __init__(self, stderr: bool) -> None:
        super().__init__()
        self._stderr = stderr

    def emit(self, record: logging.LogRecord) -> None:
        target = sys.stderr if self._stderr or record.levelno >= logging.ERROR else sys.stdout
        try:
            print(_PREFIXES.get(record.levelno, "") + self.format(record), file=target, flush=True)
        except (OSError, ValueError):  # broken pipe, closed stream, locale: see ForgivingStream
            return


def setup_logging(
    *, terminal: bool = True, quiet: bool = False, verbose: bool = False, stderr: bool = False
) -> None:
    """Configure the project's logger; a second call replaces the terminal's handler.

    Args:
        terminal: Log to the terminal; False on ranks other than 0.
        quiet: Warnings and errors only.
        verbose: Debug messages too.
        stderr: Log everything to stderr, because stdout carries JSON.
    """
    for handler in [h for h in LOGGER.handlers if isinstance(h, _TerminalHandler)]:
        LOGGER.removeHandler(handler)
    LOGGER.setLevel(logging.DEBUG)
    LOGGER.propagate = False
    handler = _TerminalHandler(stderr)
    level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
    handler.setLevel(level if terminal else logging.CRITICAL + 1)
    LOGGER.addHandler(handler)


def log_to_file(path: Path) -> logging.Handler:
    """Also log to a file, with time and level; returns the handler for `LOGGER.removeHandler`.

    Logging never stops a run: a file that cannot be opened or written is reported once.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler: logging.Handler = _ForgivingFileHandler(path, encoding="utf-8")
    except OSError as error:
        LOGGER.warning("no log file %s: %s", path, error)
        return logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    LOGGER.addHandler(handler)
    return handler


class _ForgivingFileHandler(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """A full disk ends the log file, not the run."""
        LOGGER.removeHandler(self)
        LOGGER.warning("log file %s ends here: %s", self.baseFilename, sys.exc_info()[1])
