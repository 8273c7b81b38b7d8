"""Official formats → shards → batches. Imports neither model nor training."""

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
    """Import on first use: only programs that load data wait for PyAV."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
