"""What happens if a checkpoint cannot be written."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from allinone.common.errors import FULL
from allinone.common.exit_codes import ExitCode
from allinone.common.formatting import size
from allinone.engine.checkpoint.layout import CheckpointError

log = logging.getLogger(__name__)

PROBE_BYTES = 1 << 22
"""Size of a file that shows whether the disk is full, where an error does not say so."""


@dataclass(frozen=True)
class WriteFailure:
    """Why something could not be written."""

    text: str
    full: bool
    """For lack of space or quota, or because files may not grow further."""


def attempt(action: Callable[[], object], folder: Path) -> WriteFailure | None:
    """Run a write into a folder; returns what failed.

    A failed write is an OSError to Python, a RuntimeError to torch and an error of its own to
    safetensors.
    """
    try:
        action()
    except (OSError, RuntimeError, SafetensorError) as error:
        text = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        return WriteFailure(text, _is_full(error, folder))
    return None


def _is_full(error: Exception, folder: Path) -> bool:
    """Whether a write failed because the disk or a quota is full."""
    if isinstance(error, OSError):
        return error.errno in FULL
    if found := re.search(r"os error (\d+)", str(error)):  # safetensors
        return int(found[1]) in FULL
    try:  # torch keeps the number to itself
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            for _ in range(PROBE_BYTES >> 12):
                file.write(bytes(1 << 12))
    except OSError as failure:
        return failure.errno in FULL
    return False


def write_twice(write: Callable[[], WriteFailure | None], target: Path, out: Path) -> None:
    """Write, and once more after a failure other than a full disk: a network disk often fails once.

    Args:
        write: Writes the checkpoint; returns the same on every rank. Collective.
        target: The checkpoint.
        out: The run's folder.

    Raises:
        CheckpointError: Both failed, or the disk is full.
    """
    failure = write()
    if failure is not None and not failure.full:
        log.warning("%s is written a second time: %s", target, failure.text)
        failure = write()
    if failure is not None:
        raise _error(target, out, failure)


def _error(target: Path, out: Path, failure: WriteFailure) -> CheckpointError:
    """What ends the run.

    Args:
        target: What could not be written.
        out: The run's folder.
        failure: The reason.
    """
    if not failure.full:
        return CheckpointError(
            f"checkpoint {target.name} could not be written ({failure.text}). Earlier checkpoints"
            f" are complete: the same command continues once {out} can be written again",
            exit_code=ExitCode.FAILURE,
        )
    try:
        free = f": {size(shutil.disk_usage(out).free)} are free in {out}"
    except OSError:
        free = ""
    return CheckpointError(
        f"checkpoint {target.name} could not be written ({failure.text}); the disk or a quota is"
        f" full{free}. Earlier checkpoints are complete: free space, then run the same command"
        " again",
        exit_code=ExitCode.DISK_FULL,
    )
