"""What a missing package says when no virtual environment is active."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from allinone.common import activation

ROOT = Path(__file__).resolve().parents[2]


def test_inside_an_environment_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", "/somewhere/.venv")
    assert activation.activation_hint() == ""


@pytest.mark.parametrize("exists", [True, False])
def test_hint_names_the_command(
    exists: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    monkeypatch.delenv("CONDA_PREFIX", raising=False)
    monkeypatch.setattr(activation, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    if exists:
        (tmp_path / ".venv" / "bin").mkdir(parents=True)
        (tmp_path / ".venv" / "bin" / "activate").touch()
    hint = activation.activation_hint()
    expected = "environment: . .venv/bin/activate" if exists else "python3 -m venv .venv"
    assert expected in hint


def test_script_without_packages_ends_in_two_lines() -> None:
    # -S: no site-packages, as with the system's Python
    ended = subprocess.run(
        [sys._base_executable, "-S", "pretrain/train.py", "demo"],  # type: ignore[attr-defined]
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode != 0
    assert "Traceback" not in ended.stderr
    first, second = ended.stderr.strip().splitlines()
    assert first.startswith("error: the package '")
    assert second.startswith("hint: ")
    assert "activate" in second
