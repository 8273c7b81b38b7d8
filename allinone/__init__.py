"""All-in-one: one transformer over raw video frames and words, pre-trained end to end."""

from importlib import import_module
from typing import Any

from allinone.common.activation import explain_missing_packages

__all__ = [
    "AllInOneConfig",
    "AllInOneForPreTraining",
    "AllInOneModel",
    "AllInOneProcessor",
    "__version__",
]

_HOME = {
    "AllInOneConfig": "allinone.model",
    "AllInOneForPreTraining": "allinone.model",
    "AllInOneModel": "allinone.model",
    "AllInOneProcessor": "allinone.data.processor",
    "__version__": "allinone.version",
}

explain_missing_packages()


def __getattr__(name: str) -> Any:
    """Import the public classes on first use: `import allinone` alone must not take seconds."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
