"""Self-contained HTML pages from Jinja templates, and text for Markdown.

Templates are package data next to the module that renders them and extend
`common/templates/page.html.j2`. Everything that is inserted is escaped.
"""

from __future__ import annotations

import base64
import functools
import re
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from allinone.common.formatting import printable
from allinone.common.paths import PACKAGE

INK, MUTED, BORDER, GRID = "#24292f", "#6e7781", "#d0d7de", "#eaeef2"
CORRECT, LINK, ERROR = "#1a7f37", "#0969da", "#cf222e"
"""Colours that pages and charts share; templates know them as CSS variables (`--ink`, …)."""


def _shown(value: Any) -> Any:
    """A value without characters that reorder or hide the text around them."""
    return printable(value) if type(value) is str else value


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(PACKAGE),
        autoescape=True,
        undefined=StrictUndefined,  # a misspelled name must not become an empty cell
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_shown,
    )
    colours = {
        "ink": INK,
        "muted": MUTED,
        "border": BORDER,
        "grid": GRID,
        "correct": CORRECT,
        "link": LINK,
        "error": ERROR,
    }
    environment.globals["colours"] = colours
    return environment


def render(template: str, **data: Any) -> str:
    """Render a template of the package.

    Args:
        template: Path below `allinone/`, for example `tools/reporting/templates/results.html.j2`.
        **data: What the template names; text is escaped.

    Returns:
        The page.

    Raises:
        jinja2.TemplateNotFound: The package holds no such file.
        jinja2.UndefinedError: The template names something that is not in `data`.
    """
    return _environment().get_template(template).render(**data)


def markdown_text(text: str) -> str:
    """Text as one line of Markdown that shows it, without markup, links or HTML of its own."""
    plain = printable(re.sub(r"\s+", " ", text).strip())
    plain = plain.replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*\[\]|])", r"\\\1", plain)


def data_uri(content: bytes, image_format: str) -> str:
    """An image as a `src` attribute, so that the page needs no other file."""
    return f"data:image/{image_format};base64,{base64.b64encode(content).decode()}"
