"""HTML pages that need no other file and no network: the frame and the style that all reports
share."""

from __future__ import annotations

import html
from collections.abc import Sequence

RIGHT, WRONG, INK, GRID = "#1a7f37", "#d0d7de", "#24292f", "#eaeef2"
MUTED, LINK, BAD = "#6e7781", "#0969da", "#cf222e"
STYLE = f"""
body {{ font: 15px/1.5 system-ui, sans-serif; color: {INK}; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.6rem; margin-bottom: .2rem }} h2 {{ font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid {WRONG} }}
table {{ border-collapse: collapse }} td, th {{ padding: .25rem .8rem; text-align: right; border-bottom: 1px solid {GRID} }}
img {{ max-width: 100% }} pre {{ background: #f6f8fa; padding: .8rem; overflow-x: auto; font-size: .8rem }}
"""


def page(title: str, body: str, style: str = "") -> str:
    """A whole document; `body` is HTML and begins with its h1, `title` is text."""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport"'
        ' content="width=device-width">\n'
        f"<title>{html.escape(title)}</title><style>{STYLE}{style}</style>\n{body}</html>\n"
    )


def table_row(cells: Sequence[str], tag: str = "td", css: str = "") -> str:
    """One row from cells that are HTML already."""
    name = f' class="{css}"' if css else ""
    return f"<tr{name}>{''.join(f'<{tag}>{cell}</{tag}>' for cell in cells)}</tr>"
