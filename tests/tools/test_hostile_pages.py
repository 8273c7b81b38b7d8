"""Text of foreign files never becomes markup: in the HTML and Markdown of reports, and in the pages
of figures, of a GPU check and of a pre-training run."""

from __future__ import annotations

import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import pytest
from markdown import markdown
from PIL import Image

from allinone.common.formatting import BIDIRECTIONAL, CONTROL
from allinone.common.html import render
from allinone.finetune.evaluation.results import (
    EvaluationResult,
    ResultError,
    read_results,
    write_result,
)
from allinone.tools.inspection.figure import Section, Sheet
from allinone.tools.report import main
from allinone.tools.reporting import gpu_report
from tests.tools.test_report import write

HOSTILE = (
    "\"'><script>alert(1)</script><img src=x onerror=alert(1)></td></pre>"
    "[x](javascript:alert(1)) | **b** {{ 7*7 }} <b onclick=alert(1)>"
    " $\\frac{$ \x1b]0;title\x07 \x9b31m \u202egnp.exe\u2066"
)
FIELDS = {part.name for part in dataclasses.fields(EvaluationResult)}
TEXTS = sorted(n for n, kind in get_type_hints(EvaluationResult).items() if kind is str)


class Markup(HTMLParser):
    """Collects what could run, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.dangerous: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "iframe", "object", "b onclick"):
            self.dangerous.append(tag)
        for name, value in attrs:
            link = (value or "").strip().lower()
            if name.startswith("on") or link.startswith("javascript:") or link == "x":
                self.dangerous.append(f"{tag} {name}={value}")

    def handle_data(self, data: str) -> None:
        self.text += data


def assert_harmless(page: str) -> None:
    markup = Markup(page)
    assert not markup.dangerous
    assert not CONTROL.search(page)
    assert not BIDIRECTIONAL.search(page)
    assert "<script>alert(1)</script>" in markup.text  # it is shown as text


def hostile_results(folder: Path) -> Path:
    """A results file whose every text is hostile, and whose free fields are too."""
    path = write(folder, 40.0)
    content = json.loads(path.read_text())
    content |= dict.fromkeys(TEXTS, HOSTILE)
    content["scores"] = {HOSTILE: {"value": 1.0, "unit": HOSTILE}}
    content["missing"] = [{"item": HOSTILE, "media": HOSTILE, "reason": HOSTILE}]
    free = {"roll": HOSTILE, "heads": [HOSTILE], "fine_tuned_on": HOSTILE, HOSTILE: HOSTILE}
    content |= {"details": free, "settings": {"task": {"rank": 1, "matching": 0} | free}}
    path.write_text(json.dumps(content))
    return path


def test_no_field_of_a_results_file_becomes_markup(tmp_path: Path) -> None:
    hostile_results(tmp_path / "plain")
    # one in the paper's tables: a setting of our own, which gets a row
    path = write(tmp_path / "table", 40.0, model_size=HOSTILE, pretraining=HOSTILE)
    content = json.loads(path.read_text())
    content["details"] = {"roll": HOSTILE, "fine_tuned_on": {"benchmark": HOSTILE}}
    path.write_text(json.dumps(content))
    # a file name cannot hold "/"
    path.rename(path.with_name(f"{HOSTILE.replace('/', '')}.json"))
    out = tmp_path / "report"
    assert main([str(tmp_path / "plain"), str(tmp_path / "table"), "--out", str(out)]) == 0
    assert_harmless(out.with_suffix(".html").read_text())
    page = markdown(out.with_suffix(".md").read_text(), extensions=["tables"])
    assert_harmless(page)


@pytest.mark.parametrize("name", sorted(FIELDS - set(TEXTS)))
@pytest.mark.parametrize("value", [HOSTILE, [HOSTILE], True, -1, 2**70, 0.5, {"a": HOSTILE}])
def test_a_field_of_another_type_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    path = write_result(tmp_path, read_results(write(tmp_path, 40.0))[0][1])
    content = json.loads(path.read_text()) | {name: value}
    path.write_text(json.dumps(content))
    allowed = {
        "details": isinstance(value, dict),
        "settings": isinstance(value, dict),
        "zero_shot": value is True,
        "official": value is True,
    }
    if allowed.get(name):
        read_results(path)
        return
    with pytest.raises(ResultError, match=str(path)):
        read_results(path)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", '"1"', "null", "true"])
def test_a_score_that_is_no_finite_number_is_refused(tmp_path: Path, value: str) -> None:
    path = write(tmp_path, 40.0)
    path.write_text(path.read_text().replace("40.0", value, 1))
    with pytest.raises(ResultError):
        read_results(path)


def test_no_text_of_a_gpu_report_becomes_markup(tmp_path: Path) -> None:
    check = gpu_report.Check(HOSTILE, "failed", HOSTILE, 1.0, {HOSTILE: HOSTILE})
    stage = gpu_report.Stage(HOSTILE, HOSTILE, "failed", 1.0, 2.0, [check], HOSTILE, HOSTILE)
    report = gpu_report.GpuReport(
        1, HOSTILE, 1.0, {HOSTILE: HOSTILE}, HOSTILE, {"torch": HOSTILE}, [stage]
    )
    gpu_report.write(report, tmp_path)
    assert_harmless((tmp_path / gpu_report.PAGE).read_text())
    status = tmp_path / "status.md"
    status.write_text(f"{gpu_report.BEGIN}\n{gpu_report.END}\n")
    gpu_report.add_to_status(gpu_report.read(tmp_path / gpu_report.REPORT), status)
    assert_harmless(markdown(status.read_text(), extensions=["tables"]))


def test_no_text_of_a_figure_becomes_markup() -> None:
    section = Section(HOSTILE, Image.new("RGB", (4, 4)), HOSTILE, HOSTILE)
    assert_harmless(Sheet(HOSTILE, HOSTILE, [section], HOSTILE).page())


def test_no_caption_or_word_of_a_pretraining_page_becomes_markup() -> None:
    example = SimpleNamespace(caption=HOSTILE, rank=HOSTILE)
    clip = SimpleNamespace(caption=HOSTILE, rank=HOSTILE, correct=True)
    bar = SimpleNamespace(label=HOSTILE, probability=0.5, correct=True, percent=HOSTILE)
    word = SimpleNamespace(before=HOSTILE, truth=HOSTILE, after=HOSTILE, bars=[bar], rank=HOSTILE)
    page = render(
        "tools/reporting/templates/pretraining.html.j2",
        title=HOSTILE,
        train_clips=HOSTILE,
        head=[(HOSTILE, HOSTILE)],
        accuracies=[HOSTILE],
        header=[HOSTILE],
        rows=[[HOSTILE, HOSTILE]],
        losses="data:image/png;base64,",
        retrieval=[(example, [(clip, "data:image/webp;base64,")])],
        masked=[(word, "data:image/webp;base64,")],
        evaluations=[(HOSTILE, HOSTILE), (HOSTILE, HOSTILE)],
        options=[(HOSTILE, HOSTILE)],
        note=HOSTILE,
    )
    assert_harmless(page)
