"""The results report as one HTML file."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from allinone.common.html import render
from allinone.tools.reporting.tables import VERDICTS, FilledTables
from allinone.tools.reporting.view import (
    RULES,
    SOURCES,
    TITLE,
    UNOFFICIAL,
    UNOFFICIAL_NOTE,
    report_view,
)


def html_page(filled: FilledTables, folder: Path, *, ours_only: bool = False) -> str:
    """The page for a file in `folder`.

    Args:
        filled: Tables and results.
        folder: Links to results files are relative to it.
        ours_only: Leave out tables and rows of the paper without a result of ours.
    """
    return render(
        "tools/reporting/templates/results.html.j2",
        title=TITLE,
        rules=RULES,
        sources=SOURCES,
        verdicts=VERDICTS,
        unofficial=(UNOFFICIAL, UNOFFICIAL_NOTE),
        report=report_view(filled, folder, ours_only=ours_only),
        quote=quote,
    )
