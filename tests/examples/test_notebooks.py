"""The notebooks: their code runs, and what they store is small and names no machine."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from allinone.common.paths import ROOT
from allinone.model import AllInOneConfig, AllInOneForPreTraining

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
CLIPS = ("data", "demo", "videos", "000001_000200")
SHOWN = (1, 2, 57, 64, 90, 121)
MOST_BYTES = 500_000


def code_cells(notebook: Path) -> list[dict[str, Any]]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def printed(cell: dict[str, Any]) -> str:
    """What a cell has printed."""
    streams = [output for output in cell["outputs"] if output["output_type"] == "stream"]
    assert {output["name"] for output in streams} <= {"stdout"}, "no warnings are stored"
    return "".join(text for output in streams for text in output["text"])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the notebooks, with an untrained model and a few clips in their places."""
    torch.manual_seed(0)
    run = tmp_path / "runs" / "demo" / "train"
    AllInOneForPreTraining(AllInOneConfig.from_size("nano")).save_pretrained(run)
    clips = tmp_path.joinpath(*CLIPS)
    clips.mkdir(parents=True)
    for number in SHOWN:
        shutil.copy(ROOT.joinpath(*CLIPS, f"{number}.mp4"), clips)  # links leave the folder
    for table in (ROOT / "data" / "demo").glob("*.csv"):
        (tmp_path / "data" / "demo" / table.name).symlink_to(table)
    (tmp_path / "examples").mkdir()
    monkeypatch.chdir(tmp_path / "examples")
    return tmp_path


def test_there_are_notebooks() -> None:
    assert [path.name for path in NOTEBOOKS] == ["masked_words.ipynb", "search_your_clips.ipynb"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_code_of_a_notebook_runs(notebook: Path, place: Path) -> None:
    """And prints as many lines as are stored: a cell that prints other things is run again."""
    scope: dict[str, Any] = {"__name__": "notebook"}
    for number, cell in enumerate(code_cells(notebook)):
        source = "".join(cell["source"])
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(source, f"{notebook.name}, code cell {number}", "exec"), scope)
        lines = output.getvalue().splitlines()
        assert len(lines) == len(printed(cell).splitlines()), lines


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_executed_small_and_of_no_machine(notebook: Path) -> None:
    assert notebook.stat().st_size < MOST_BYTES
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    pictures = []
    for cell in cells:
        assert not re.search(r"(^|[\s'\"])/\w+/", printed(cell)), "an absolute path"
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            if "image/png" in (data := output.get("data", {})):
                pictures.append(base64.b64decode("".join(data["image/png"])))
    assert pictures
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
