"""Terminal output and logging: a failure to print never ends a program.

Modules log with `logging.getLogger(__name__)`. Commands call `setup_logging` once: rank 0 logs to
the terminal, every rank can log to a file of its own. INFO goes to stdout as it is, WARNING to
stdout with the prefix `warning: `, ERROR to stderr with the prefix `error: `. Control characters of
foreign names and texts never reach a terminal or a log file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from allinone.common.formatting import printable

LOGGER = logging.getLogger("allinone")
_PREFIXES = {logging.WARNING: "warning: ", logging.ERROR: "error: ", logging.CRITICAL: "error: "}


_raw = False


@contextlib.contextmanager
def terminal_codes() -> Iterator[None]:
    """Let the program's own colours and cursor movements through, in the block."""
    global _raw
    before, _raw = _raw, True
    try:
        yield
    finally:
        _raw = before


class ForgivingStream:
    """A text stream that drops text after its reader is gone, and escapes unknown characters and
    control characters.

    A training run under `| tee log` must keep training, obey signals and write its checkpoint after
    tee has ended.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: Exception | None = None
        """Why text was dropped, other than that its reader has ended (`| head`)."""
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]

    def write(self, text: str) -> int:
        """Write, or drop the text where the stream is closed or broken."""
        try:
            return self._stream.write(text if _raw else _shown(text))
        except BlockingIOError:  # a non-blocking pipe that is full now: drop this text only
            return len(text)
        except (OSError, ValueError) as error:
            self._go_quiet(error)
            return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each line."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush, or go quiet."""
        try:
            self._stream.flush()
        except BlockingIOError:
            return
        except (OSError, ValueError) as error:
            self._go_quiet(error)

    def _go_quiet(self, error: Exception) -> None:
        """Point the file descriptor at /dev/null, so that the flush at exit succeeds too."""
        if not isinstance(error, BrokenPipeError):
            self.lost = self.lost or error
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _shown(text: str) -> str:
    # progress bars return to the start of their line before and after they draw it
    inner = text.strip("\r")
    return text if inner == "" else text.replace(inner, printable(inner), 1)


def forgive_output() -> None:
    """Make sys.stdout and sys.stderr forgiving; a second call changes nothing."""
    _open_standard_files()
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:  # closed by the parent (`>&-`)
            setattr(sys, name, os.fdopen(descriptor, "w", encoding="utf-8", closefd=False))
        elif not isinstance(stream, ForgivingStream):
            setattr(sys, name, ForgivingStream(stream))


_output_counts = True


def output_does_not_count() -> None:
    """Tell `lost_output` that what this program makes are files, such as a training run."""
    global _output_counts
    _output_counts = False


def lost_output() -> Exception | None:
    """Why a part of stdout was not written, such as a full disk behind `> file`."""
    sys.stdout.flush()
    return getattr(sys.stdout, "lost", None) if _output_counts else None


def _open_standard_files() -> None:
    """Open /dev/null in place of closed standard files.

    Otherwise the next file that is opened gets descriptor 1 or 2, and libraries that print from C
    (NCCL, FFmpeg) write into it.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
            os.set_inheritable(descriptor, True)


class _TerminalHandler(logging.Handler):
    """Prints to the current sys.stdout and sys.stderr; with `stderr`, everything to stderr."""

    def __init__(self, stderr: bool) -> None:
        super().__init__()
        self._stderr = stderr

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        # sys.stdout of now, not of construction: forgive_output and pytest replace it
        target = sys.stderr if self._stderr or record.levelno >= logging.ERROR else sys.stdout
        try:
            text = _PREFIXES.get(record.levelno, "") + printable(self.format(record))
            print(text, file=target, flush=True)
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
    handler.setFormatter(_PrintableFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    LOGGER.addHandler(handler)
    return handler


class _PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _ForgivingFileHandler(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """A full disk ends the log file, not the run."""
        LOGGER.removeHandler(self)
        LOGGER.warning("log file %s ends here: %s", self.baseFilename, sys.exc_info()[1])
