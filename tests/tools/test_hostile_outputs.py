"""Text of foreign files in model cards, pages of predictions and items, search results and the
page of a run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from markdown import markdown

from allinone.common.errors import InputError
from allinone.common.formatting import BIDIRECTIONAL, CONTROL
from allinone.common.html import render
from allinone.common.tables import plain_table
from allinone.engine.monitoring.history import HISTORY, read_history
from allinone.finetune.evaluation.results import PREDICTIONS, read_results
from allinone.model import AllInOneConfig
from allinone.tools import search as search_command
from allinone.tools.inspection.batch_predict import _page
from allinone.tools.inspection.checkpoints import load_checkpoint
from allinone.tools.inspection.model_card import model_card
from allinone.tools.reporting.items_page import ItemView, Picture, write_items_page
from allinone.tools.video_index.build import update_index
from tests.data.media import write_video
from tests.tools.test_hostile_pages import HOSTILE, assert_harmless, hostile_results

LONG = f"{HOSTILE} {'word ' * 40_000}"


def card(run: Path | None, **source: Any) -> str:
    """The HTML of a card, as Markdown's own library makes it."""
    config = AllInOneConfig(
        task={"kind": HOSTILE, "prompt": f"{LONG}\n```\n{HOSTILE}", "labels": [HOSTILE, LONG]}
    )
    config.architectures = [HOSTILE]
    facts: dict[str, Any] = {
        "what": HOSTILE,
        "path": Path("weights"),
        "pretrained_on": {"pretraining": HOSTILE, HOSTILE: HOSTILE},
        "task": {"benchmark": HOSTILE, "variant": HOSTILE},
        "run": {
            "data": [HOSTILE, HOSTILE.replace("/", "")],
            "annotations": HOSTILE,
            "media": [HOSTILE],
            "train": {"steps": HOSTILE, "lr": float("nan"), "seed": {HOSTILE: HOSTILE}},
        },
    }
    text = model_card(HOSTILE, config, SimpleNamespace(**{**facts, **source}), run)  # type: ignore[arg-type]
    return markdown(text, extensions=["tables", "fenced_code"])


def test_no_text_of_a_model_card_becomes_markup(tmp_path: Path) -> None:
    assert_harmless(card(None))
    (tmp_path / HISTORY).write_text(
        json.dumps({"step": HOSTILE, "evaluation": {HOSTILE: 1.0, "x": float("nan")}}) + "\n"
    )
    assert_harmless(card(tmp_path))
    hostile_results(tmp_path)
    page = card(tmp_path)
    assert "Intervals are" in page
    assert_harmless(page)


@pytest.mark.parametrize("line", ['{"evaluation": 7}', '{"evaluation": null}', "[" * 9999, "\xff"])
def test_a_damaged_history_costs_its_own_lines_only(tmp_path: Path, line: str) -> None:
    good = json.dumps({"step": 5, "evaluation": {"vtm": 0.5}})
    (tmp_path / HISTORY).write_text(f"{good}\n{line}\n" + good[:-9], encoding="latin-1")
    assert read_history(tmp_path / HISTORY)[0]["step"] == 5
    assert "The evaluation of step 5" in card(tmp_path)


def test_no_text_of_predictions_becomes_markup() -> None:
    row = {
        "path": HOSTILE,
        "question": LONG,
        "text": "",
        "choices": [HOSTILE],
        "notes": [HOSTILE],
        "error": HOSTILE,
    }
    named = {"name": HOSTILE, "score": float("nan")}
    gaps = [[{"word": HOSTILE, "probability": 0.5}]]
    rows = [{**row, "results": [named]}, {**row, "results": gaps}]
    assert_harmless(_page(rows, HOSTILE, HOSTILE))


@pytest.mark.parametrize("written", [False, True])
def test_no_text_of_a_page_of_items_becomes_markup(tmp_path: Path, written: bool) -> None:
    ((_, result),) = read_results(hostile_results(tmp_path))
    view = ItemView(HOSTILE, [(LONG, True)], [Picture("", HOSTILE), Picture("", HOSTILE)], True)
    page = render(
        "tools/reporting/templates/items.html.j2",
        title=HOSTILE,
        result=result,
        written=written,
        parts=[("Wrong", [view]), ("Right", [])],
        counts={True: 1, False: 0},
    )
    assert_harmless(page)


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"measures": 7},
        {"measures": {"accuracy": "x"}},
        {"measures": {"accuracy": 1.0}, "id": "gone"},
        {"measures": {"t2v/rank": None}, "id": "text:1", "answer": [[]], "prediction": 7},
    ],
)
def test_damaged_predictions_make_no_page(tmp_path: Path, row: dict[str, Any]) -> None:
    file = hostile_results(tmp_path)
    ((_, result),) = read_results(file)
    predictions = file.parents[1] / PREDICTIONS / f"{result.name}.jsonl"
    predictions.parent.mkdir(parents=True, exist_ok=True)
    predictions.write_text(json.dumps({"id": "1"} | row) + "\n")
    with pytest.raises(InputError, match="no page of items"):
        write_items_page(file, result)


def test_a_line_end_in_a_name_makes_no_second_row() -> None:
    table = plain_table([["clip", "score"], ["a\nb\tc\x1b[2J\u202e", "1"]])
    assert len(table.splitlines()) == 3
    assert not CONTROL.search(table)
    assert not BIDIRECTIONAL.search(table)


def test_names_of_found_clips_are_printed_in_one_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{HOSTILE.replace('/', '')[:150]}\nnote: forged.mp4"
    write_video(tmp_path / "videos" / name)
    loaded = load_checkpoint(checkpoint, "cpu")
    index = tmp_path / "index"
    update_index(loaded, str(checkpoint), tmp_path / "videos", index, workers=0, quiet=True)
    (tmp_path / "videos" / name).unlink()
    capsys.readouterr()
    assert search_command.main(["a dog", "--index", str(index)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("\nnote: ") == 1
    assert len(shown.splitlines()) == 5  # titles, a line, the clip, its note, the count
    assert not CONTROL.search(shown)
    assert not BIDIRECTIONAL.search(shown)
