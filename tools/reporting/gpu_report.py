"""gpu_report.json: what `make gpu-check` found, its page, and the GPU rows of docs/status.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from allinone.common.atomic_io import write_atomic
from allinone.common.errors import InputError
from allinone.common.formatting import finite
from allinone.common.html import markdown_text, render

FORMAT = 1
REPORT, PAGE = "gpu_report.json", "gpu_report.html"
State = Literal["passed", "measured", "failed", "crashed", "timed out", "skipped", "not run"]
BAD: tuple[State, ...] = ("crashed", "timed out", "failed", "not run")
"""States that make a stage bad, worst first."""
BEGIN = "<!-- GPU rows: begin; written by `allinone report status`, do not edit -->"
END = "<!-- GPU rows: end -->"
HEADER = "| GPU | stage | result |\n| --- | --- | --- |\n"
NOTHING = "| none | all | no report of a GPU was added yet |\n"


@dataclass(frozen=True)
class Check:
    """One check of a stage."""

    name: str
    state: State
    summary: str = ""
    """What was found, in a line: numbers and their bound, or why it failed or was skipped."""
    seconds: float = 0.0
    values: dict[str, Any] = field(default_factory=dict)
    """Numbers by name."""


@dataclass(frozen=True)
class Stage:
    """All checks of one stage, which ran in child processes."""

    name: str
    title: str
    state: State
    seconds: float
    limit_s: float
    checks: list[Check]
    reason: str = ""
    """Why the stage crashed, timed out or was skipped."""
    log: str = ""
    """End of the output of a stage that is bad."""


@dataclass(frozen=True)
class GpuReport:
    """One run of the check."""

    format: int
    date: str
    """ISO 8601, UTC."""
    seconds: float
    options: dict[str, Any]
    device: str
    """Name of the GPU, or "CPU"."""
    versions: dict[str, str]
    stages: list[Stage]

    @property
    def passed(self) -> bool:
        """Whether no stage is bad."""
        return not any(stage.state in BAD for stage in self.stages)


def state_of(checks: list[Check]) -> State:
    """The state of a stage with these checks: the worst one; "skipped" if all are."""
    states = {check.state for check in checks}
    for state in BAD:
        if state in states:
            return state
    return "skipped" if states <= {"skipped"} else "passed"


def write(report: GpuReport, out: Path) -> None:
    """Write gpu_report.json and gpu_report.html into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / REPORT, json.dumps(finite(asdict(report)), indent=1) + "\n")
    write_atomic(out / PAGE, page(report))


def read(path: Path) -> GpuReport:
    """Read a gpu_report.json.

    Raises:
        InputError: The file is missing, or is no such report.
    """
    import msgspec

    try:
        report = msgspec.json.decode(path.read_bytes(), type=GpuReport)
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}); give a {REPORT}") from error
    except msgspec.DecodeError as error:
        raise InputError(
            f"{path} is not a report of `make gpu-check` ({error}); give its {REPORT}"
        ) from error
    if report.format != FORMAT:
        raise InputError(
            f"{path} has format {report.format}, and this version reads format {FORMAT}; run"
            " `make gpu-check` again"
        )
    return report


def page(report: GpuReport) -> str:
    """The report as one HTML file."""
    return render(
        "tools/reporting/templates/gpu.html.j2",
        title=f"GPU check: {report.device}",
        report=report,
        bad=BAD,
        values=_lines_of_values,
    )


def _lines_of_values(values: Mapping[str, Any]) -> list[str]:
    return [f"{name}: {json.dumps(finite(value))}" for name, value in values.items()]


def status_rows(report: GpuReport) -> str:
    """The rows of one report: a row per stage, with every check that is not just "passed"."""
    versions = ", ".join(
        f"{name} {report.versions[name]}"
        for name in ("allinone", "torch", "driver")
        if name in report.versions
    )
    where = f"{report.device} ({versions}; {report.date[:10]})"
    rows = []
    for stage in report.stages:
        counts = ", ".join(
            f"{sum(check.state == state for check in stage.checks)} {state}"
            for state in ("passed", "measured", "skipped", *BAD)
            if any(check.state == state for check in stage.checks)
        )
        details = [
            f"{check.name} {'' if check.state == 'measured' else check.state + ': '}{check.summary}"
            for check in stage.checks
            if check.state != "passed" and check.summary
        ]
        found = counts or stage.reason or "no check"
        text = f"**{stage.state}** " + markdown_text("; ".join([f"({found})", *details]))
        rows.append(f"| {markdown_text(where)} | {markdown_text(stage.title)} | {text} |\n")
    return "".join(rows)


def add_to_status(report: GpuReport, path: Path) -> None:
    """Replace the rows of the report's GPU in the marked region of a status page.

    Rows of other GPUs stay. The result depends on the two files alone.

    Args:
        report: The report of a GPU.
        path: The status page.

    Raises:
        InputError: The report is of a CPU, or the page has no marked region.
    """
    if report.device == "CPU":
        raise InputError(
            "this report is of a CPU, which says nothing about a GPU; give the report of a run with"
            " --device cuda"
        )
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    region, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"{path} has no lines {BEGIN!r} and {END!r}; add them where rows belong")
    own = f"| {markdown_text(report.device)} ("
    kept = [
        line + "\n"
        for line in region.splitlines()
        if line.startswith("| ")
        and not line.startswith(own)
        and f"{line}\n" not in (NOTHING, *HEADER.splitlines(keepends=True))
    ]
    by_card: dict[str, str] = {}
    for line in [*kept, *status_rows(report).splitlines(keepends=True)]:
        card = line.split(" (", 1)[0]
        by_card[card] = by_card.get(card, "") + line
    rows = "".join(by_card[card] for card in sorted(by_card))
    write_atomic(path, f"{before}{BEGIN}\n\n{HEADER}{rows}\n{END}{after}")
