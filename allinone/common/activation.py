"""What to say if a package is missing because no virtual environment is active.

Imported before anything else of the project: standard library only.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = "[train,dali,prepare,plots]"


def activation_hint() -> str:
    """How to activate or create the environment; empty inside of one."""
    if sys.prefix != sys.base_prefix or os.environ.get("CONDA_PREFIX"):
        return ""
    if (ROOT / ".venv" / "bin" / "activate").is_file():
        return f"activate the environment: . {os.path.relpath(ROOT / '.venv/bin/activate')}"
    source = (ROOT / "pyproject.toml").is_file()
    package = f"-e '.{EXTRAS}'" if source else f"'allinone-pretrain{EXTRAS}'"
    return (
        "no environment is active. Create one: python3 -m venv .venv && . .venv/bin/activate &&"
        f" pip install {package}"
    )


def explain_missing_packages() -> None:
    """Let a package that is missing at import end in two lines instead of a traceback."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        package = (getattr(error, "name", None) or "").partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and package not in ("", "allinone"):
            print(f"error: the package {package!r} is missing", file=sys.stderr)
            print(f"hint: {activation_hint()}", file=sys.stderr)
        else:
            before(kind, error, trace)

    if activation_hint():
        sys.excepthook = hook
