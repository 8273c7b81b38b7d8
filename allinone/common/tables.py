"""Rows of text as a table for a terminal or for Markdown. The first row holds the titles."""

from __future__ import annotations

from collections.abc import Sequence

from allinone.common.formatting import one_line


def plain_table(rows: Sequence[Sequence[str]], left_aligned: int = 1) -> str:
    """Align columns for a terminal: the first `left_aligned` ones left, the others right."""
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < left_aligned else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown_table(rows: Sequence[Sequence[str]], left_aligned: int = 1) -> str:
    """Format a Markdown table: the first `left_aligned` columns left, the others right."""
    lines = [f"| {' | '.join(cell.strip() for cell in row)} |" for row in rows]
    alignments = ["---"] * left_aligned + ["---:"] * (len(rows[0]) - left_aligned)
    return "\n".join([lines[0], f"| {' | '.join(alignments)} |", *lines[1:]])
