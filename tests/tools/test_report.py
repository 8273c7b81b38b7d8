"""The report compares each result only with numbers of the same setting; two predictions files are
compared item by item."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from allinone.finetune.evaluation.official_counts import official_count, with_official_count
from allinone.finetune.evaluation.results import (
    EvaluationResult,
    MissingItem,
    Score,
    write_predictions,
    write_result,
)
from allinone.tools.report import main


def write(folder: Path, value: float, *, stated: bool = True, **changes: Any) -> Path:
    """A result on the official items, unless `changes` has others; `stated`: by this version."""
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
        "pretraining": "WebVid+HowTo100M",
        "scores": {"accuracy": Score(value, value - 1, value + 1)},
    }
    facts |= changes
    if "items" not in facts:
        count = official_count(facts["benchmark"], facts.get("variant", ""), facts["split"])
        facts["items"] = count.items if count else 100
    result = EvaluationResult(**facts)
    return write_result(folder, with_official_count(result) if stated else result)


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
    shown = next(" ".join(cell.split()) for cell in page.cells if "+0.5" in cell)
    missing = "1 not shown, counted as wrong"
    assert shown == f"42.9 ✓ EVAL paper 42.5 43.4 +0.5 [−0.5, +1.5] {missing}"
    assert f"42.9 ✓ (EVAL paper 42.5) → **43.4** +0.5 [−0.5, +1.5] ({missing}) (run 1)" in text
    assert "46.5 ✓ (EVAL log 46.1) → not run" in text
    assert "→ not run" in text
    assert "illegible" in text
    assert not re.search(r"91\.4|83\.1", text)  # illegible, typed from memory once
    assert any("1 not shown" in cell for cell in page.cells)
    assert any("runs/<b>/step-1" in cell and "abababababababab" in cell for cell in page.cells)
    targets = {link for link in page.links if not link.startswith("#")}
    assert {(tmp_path / "out" / link).resolve() for link in targets} == {path}
    assert (
        "1 result for 1 of the paper's 142 numbers: 1 within our 95 % interval"
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
        views=3,
    )
    write(tmp_path / "action", 92.0, benchmark="tgif_action", variant="clipbert")
    write(tmp_path / "other", 0, benchmark="msrvtt_retrieval", variant="1k-b", scores=scores)
    _, text = report(tmp_path, str(tmp_path))
    assert "2 of the paper's 142 numbers" in capsys.readouterr().out
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


def test_own_questions_fill_no_cell_and_are_listed_with_their_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "own", 75.0, benchmark="msvd_qa", items=44)
    page, text = report(tmp_path, str(tmp_path / "own"))
    summary = "1 result for 0 of the paper's 142 numbers; 1 not on the official items"
    assert summary in capsys.readouterr().out
    assert "→ **" not in text
    assert "46.5 ✓ (EVAL log 46.1) → not run" in text
    row = (
        "| msvd_qa-test | 44 | 13,157 | accuracy 75.0 % [74.0, 76.0] | the official split test has"
    )
    assert row in text
    cells = [" ".join(cell.split()) for cell in page.cells]
    place = cells.index("44")
    assert cells[place + 1] == "13,157"
    assert cells[place + 2] == "accuracy 75.0 % [74.0, 76.0]"
    assert "44 not official" in cells  # in the list of runs
    assert not any("46.5" in cell and "75.0" in cell for cell in cells)


def test_a_complete_result_fills_its_cell(tmp_path: Path) -> None:
    write(tmp_path / "all", 46.9, benchmark="msvd_qa", items=13_157)
    _, text = report(tmp_path, str(tmp_path / "all"))
    assert "46.5 ✓ (EVAL log 46.1) → **46.9** +0.4 [−0.6, +1.4] (run 1)" in text
    assert "Not scored on the official items" not in text


def test_an_old_file_without_the_count_is_unofficial(tmp_path: Path) -> None:
    write(tmp_path / "old", 46.9, benchmark="msvd_qa", items=13_157, stated=False)
    _, text = report(tmp_path, str(tmp_path / "old"))
    assert "→ **" not in text
    assert (
        "| 13,157 | – | accuracy 46.9 % [45.9, 47.9] | a results file of an earlier version" in text
    )


def test_another_split_of_the_benchmark_is_unofficial(tmp_path: Path) -> None:
    write(tmp_path / "val", 46.9, benchmark="msvd_qa", split="val", items=6_415)
    _, text = report(tmp_path, str(tmp_path / "val"))
    assert "no official number of items is known for the split val" in text
    assert "→ **" not in text


def test_our_runs_and_the_legend_come_before_the_paper(tmp_path: Path) -> None:
    write(tmp_path / "eight", 44.0, frames=8)
    write(tmp_path / "own", 75.0, benchmark="msvd_qa", items=44)
    report(tmp_path, str(tmp_path / "eight"), str(tmp_path / "own"))
    for suffix, table, own, paper in (
        ("html", 'id="open_qa"', "ours: base", ">S</span>"),
        ("md", "## Open-ended QA", "| ours: base", "| S | WebVid"),
    ):
        text = (tmp_path / "out" / f"report.{suffix}").read_text()
        wanted = ["confirmed by the gain", "Our runs", "Not scored on the official items", table]
        places = [text.index(part) for part in wanted]
        assert places == sorted(places), suffix
        rest = text[places[-1] :]
        assert rest.index(own) < rest.index(paper), suffix


def test_ours_only_leaves_out_rows_and_tables_without_a_result(tmp_path: Path) -> None:
    write(tmp_path / "one", 43.4)
    write(tmp_path / "eight", 93.0, benchmark="tgif_action", frames=8)
    _, text = report(tmp_path, str(tmp_path / "one"), str(tmp_path / "eight"), "--ours-only")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == [
        "Our runs",
        "TGIF-QA, test: accuracy",
        "Open-ended QA and TVQA: accuracy",
    ]
    assert "→ **43.4** +0.5" in text
    assert re.findall(r"^\| ([^|]*) \| WebVid", text, re.MULTILINE) == [
        "ours: base (nearest row B, 3 frames: frames 8, not 3)",
        "B",
    ]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "as stated by the authors" not in page


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
