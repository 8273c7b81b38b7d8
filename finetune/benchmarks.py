"""Registry of benchmarks: every script in this folder that declares `BENCHMARK`."""

from __future__ import annotations

import ast
import difflib
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from allinone.common.errors import InputError

if TYPE_CHECKING:
    from allinone.finetune.benchmark import Benchmark

_FOLDER = Path(__file__).parent
_DECLARATION = "\nBENCHMARK = "


def benchmark_names() -> dict[str, str]:
    """Name → first line of the script's docstring. Reads the files without importing them."""
    found = {}
    for path in sorted(_FOLDER.glob("*.py")):
        source = path.read_text(encoding="utf-8")
        if _DECLARATION in source:
            # parse the docstring alone: the rest of the script follows the first import
            docstring = ast.get_docstring(ast.parse(source.partition("\nfrom __future__")[0]))
            found[path.stem] = (docstring or "").partition("\n")[0]
    return found


def load_benchmark(name: str) -> Benchmark:
    """Import a benchmark's declaration, without torch.

    Raises:
        InputError: No script has this name; the message suggests the closest ones.
    """
    names = benchmark_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, 3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise InputError(f"unknown benchmark {name!r}; {hint}benchmarks: {', '.join(names)}")
    benchmark: Benchmark = import_module(f"allinone.finetune.{name}").BENCHMARK
    return benchmark
