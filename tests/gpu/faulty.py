"""A stage for the test of the runner: one check is killed, one hangs, one fails, others pass."""

from __future__ import annotations

import os
import signal
import time

from tests.gpu.stage import CheckFn, Found, Settings, Skip


def checks(settings: Settings) -> dict[str, CheckFn]:
    """The checks of the stage, in order."""
    return {
        "first": lambda: Found("fine"),
        "crash": crash,
        "hang": hang,
        "fail": fail,
        "absent": absent,
        "last": lambda: Found("<b>1 & 2</b>", {"number": float("nan")}, measured=True),
    }


def crash() -> Found:
    """Die as after a fault of the driver."""
    os.kill(os.getpid(), signal.SIGKILL)
    return Found("not reached")


def hang() -> Found:
    """Wait for ever."""
    time.sleep(3600)
    return Found("not reached")


def fail() -> Found:
    """Raise."""
    raise RuntimeError("CUDA error: made up")


def absent() -> Found:
    """Lack something."""
    raise Skip("no such device")
