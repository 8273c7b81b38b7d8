"""Limits of the system that a program meets: open files, shared memory."""

from __future__ import annotations

import errno
import re
import resource
import shutil
from contextlib import suppress
from pathlib import Path

from allinone.common.errors import ConfigError
from allinone.common.formatting import size

MIN_FILES = 64
"""Open files without which no training can start: torch, the readers and the data need more."""
WANTED_FILES = 4096
"""Open files that readers and DALI may need on a large machine."""
SHARED_MEMORY = Path("/dev/shm")
SMALL_SHARED_BYTES = 1 << 20
"""Free shared memory below which "no space left" means the shared memory."""


def raise_file_limit() -> None:
    """Raise the soft limit of open files where the hard one allows it.

    Raises:
        ConfigError: Too few files may be opened.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < WANTED_FILES:
        wanted = WANTED_FILES if hard == resource.RLIM_INFINITY else min(hard, WANTED_FILES)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    if soft != resource.RLIM_INFINITY and soft < MIN_FILES:
        raise ConfigError(
            f"this process may open only {soft} files; raise the limit: ulimit -n {WANTED_FILES}"
        )


def explain(error: BaseException) -> str:
    """What to change after an error of the system's limits; empty for any other error.

    The libraries report them as OSError, RuntimeError, ImportError, or a killed reader.
    """
    text = str(error)
    number = getattr(error, "errno", None)
    if number in (errno.EMFILE, errno.ENFILE) or "Too many open files" in text:
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return (
            f"too many open files ({_first_line(text)}): this process may open {soft}; raise the"
            f" limit: ulimit -n {WANTED_FILES}"
        )
    if isinstance(error, MemoryError) or re.search("MemoryError|Cannot allocate memory", text):
        return (
            f"no memory is left ({_first_line(text) or type(error).__name__}): raise the limit of"
            " the job or shell (sbatch --mem, ulimit -v), or give fewer --workers"
        )
    shared = re.search(r"</?torch_|/dev/shm|shared memory|ancdata|Bus error", text)
    full = number == errno.ENOSPC and not getattr(error, "filename", None)
    if shared or (full and _free(SHARED_MEMORY) < SMALL_SHARED_BYTES):
        return (
            f"{SHARED_MEMORY}, through which reader processes hand over clips, is full"
            f" ({size(_free(SHARED_MEMORY))} free; {_first_line(text)}): enlarge it (docker run"
            " --shm-size 8g), or give a smaller --workers, or --workers 0"
        )
    return ""


def _free(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def _first_line(text: str) -> str:
    return (text.splitlines() or [""])[0][:200]
