"""Official formats → shards → DALI → batches. Knows nothing of model or training."""

from typing import Any

__all__ = ["AllInOneProcessor", "CoTrainStream", "EvalSet", "TrainStream"]


def __getattr__(name: str) -> Any:  # DALI and PyAV are imported by those who load only
    if name == "AllInOneProcessor":
        from data.processor import AllInOneProcessor

        return AllInOneProcessor
    if name in __all__:
        from data import cotrain, loader

        return getattr(cotrain if name == "CoTrainStream" else loader, name)
    raise AttributeError(f"module 'data' has no attribute {name!r}")
