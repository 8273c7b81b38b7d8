"""Every entry script, started as a file: --help, two steps of training and an evaluation on made-up files in its benchmark's official format."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.results import PREDICTIONS, read_predictions, read_results
from tests.finetune.run_scripts import ROOT, SCRIPTS


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the runs of all scripts: one interpreter, which forks a child per script."""
    out = tmp_path_factory.mktemp("scripts")
    command = [sys.executable, "-m", "tests.finetune.run_scripts", str(out), *SCRIPTS]
    subprocess.run(command, cwd=ROOT, timeout=600, check=True, capture_output=True)
    return out


def test_every_benchmark_has_a_script_and_every_script_is_run_here() -> None:
    found = {path.stem for path in (ROOT / "finetune").glob("*.py") if "\nBENCHMARK = " in path.read_text()}
    assert found == set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_trains_two_steps_and_evaluates_every_item_of_the_official_format(name: str, runs: Path) -> None:
    log = (runs / f"{name}.log").read_text()
    assert json.loads((runs / f"{name}.json").read_text()) == {"help": 0, "run": 0}, log[-3000:]
    script = SCRIPTS[name]
    ((path, result),) = read_results(runs / name)
    assert (result.benchmark, result.zero_shot) == (name, not script.train)
    assert path.name == f"{result.name}.json"
    assert result.items == script.items
    assert not result.missing, "all made-up media can be shown"
    assert set(script.scores) <= set(result.scores)
    folders = sorted((runs / name).glob("fold-*")) or [runs / name]
    rows = [
        row for folder in folders for file in (folder / PREDICTIONS).glob("*.jsonl") for row in read_predictions(file).values()
    ]
    assert len(rows) >= result.items
    help_text = (runs / f"{name}.help").read_text()
    for option in ("--checkpoint", "--eval-only", "--frames", "--views", "--image-size", "--annotations"):
        assert option in help_text
    docstring = (ROOT / "finetune" / f"{name}.py").read_text().split('"""')[1]
    for fact in (f"finetune/{name}.py --annotations", "Hardware", "ime", "aper"):
        assert fact in docstring, "the file opens with its command, hardware, expected time and the paper's number"
