"""--help of every command of tools/ answers without importing anything heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "matplotlib", "av", "nvidia", "deepspeed", "pyarrow", "PIL")
PROGRAM = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    print("code", end.code or 0)
print("imported", *(name for name in %r if name in sys.modules))
"""
COMMANDS = [
    "app",
    "cloze",
    "clusters",
    "convert",
    "convert from-reference",
    "convert from-vit",
    "convert from-bert",
    "convert to-safetensors",
    "convert inspect",
    "convert diff",
    "drill",
    "first_error",
    "index",
    "node_check",
    "predict",
    "predict retrieve",
    "predict match",
    "predict fill",
    "predict answer",
    "rolls",
    "search",
    "unpack",
    "watch",
    "zero_shot",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_printed_without_heavy_imports(command: str, tmp_path: Path) -> None:
    name, *rest = command.split()
    arguments = [str(ROOT / "tools" / f"{name}.py"), *rest, "--help"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM % (HEAVY,), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"tools/{name}.py" in done.stdout
    assert done.stdout.splitlines()[-2:] == ["code 0", "imported"]
