"""Official formats → shards → DALI → batches. Knows nothing of model or training."""

from importlib import import_module
from typing import Any

__all__ = ["AllInOneProcessor", "CoTrainStream", "EvalSet", "TrainStream"]

_HOME = {
    "AllInOneProcessor": "allinone.data.processor",
    "CoTrainStream": "allinone.data.loading.cotrain",
    "EvalSet": "allinone.data.loading.loader",
    "TrainStream": "allinone.data.loading.loader",
}


def __getattr__(name: str) -> Any:
    """Import on first use: only those who load data wait for DALI and PyAV."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
