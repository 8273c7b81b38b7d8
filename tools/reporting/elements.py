"""The elements of the results report as text: cells, rows, tables and lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RunValue:
    """The score of one of several runs that share a cell."""

    run: int
    value: str
    date: str


@dataclass(frozen=True)
class OurValue:
    """Our newest score for a cell."""

    run: int
    value: str
    change: str
    """The difference to the paper with its interval; without a target our interval alone."""
    verdict: str
    """A key of VERDICTS."""
    remarks: Sequence[str]
    """Further scores that explain this one."""
    runs: Sequence[RunValue]
    """All runs of the cell, the shown one first."""


@dataclass(frozen=True)
class CellView:
    """One cell: the paper's number, ours, both, or nothing."""

    paper: str = ""
    """Empty in our own rows."""
    mark: str = ""
    meaning: str = ""
    """What is known about the paper's number."""
    also: Sequence[str] = ()
    """Other sources for the same number."""
    ours: OurValue | None = None
    not_run: bool = False
    """The paper has a number and we have none."""


@dataclass(frozen=True)
class RowView:
    """One row of a table."""

    model: str
    pretraining: str
    frames: str
    image_size: str
    """Empty for the usual size in rows of the paper."""
    cells: Sequence[CellView]
    note: str = ""
    """Footnote of a row of the paper."""
    reason: str = ""
    """How a row of ours differs from the nearest row of the paper."""

    @property
    def own(self) -> bool:
        """Whether the row is ours."""
        return bool(self.reason)


@dataclass(frozen=True)
class TableView:
    """One table of the paper."""

    id: str
    title: str
    note: str
    groups: Sequence[tuple[str, int]]
    """(heading, number of columns); empty if no column has such a heading."""
    heads: Sequence[str]
    """Column headings below the groups."""
    names: Sequence[str]
    """Column headings that include the group."""
    rows: Sequence[RowView]
    remarks: Sequence[str]

    def repeated(self) -> Iterator[tuple[str, Sequence[RunValue]]]:
        """(cell, runs) of every cell with several runs."""
        for row in self.rows:
            name = "ours" if row.own else f"{row.model}, {row.frames} frames"
            for column, cell in zip(self.names, row.cells, strict=True):
                if cell.ours and len(cell.ours.runs) > 1:
                    yield f"{name}, {column}", cell.ours.runs


@dataclass(frozen=True)
class ScoreView:
    """One score of a result, apart from the paper's tables."""

    run: int
    result: str
    protocol: str
    name: str
    value: str
    unit: str
    interval: str


@dataclass(frozen=True)
class UnofficialView:
    """A result on other items than the official ones."""

    run: int
    result: str
    model: str
    items: str
    official: str
    """Official number of items; – if none is known."""
    reason: str
    scores: Sequence[ScoreView]


@dataclass(frozen=True)
class RunView:
    """One results file."""

    number: int
    name: str
    headline: ScoreView | None
    """The first score; None on a split with hidden labels."""
    zero_shot: bool
    model_size: str
    parameters: str
    pretraining: str
    frames: str
    image_size: int
    max_text_len: int
    checkpoint: str
    sha256: str
    items: str
    unofficial: bool
    """Listed among the results on other items than the official ones."""
    missing: int
    missing_items: str
    """The first missing items with their reasons."""
    date: str
    code: str
    file: str
    """Path relative to the report."""


@dataclass(frozen=True)
class ReportView:
    """The report from top to bottom."""

    summary: str
    tiles: Sequence[tuple[str, str]]
    """(number, what it counts)"""
    tables: Sequence[TableView]
    unofficial: Sequence[UnofficialView]
    unmatched: Sequence[ScoreView]
    runs: Sequence[RunView]
    marks: Sequence[tuple[str, str]]
    """(mark, meaning) of every kind of number that is compared."""
    budget: Sequence[tuple[str, str, str]]
    """(what, value, source) of the authors' statements about cost."""
