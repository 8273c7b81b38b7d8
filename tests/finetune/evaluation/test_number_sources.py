"""Every number of the paper is where its source says: those of slides in their recognised text
(tests/finetune/data/seed_tables.txt), all others marked as known from notes only. Recipes, scripts,
README and docs state the same numbers."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

from allinone.data.config import DatasetSpec
from allinone.finetune.benchmarks import benchmark_names
from allinone.finetune.evaluation.paper_numbers import (
    NUMBERS,
    PaperCell,
    PaperRow,
    Table,
    budget,
    paper_cells,
    paper_tables,
    same_pretraining,
    sources,
)
from allinone.pretrain.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[3]
SEED = ROOT / "tests" / "finetune" / "data" / "seed_tables.txt"
ROWS = [(table, row) for table in paper_tables() for row in table.rows]
CELLS = [cell for table in paper_tables() for cell in table.cells.values() if cell.certainty]
HEADINGS = {
    "slide 12": "PT & FT Setting",
    "slide 14": "Video-Question Answering",
    "slide 15": "Video-text Retrieval",
    "slide 16": "Multiple-Choice & Visual Commonsense Reasoning",
    "slide 17": "Action Recognition",
}
"""Page → its title in the text, where the page begins."""


@lru_cache
def page(source: str) -> list[str]:
    """Lines of a slide with single spaces."""
    lines = [" ".join(line.split()) for line in SEED.read_text(encoding="utf-8").splitlines()]
    starts = sorted(lines.index(title) for title in HEADINGS.values())
    start = lines.index(HEADINGS[source])
    end = min((other for other in starts if other > start), default=len(lines))
    return lines[start:end]


def on_slide(source: str) -> bool:
    return sources()[source]["evidence"] == "text"


def cells_of(table: Table, row: PaperRow) -> list[PaperCell]:
    i = list(table.rows).index(row)
    return [table.cells[i, j] for j in range(len(table.columns))]


def pattern(cell: PaperCell) -> str:
    """What the slide shows for a number: the cell's own reading, or the number, whose decimal point
    may be lost."""
    if cell.read:
        return re.escape(cell.read)
    whole, decimal = f"{cell.value:.1f}".split(".")
    return rf"(?<![\d.]){whole}\.?{decimal}(?![\d.])"


def digits(number: float) -> str:
    return f"{abs(number):.1f}".replace(".", "")


def test_pages_follow_each_other_and_two_are_printed() -> None:
    lines = [" ".join(line.split()) for line in SEED.read_text(encoding="utf-8").splitlines()]
    places = [lines.index(title) for title in HEADINGS.values()]
    assert places == sorted(places)
    assert any(line.endswith(" 12") for line in page("slide 12"))
    assert "14" in page("slide 14")


@pytest.mark.parametrize(("table", "row"), ROWS, ids=[f"{t.id}-{r.model}" for t, r in ROWS])
def test_row_stands_on_its_slide_in_the_order_of_columns(table: Table, row: PaperRow) -> None:
    if not on_slide(row.source):
        assert not row.line
        return
    (line,) = [line for line in page(row.source) if row.line in line]
    position = 0
    for cell in cells_of(table, row):
        if cell.value is None or cell.source != row.source:
            continue
        found = re.compile(pattern(cell)).search(row.line, position)
        assert found, f"{cell.value} of {cell.column.head} is not in {line!r} after {position}"
        position = found.end()


def test_every_number_is_on_its_slide_or_marked_as_from_notes() -> None:
    known = sources()
    assert {source["evidence"] for source in known.values()} == {"text", "notes"}
    assert {name for name, source in known.items() if source["evidence"] == "text"} == set(HEADINGS)
    for cell in CELLS:
        assert cell.source in known, cell
        assert on_slide(cell.source) == cell.source.startswith("slide")
        # what other sources say is not in the text
        assert all(not on_slide(source) for source in cell.also), cell
        if on_slide(cell.source):  # then the test above looks for it
            assert cell.source == cell.row.source, cell
            assert cell.row.line, cell
    for line in budget():
        assert line["source"] in known
        if on_slide(line["source"]):
            assert line["line"] in " ".join(page(line["source"])), line


def test_budget_is_what_the_slide_says() -> None:
    assert {line["value"]: line.get("line", "") for line in budget() if "line" in line} == {
        "400,000": "Pretrain 400K steps on 128 NVIDIA A100 GPUs with a batch size of 2,048",
        "2,048": "Pretrain 400K steps on 128 NVIDIA A100 GPUs with a batch size of 2,048",
        "128 A100": "Pretrain 400K steps on 128 NVIDIA A100 GPUs with a batch size of 2,048",
        "2 days": "132.5M video-text pairs, 2 days on 128",
        "1 week": "312.5M video-text pairs, 1 week on 128",
    }


def test_a_sure_reading_has_the_digits_of_its_number() -> None:
    for cell in CELLS:
        if not cell.read:
            continue
        assert cell.value is not None
        shown = re.sub(r"\D", "", cell.read)
        if cell.gain:
            assert shown.startswith(digits(cell.value) + digits(cell.gain[1])), cell
        elif cell.certainty == "sure":
            assert shown == digits(cell.value), cell
        else:
            assert shown != digits(cell.value), cell


def test_printed_gains_confirm_sure_numbers_only() -> None:
    """The baseline is on the slide, and the number is baseline plus gain exactly if it is sure."""
    found = [cell for cell in CELLS if cell.gain]
    assert len(found) == 17  # TGIF-QA 6, MSR-VTT-QA and MSVD-QA 3 each, TVQA 1, choice 2, VCR 2
    for cell in found:
        assert cell.gain is not None
        assert cell.value is not None
        baseline, gain = cell.gain
        printed = re.compile(rf"(?<![\d.])({baseline}|{digits(baseline)})(?![\d.])")
        assert any(printed.search(line) for line in page(cell.source)), cell
        assert (abs(baseline + gain - cell.value) < 0.01) == (cell.certainty == "sure"), cell


def test_illegible_cells_hold_no_number_and_doubts_are_explained() -> None:
    for cell in CELLS:
        assert (cell.value is None) == (cell.certainty == "illegible"), cell
        assert cell.certainty != "unsure" or cell.note, cell
    unreadable = {
        (cell.table, cell.row.model, cell.column.head)
        for cell in CELLS
        if cell.certainty == "illegible"
    }
    assert unreadable == {
        ("tgif_qa", "B*, data as printed", "Action"),
        *(
            ("multiple_choice", model, data)
            for model in ("S", "B", "B, 384 px")
            for data in ("MSR-VTT", "LSMDC")
        ),
    }


def test_frames_and_views_are_those_of_the_line() -> None:
    for table, row in ROWS:
        if not on_slide(row.source) or table.id == "vcr":  # VCR prints no frames
            continue
        if table.id == "msrvtt_retrieval":  # 3 views by the original's code and logs, not the slide
            assert row.views == 3
            assert re.search(rf"58\.7G {row.frames} ", row.line)
            continue
        views = re.findall(r"\b(\d) ?x ?(\d)\b", row.line)
        assert bool(views) == (row.views > 1), row
        assert set(views) <= {(str(row.views), str(row.frames))}
        assert re.search(rf"(^|\D){row.frames}\b", row.line), row


# Recipes


def _data(recipe: str) -> str:
    config = RECIPES[recipe][1]
    specs = (*config.data, *config.cotrain.images)
    return "+".join(DatasetSpec.parse(text).path.name for text in specs)


def test_recipes_fill_the_rows_that_name_them() -> None:
    for _, row in ROWS:
        assert bool(row.recipe) != bool(row.no_recipe), row
        for name in row.recipe:
            assert same_pretraining(row, _data(name)), (name, row)
            assert RECIPES[name][1].model.size == row.size, (name, row)
            assert RECIPES[name][1].model.roll == (row.roll or "roll")
        for name, (_, config) in RECIPES.items():
            fits = same_pretraining(row, _data(name)) and config.model.size == row.size
            # the paper uses all patches, and no contrast in pre-training
            fits &= config.objective.patch_keep == 1 and config.objective.vtc == 0
            assert fits <= (name in row.recipe or name in row.no_recipe), (name, row)


CHOICE = ("tgif_action", "tgif_transition", "tgif_frameqa")
LABELS: dict[str, list[tuple[str, str, str]]] = {
    "MSR-VTT 9K R@1/5/10": [("msrvtt_retrieval", "9k", f"t2v/R@{k}") for k in (1, 5, 10)],
    "MSR-VTT 7K R@1/5/10": [("msrvtt_retrieval", "7k", f"t2v/R@{k}") for k in (1, 5, 10)],
    "MSR-VTT 9K R@5/10": [("msrvtt_retrieval", "9k", f"t2v/R@{k}") for k in (5, 10)],
    "TGIF action / transition / FrameQA": [(name, "", "accuracy") for name in CHOICE],
    "TGIF action / FrameQA": [(name, "", "accuracy") for name in CHOICE[::2]],
    "MSR-VTT-QA / MSVD-QA / TVQA val": [
        ("msrvtt_qa", "", "accuracy"),
        ("msvd_qa", "", "accuracy"),
        ("tvqa", "timestamps", "accuracy"),
    ],
    "MSR-VTT-QA": [("msrvtt_qa", "", "accuracy")],
    "MSR-VTT / LSMDC choice": [
        ("msrvtt_choice", "", "accuracy"),
        ("lsmdc_choice", "", "accuracy"),
    ],
    "LSMDC choice, zero-shot": [("lsmdc_choice", "", "accuracy")],
    "VCR Q->A val with drawn masks": [("vcr", "", "q2a")],
    "probe, heads shared": [
        ("k400_linear", "", "top1"),
        ("hmdb51_linear", "mean", "top1"),
        ("ucf101_linear", "mean", "top1"),
    ],
}
LABELS["probe, heads apart (--image-heads separate)"] = LABELS["probe, heads shared"]
"""Label of a line in a recipe's docstring → (benchmark, variant, metric) of its numbers."""
_EXPECTED = re.compile(
    r"^ {4}(?P<size>tiny|small|base)? *(?P<label>\S.*?) {2,}(?P<numbers>\d+\.\d.*)$"
)
_NUMBER = re.compile(r"\d+\.\d(?!\d)")


def expectations() -> Iterator[tuple[str, str, str, str]]:
    """(module, size, label, numbers) of every line of an Expected block."""
    for path in sorted((ROOT / "pretrain" / "recipes").glob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")), clean=False) or ""
        if "Expected" not in text or path.stem == "demo":
            continue
        size = "base"
        for line in text[text.index("Expected") :].splitlines():
            if found := _EXPECTED.match(line):
                size = found["size"] or size
                yield path.stem, size, found["label"], found["numbers"]
            elif _NUMBER.search(line):
                raise AssertionError(f"{path.name}: no label before the numbers of {line!r}")


EXPECTED = list(expectations())


@pytest.mark.parametrize(("module", "size", "label", "numbers"), EXPECTED)
def test_expected_numbers_of_recipes_are_those_of_their_row(
    module: str, size: str, label: str, numbers: str
) -> None:
    name = module.replace("_", "-")
    names = {name, f"{name}-{size}"} & set(RECIPES)
    assert names
    columns = LABELS[label]
    own = re.split(r" / ", re.sub(r"\((?!unsure).*", "", numbers).strip())
    assert len(own) == len(columns)
    rows = [
        row
        for _, row in ROWS
        if row.size == size
        and (names & set(row.recipe) or any(each in row.no_recipe for each in names))
    ]
    matching = []
    for row in rows:
        cells = [
            cell
            for benchmark, variant, metric in columns
            for cell in paper_cells(benchmark, variant)
            if cell.row == row and cell.column.metric == metric
        ]
        texts = [
            f"{cell.value:.1f}" + (" (unsure)" if cell.certainty == "unsure" else "")
            for cell in cells
            if cell.value is not None
        ]
        if texts == own:
            matching.append(row)
    assert len(matching) == 1, f"no row of {names} has {own}"
    (row,) = matching
    assert ("zero-shot" in label) == row.zero_shot
    if row.loss == "joint":
        assert "contrast and rank" in numbers
    if label.startswith("probe"):
        assert row.heads in label


def test_recipes_with_numbers_are_all_checked() -> None:
    assert {module for module, *_ in EXPECTED} == {
        "cc3m_coco",
        "plus_cc3m_webvid",
        "plus_cc3m_webvid_howto",
        "plus_seven",
        "webvid_howto",
        "webvid_howto_ytt",
    }


# Scripts, README and docs


def known_numbers(benchmark: str) -> set[float]:
    cells = paper_cells(benchmark)
    own = {cell.value for cell in cells if cell.value is not None}
    return own | {number for cell in cells for number in cell.also.values()}


OTHER_NUMBERS = {"msvd_qa": {8.9}, "msrvtt_choice": {92.0}}
"""Numbers after "The paper" that are not the paper's: a share of questions, and what a printed gain
implies."""


@pytest.mark.parametrize("name", benchmark_names())
def test_numbers_in_a_scripts_docstring_are_the_papers(name: str) -> None:
    path = ROOT / "finetune" / f"{name}.py"
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    _, _, told = text.partition("The paper")
    numbers = {float(number) for number in _NUMBER.findall(told)}
    assert numbers <= known_numbers(name) | OTHER_NUMBERS.get(name, set())
    if any(cell.target is not None for cell in paper_cells(name)):
        assert numbers, "the docstring states the paper's numbers"


_PAPER = re.compile(r"\b(the|its) paper(['’]s)?\b|\bpublished\b", re.IGNORECASE)


def test_numbers_called_the_papers_in_docs_are_the_papers() -> None:
    known = {number for name in benchmark_names() for number in known_numbers(name)}
    files = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    assert len(files) > 10
    for path in files:
        for paragraph in re.split(r"\n\s*\n|\n(?=[|>-])", path.read_text(encoding="utf-8")):
            if not _PAPER.search(paragraph):
                continue
            numbers = re.findall(
                r"(?<![\d.,])\d\d\.\d(?![\d.])(?!\s*(?:G\b|M\b|h\b|s\b))", paragraph
            )
            assert {float(number) for number in numbers} <= known, (path.name, paragraph)


def test_the_file_is_what_this_test_read() -> None:
    """A number in the file that no table shows would escape these tests."""
    content = json.loads(NUMBERS.read_text(encoding="utf-8"))
    printed = sum(
        cell is not None
        for table in content["tables"]
        for row in table["rows"]
        for cell in row["cells"]
    )
    assert printed == len(CELLS)
    assert all(
        len(row["cells"]) == len(table["columns"])
        for table in content["tables"]
        for row in table["rows"]
    )
