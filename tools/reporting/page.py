"""The results report as one HTML file."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from allinone.common.html import render
from allinone.tools.reporting.tables import FilledTables
from allinone.tools.reporting.view import RULES, SOURCES, TITLE, report_view


def html_page(filled: FilledTables, folder: Path) -> str:
    """The page for a file in `folder`: links to results files are relative to it."""
    return render(
        "tools/reporting/templates/results.html.j2",
        title=TITLE,
        rules=RULES,
        sources=SOURCES,
        report=report_view(filled, folder),
        quote=quote,
    )
