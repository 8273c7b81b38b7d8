"""The report compares each result only with numbers of the same setting; two predictions files are
compared item by item."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from allinone.finetune.evaluation.results import (
    EvaluationResult,
    MissingItem,
    Score,
    write_predictions,
    write_result,
)
from allinone.tools.report import main


def write(folder: Path, value: float, **changes: Any) -> Path:
    facts: dict[str, Any] = {
        "benchmark": "msrvtt_qa",
        "split": "test",
        "protocol": "open_ended_qa",
        "zero_shot": False,
        "frames": 3,
        "views": 1,
        "image_size": 224,
        "max_text_len": 40,
        "model_size": "base",
        "parameters": 110_000_000,
        "checkpoint": "runs/<b>/step-1",
        "checkpoint_sha256": "ab" * 32,
        "items": 72_821,
        "pretraining": "WebVid+HowTo100M",
        "scores": {"accuracy": Score(value, value - 1, value + 1)},
    }
    return write_result(folder, EvaluationResult(**(facts | changes)))


class Cells(HTMLParser):
    """Texts of all table cells, and every attribute that could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "img", "iframe")
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += f"{data} "


def report(tmp_path: Path, *arguments: str) -> tuple[Cells, str]:
    assert main([*arguments, "--out", str(tmp_path / "out" / "report")]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    cells = Cells()
    cells.feed(page)
    assert not re.search(r"https?://|url\(|@import", page)
    return cells, (tmp_path / "out" / "report.md").read_text()


def test_cells_show_both_numbers_and_their_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(
        tmp_path / "runs" / "one",
        43.4,
        missing=(MissingItem("q1", "video1", "no video track"),),
        date="2026-01-02T00:00:00+00:00",
    )
    page, text = report(tmp_path, str(tmp_path / "runs"))
    shown = next(" ".join(cell.split()) for cell in page.cells if "43.4" in cell)
    assert shown == "42.9 ✓ EVAL paper 42.5 EVAL log 42.9 43.4 +0.5 [−0.5, +1.5]"
    assert "42.9 ✓ (EVAL paper 42.5, EVAL log 42.9) → **43.4** +0.5 [−0.5, +1.5] (run 1)" in text
    assert "46.5 ✓ (EVAL log 46.1) → not run" in text
    assert "91.4" not in text  # illegible on the slides
    assert any("1 not shown" in cell for cell in page.cells)
    assert any("runs/<b>/step-1" in cell and "abababababababab" in cell for cell in page.cells)
    targets = {link for link in page.links if not link.startswith("#")}
    assert {(tmp_path / "out" / link).resolve() for link in targets} == {path}
    assert (
        "1 result for 1 of the paper's 143 numbers: 1 within our 95 % interval"
        in capsys.readouterr().out
    )


def test_clipbert_annotations_count_as_the_same_test(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {"t2v/R@1": Score(30.0, 29.0, 31.0)}
    write(
        tmp_path / "ret",
        0,
        benchmark="msrvtt_retrieval",
        variant="7k-clipbert",
        scores=scores,
        pretraining="HowTo100M",
    )
    write(tmp_path / "action", 92.0, benchmark="tgif_action", variant="clipbert")
    write(tmp_path / "other", 0, benchmark="msrvtt_retrieval", variant="1k-b", scores=scores)
    _, text = report(tmp_path, str(tmp_path))
    assert "2 of the paper's 143 numbers" in capsys.readouterr().out
    assert "| msrvtt_retrieval-1k-b-test |" in text


def test_another_setting_gets_a_row_with_the_reason(tmp_path: Path) -> None:
    write(tmp_path / "frames", 44.0, frames=8)
    write(tmp_path / "unknown", 50.0, pretraining="")
    write(tmp_path / "other", 70.0, benchmark="demo_qa")
    _, text = report(tmp_path, *(str(tmp_path / name) for name in ("frames", "unknown", "other")))
    assert (
        "| ours: base (nearest row B, 3 frames: frames 8, not 3) | WebVid+HowTo100M | 8, 224 px |"
        " **44.0** [43.0, 45.0] (run " in text
    )
    assert "pre-training not stated (--pretraining), not WebVid + HowTo100M" in text
    assert "→ **" not in text
    assert "| demo_qa-test | accuracy | 70.0 | [69.0, 71.0] |" in text


def test_newest_of_several_runs_is_shown_and_all_are_listed(tmp_path: Path) -> None:
    for day, value in ((1, 41.0), (3, 43.0), (2, 42.0)):
        write(tmp_path / f"run{day}", value, date=f"2026-01-0{day}T00:00:00+00:00")
    _, text = report(tmp_path, str(tmp_path / "run*"), str(tmp_path / "run1"))
    assert "→ **43.0** +0.1 [−0.9, +1.1] (run 1, 2: 42.0, 3: 41.0)" in text


HOSTILE = "<script>alert('x')</script> \"quoted\" {{ 7 * 7 }} {% raw %}"


def test_hostile_names_in_results_are_shown_as_text(tmp_path: Path) -> None:
    missing = (MissingItem(HOSTILE, HOSTILE, HOSTILE),)
    write(tmp_path, 44.0, checkpoint=HOSTILE, pretraining=HOSTILE, missing=missing)
    write(tmp_path / "other", 70.0, benchmark="demo_qa", protocol=HOSTILE)
    cells, _ = report(tmp_path, str(tmp_path))  # the parser refuses a script element
    for column in ("pretraining", "checkpoint", "protocol"):
        assert any(HOSTILE in cell for cell in cells.cells), column
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in page
    assert 'title="&lt;script&gt;' in page


def test_options_after_compare_and_unknown_options_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), "--compare", "a.jsonl", "b.jsonl"]) == 2
    assert "--compare takes two predictions files and no RUNS" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_info:
        main(["--skip-damage"])
    assert exit_info.value.code == 2
    assert "did you mean --skip-damaged" in capsys.readouterr().err


def test_ranks_are_better_when_they_are_lower(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {"t2v/MdR": Score(4.0, 3.5, 5.0, "rank"), "t2v/R@1": Score(30.0, 29.0, 31.0)}
    write(tmp_path, 0, benchmark="activitynet_retrieval", split="val_1", scores=scores)
    page, _ = report(tmp_path, str(tmp_path))
    assert "2 better than the paper" in capsys.readouterr().out
    assert any("4.0 −2.0 [−2.5, −1.0]" in " ".join(cell.split()) for cell in page.cells)


def test_without_runs_the_papers_tables_are_shown(tmp_path: Path) -> None:
    _, text = report(tmp_path)
    assert text.count("not run") > 140


def test_all_unreadable_results_are_named_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "good", 43.0)
    for name in ("cut", "list"):
        (tmp_path / name / "results").mkdir(parents=True)
    (tmp_path / "cut" / "results" / "x.json").write_text('{"format": 1, "bench')
    (tmp_path / "list" / "results" / "y.json").write_text("[]")
    (tmp_path / "empty").mkdir()
    arguments = [str(tmp_path / name) for name in ("good", "cut", "list", "empty", "nowhere")]
    out = ["--out", str(tmp_path / "report")]
    assert main([*arguments, *out]) == 2
    message = capsys.readouterr().err
    assert "cut/results/x.json is not an evaluation result or is damaged" in message
    assert "list/results/y.json" in message
    assert "empty holds no results" in message
    assert "nowhere is neither a file nor a folder" in message
    assert not (tmp_path / "report.html").exists()
    assert main([*arguments[:3], *out, "--skip-damaged"]) == 0
    assert "warning: left out" in capsys.readouterr().err
    assert main([str(tmp_path / "none*"), *out]) == 2


def rows(hits: list[float], prediction: str = "dog") -> list[dict[str, Any]]:
    return [
        {
            "id": f"q{number}",
            "media": f"v{number // 2}",
            "prediction": prediction,
            "measures": {"accuracy": hit, "t2v/rank": 2 - hit},
        }
        for number, hit in enumerate(hits)
    ]


def test_two_predictions_files_are_compared_item_by_item(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, three = (tmp_path / f"{name}.jsonl" for name in ("one", "two", "three"))
    write_predictions(one, rows([1, 1, 0, 0]))
    write_predictions(two, reversed(rows([1, 1, 0, 0])))
    assert main(["--compare", str(one), str(two)]) == 0
    assert "identical in every item, byte for byte" in capsys.readouterr().out
    write_predictions(three, [*rows([1, 1, 1, 0])[:3], {"id": "q9", "prediction": "cat"}])
    assert main(["--compare", str(one), str(three)]) == 1
    shown = capsys.readouterr().out
    assert "only in A: 1 (q3)" in shown
    assert "only in B: 1 (q9)" in shown
    assert re.search(
        r"accuracy %\s+A 66.67  B 100.00  B - A \+33.33 \[\+0.00, \+100.00\]  \(3 items\)", shown
    )
    assert re.search(r"t2v/R@1 %\s+A 66.67  B 100.00", shown)
    assert re.search(r"t2v/MnR\s+A 1.33  B 1.00  B - A -0.33", shown)
    assert "same prediction: 3 of 3 (100.00 %)" in shown
    (tmp_path / "cut.jsonl").write_text('{"id"')
    assert main(["--compare", str(one), str(tmp_path / "cut.jsonl")]) == 2
    assert "cut.jsonl:1 is not JSON" in capsys.readouterr().err
