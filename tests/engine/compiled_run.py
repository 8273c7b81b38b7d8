"""tests/tools/zero_run.py with graphs that are not translated to C++, which takes minutes."""

from __future__ import annotations

from functools import partialmethod
from pathlib import Path
from typing import Any

from allinone.model.all_in_one import AllInOnePreTrainedModel
from tests.tools import zero_run


def run(out: Path, options: dict[str, Any]) -> int:
    """One rank; arguments as in zero_run."""
    compiled = partialmethod(AllInOnePreTrainedModel.compile_blocks, backend="aot_eager")
    AllInOnePreTrainedModel.compile_blocks = compiled  # type: ignore[assignment]
    return zero_run.run(out, options)
