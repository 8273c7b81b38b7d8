"""All-in-one: one transformer over raw video frames and words, pre-trained end to end."""

from importlib import import_module, metadata
from typing import Any

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
}


def __getattr__(name: str) -> Any:
    """Import the public classes on first use: `import allinone` alone must not take seconds."""
    if name == "__version__":
        try:
            return metadata.version("allinone-pretrain")
        except metadata.PackageNotFoundError:  # started from a source tree
            return "0+source"
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
