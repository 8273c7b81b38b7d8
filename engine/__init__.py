"""One training loop on DeepSpeed: launch, schedule, checkpoints, faults, monitoring. Never imports a task."""

from typing import Any

__all__ = ["Run", "RunResult", "newest_weights"]


def __getattr__(name: str) -> Any:  # torch and DeepSpeed are imported by those who train only
    if name in ("Run", "RunResult"):
        from engine import loop

        return getattr(loop, name)
    if name == "newest_weights":
        from engine.checkpoint import newest_weights

        return newest_weights
    raise AttributeError(f"module 'engine' has no attribute {name!r}")
