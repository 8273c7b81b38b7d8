"""One training loop on DeepSpeed: launch, schedule, checkpoints, faults, monitoring. Never imports
a task."""

from importlib import import_module
from typing import Any

__all__ = ["RunResult", "Trainer", "newest_weights"]

_HOME = {
    "Trainer": "allinone.engine.trainer",
    "RunResult": "allinone.engine.trainer",
    "newest_weights": "allinone.engine.checkpoint.weights",
}


def __getattr__(name: str) -> Any:
    """Import on first use: only those who train wait for torch and DeepSpeed."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
