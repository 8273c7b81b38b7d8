"""A result as shown on the terminal: scores with their intervals, next to the paper's numbers for
the most similar setting if the official items were scored."""

from __future__ import annotations

from allinone.finetune.evaluation.official_counts import tested_as
from allinone.finetune.evaluation.paper_numbers import PaperCell, paper_cells
from allinone.finetune.evaluation.results import EvaluationResult

_MAX_LISTED = 10
"""Missing items that are listed; the results file lists all."""


def table(result: EvaluationResult) -> str:
    """The result as lines of text."""
    zero_shot = " zero-shot" if result.zero_shot else ""
    lines = [
        f"{result.name}{zero_shot}: {result.items:,} items, {len(result.missing):,} missing",
    ]
    known = paper_cells(result.benchmark, tested_as(result.variant))
    cells = [cell for cell in known if cell.measures(result) and cell.target is not None]
    nearest = min(cells, key=lambda cell: len(cell.differences(result)), default=None)
    published: dict[str, PaperCell] = {}
    if nearest is not None and result.official:
        published = {cell.column.metric: cell for cell in cells if cell.row == nearest.row}
    for name, score in result.scores.items():
        interval, paper = "", ""
        if score.low is not None and score.high is not None:
            interval = f"[{score.low:.1f}, {score.high:.1f}]"
        if name in published:
            paper = f"paper {published[name].target:g} ({published[name].certainty})"
        lines.append(
            f"  {name:<22}{score.value:8.2f} {score.unit:<5}{interval:<16}{paper}".rstrip()
        )
    if nearest is not None:
        lines.append(_comparison(nearest, result))
    lines += [
        f"  missing: {item.item} ({item.media}): {item.reason}"
        for item in result.missing[:_MAX_LISTED]
    ]
    return "\n".join(lines)


def _comparison(cell: PaperCell, result: EvaluationResult) -> str:
    if reason := result.unofficial_reason:
        return f"  not comparable with the paper: {reason}"
    differences = cell.differences(result)
    row = f"{cell.row.model}, {cell.row.data}"
    if not differences:
        return f"  the paper's row is {row}: the same setting"
    return f"  the paper's nearest row is {row}; not comparable: {'; '.join(differences)}"
