"""A result as the terminal shows it: scores with their intervals, beside what the paper says of the
nearest setting."""

from __future__ import annotations

from allinone.finetune.evaluation.paper_numbers import PaperCell, paper_cells, tested_as
from allinone.finetune.evaluation.results import EvaluationResult

_NAMED = 10
"""Missing items that are named; the results file names all."""


def table(result: EvaluationResult) -> str:
    """Lines for people."""
    head = (
        f"{result.name}{' zero-shot' if result.zero_shot else ''}: {result.items:,} items,"
        f" {len(result.missing):,} missing"
    )
    known = paper_cells(result.benchmark, tested_as(result.variant))
    cells = [cell for cell in known if cell.measures(result) and cell.target is not None]
    nearest = min(cells, key=lambda cell: len(cell.differences(result)), default=None)
    beside = (
        {}
        if nearest is None
        else {cell.column.metric: cell for cell in cells if cell.row == nearest.row}
    )
    lines = [head]
    for name, score in result.scores.items():
        span = (
            f"[{score.low:.1f}, {score.high:.1f}]"
            if score.low is not None and score.high is not None
            else ""
        )
        paper = (
            f"paper {beside[name].target:g} ({beside[name].certainty})" if name in beside else ""
        )
        lines.append(f"  {name:<22}{score.value:8.2f} {score.unit:<5}{span:<16}{paper}".rstrip())
    if nearest is not None:
        lines.append(_comparison(nearest, result))
    lines += [
        f"  missing: {item.item} ({item.media}): {item.reason}" for item in result.missing[:_NAMED]
    ]
    return "\n".join(lines)


def _comparison(cell: PaperCell, result: EvaluationResult) -> str:
    differences = cell.differences(result)
    row = f"{cell.row.model}, {cell.row.data}"
    if not differences:
        return f"  the paper's row is {row}: the same setting"
    return f"  the paper's nearest row is {row}; not comparable: {'; '.join(differences)}"
