"""All-in-one: one transformer over raw video frames and words, pre-trained end to end."""

from importlib import import_module
from typing import Any

from allinone.common.activation import explain_missing_packages

__all__ = [
    "AllInOneConfig",
    "AllInOneForCaptioning",
    "AllInOneForMaskedLM",
    "AllInOneForMultipleChoice",
    "AllInOneForPreTraining",
    "AllInOneForQuestionAnswering",
    "AllInOneForRetrieval",
    "AllInOneForVideoClassification",
    "AllInOneModel",
    "AllInOneProcessor",
    "__version__",
]

_HOME = {
    **dict.fromkeys(__all__, "allinone.model"),
    "AllInOneProcessor": "allinone.data.processor",
    "__version__": "allinone.version",
}

explain_missing_packages()


def __getattr__(name: str) -> Any:
    """Import the public classes on first use: `import allinone` alone must not take seconds."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    if name != "__version__":
        # here, because model and data do not import each other
        config = import_module("allinone.model").AllInOneConfig
        processor = import_module("allinone.data.processor").AllInOneProcessor
        import_module("transformers").AutoProcessor.register(config, processor, exist_ok=True)
    return value
