"""Figures for people: grids of frames drawn with matplotlib, and pages of such figures as PNG, WebP
and self-contained HTML.

Everything is drawn at its final size, so text is readable at 1:1. Colours are RGB.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from allinone.common.atomic_io import write_atomic
from allinone.common.errors import InputError
from allinone.common.formatting import shortened
from allinone.common.html import data_uri, render
from allinone.data.loading.contact_sheet import font

Colour = tuple[int, int, int]
INK = (36, 41, 47)
SOFT = (87, 96, 106)
LINE = (208, 215, 222)
PAPER = (255, 255, 255)
BLACK = (0, 0, 0)
GREEN = (26, 127, 55)
ORANGE = (188, 76, 0)
FRAME_COLOURS: tuple[Colour, ...] = (
    (31, 119, 180),
    (230, 120, 0),
    (44, 150, 60),
    (190, 40, 60),
    (130, 80, 180),
    (120, 90, 60),
    (210, 80, 170),
    (90, 90, 90),
)
"""Distinguishable on screen and paper; the ninth frame has the colour of the first."""
TEXT, SMALL, HEADING, TITLE = 15, 13, 17, 24
"""Font sizes, pixels."""
FORMATS = ("png", "html", "webp")
_GAP, _TITLE_HEIGHT, _LEGEND_ROW, _SWATCH = 12, 26, 26, 40
_WIDTH, _MARGIN = 760, 24
_DPI = 100


def text_style(size: int, colour: Colour = INK, bold: bool = False) -> dict[str, Any]:
    """Text properties of matplotlib.

    Args:
        size: Font size, pixels.
        colour: Colour of the text.
        bold: Bold weight.
    """
    # matplotlib measures fonts in points, 72 per inch
    weight = "bold" if bold else "normal"
    return {
        "fontsize": size * 72 / _DPI,
        "color": rgb(colour),
        "fontweight": weight,
        "parse_math": False,  # `$` in a text begins no formula
    }


def rgb(colour: Colour) -> tuple[float, float, float]:
    """A colour as matplotlib reads it."""
    red, green, blue = colour
    return red / 255, green / 255, blue / 255


class PictureGrid:
    """Rows of square pictures with titles, with room for text on the left and a legend below.

    Args:
        rows: Rows of pictures.
        columns: Pictures per row.
        side: Width and height of a picture, pixels.
        left: Width of the text on the left, pixels.
        row_gap: Space between two rows, pixels; 36 leaves room for titles.
        legend: (colour, text) entries below the pictures.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        side: int,
        *,
        left: int = 0,
        row_gap: int = 10,
        legend: Sequence[tuple[Colour, str]] = (),
    ) -> None:
        from matplotlib.figure import Figure

        width = left + columns * side + (columns - 1) * _GAP
        entry = sum(_SWATCH + 8 * len(text) for _, text in legend) // max(len(legend), 1)
        per_row = max(1, width // max(entry, 1))
        below = _LEGEND_ROW * -(-len(legend) // per_row)
        height = _TITLE_HEIGHT + rows * side + (rows - 1) * row_gap + below
        self._figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
        top = 1 - _TITLE_HEIGHT / height
        # exact pixels instead of a layout engine, so that frames are not resampled
        space = {"bottom": below / height, "top": top, "hspace": row_gap / side}
        pictures = {"left": left / width, "right": 1, "wspace": _GAP / side}
        subplots = self._figure.subplots
        self._pictures = subplots(rows, columns, squeeze=False, gridspec_kw=space | pictures)
        text = {"left": 0, "right": max(left, 1) / width}
        self.left = list(subplots(rows, 1, squeeze=False, gridspec_kw=space | text)[:, 0])
        """The axes for text, one per row; their upper left corner is (0, 1)."""
        for axes in (*self._pictures.flat, *self.left):
            axes.axis("off")
        if legend:
            self._add_legend(legend, per_row)

    def _add_legend(self, entries: Sequence[tuple[Colour, str]], columns: int) -> None:
        from matplotlib.patches import Patch

        self._figure.legend(
            handles=[
                Patch(facecolor=rgb(colour), edgecolor=rgb(SOFT), label=text)
                for colour, text in entries
            ],
            loc="lower left",
            borderaxespad=0,
            borderpad=0,
            frameon=False,
            ncols=columns,
            fontsize=SMALL * 72 / _DPI,
            handlelength=1.2,
            handleheight=1.2,
        )

    def show(
        self, row: int, column: int, picture: Image.Image, title: str = "", **style: Any
    ) -> None:
        """Draw a picture.

        Args:
            row: From the top.
            column: From the left.
            picture: `side` x `side` pixels.
            title: Text above it.
            **style: Text properties of the title; by default small text.
        """
        axes = self._pictures[row, column]
        axes.imshow(np.asarray(picture), aspect="auto", interpolation="none")
        axes.set_title(shortened(title), loc="left", pad=4, **(style or text_style(SMALL)))

    def image(self) -> Image.Image:
        """The grid as one picture."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        canvas = FigureCanvasAgg(self._figure)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # drawn as a box
            canvas.draw()
        return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def tinted(image: Image.Image, colour: Colour, strength: float) -> Image.Image:
    """Blend an image with a colour.

    Args:
        image: The image, which is not changed.
        colour: The colour.
        strength: 0 keeps the image, 1 gives the plain colour.
    """
    return Image.blend(image, Image.new("RGB", image.size, colour), strength)


def cells(side: int, grid: int) -> list[tuple[int, int, int, int]]:
    """Boxes (left, top, right, bottom) of the grid x grid patches of a square picture, in raster
    order."""
    # rounded edges, so that cells leave no gap where `side` is not a multiple of `grid`
    edges = [round(side * k / grid) for k in range(grid + 1)]
    return [
        (edges[x], edges[y], edges[x + 1], edges[y + 1]) for y in range(grid) for x in range(grid)
    ]


def outline(
    image: Image.Image, box: tuple[int, int, int, int], colour: Colour, width: int = 3
) -> None:
    """Draw a border just inside a box.

    Args:
        image: Drawn on in place.
        box: (left, top, right, bottom); right and bottom are outside.
        colour: Of the border.
        width: Of the border, pixels.
    """
    left, top, right, bottom = box
    ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), outline=colour, width=width)


@dataclass(frozen=True)
class Section:
    """One part of a figure: heading, picture, explanation."""

    heading: str
    picture: Image.Image
    note: str = ""
    alt: str = ""
    """Alternative text of the page."""


@dataclass(frozen=True)
class Sheet:
    """A figure with a title and an explanation."""

    title: str
    lead: str
    sections: Sequence[Section]
    source: str = ""
    """Model and files, in small print at the end."""

    def image(self) -> Image.Image:
        """The figure as one picture."""
        width = max(_WIDTH, *(section.picture.width for section in self.sections))
        rule = Image.new("RGB", (width, 1), LINE)
        parts = [
            _paragraph(self.title, width, TITLE, bold=True),
            _paragraph(self.lead, width, TEXT, SOFT),
        ]
        for section in self.sections:
            parts.append(rule)
            if section.heading:
                parts.append(_paragraph(section.heading, width, HEADING, bold=True))
            parts.append(section.picture)
            if section.note:
                parts.append(_paragraph(section.note, width, SMALL, SOFT))
        if self.source:
            parts += [rule, _paragraph(self.source, width, SMALL, SOFT)]
        height = sum(part.height for part in parts) + _GAP * (len(parts) - 1)
        canvas = Image.new("RGB", (width, height), PAPER)
        y = 0
        for part in parts:
            canvas.paste(part, (0, y))
            y += part.height + _GAP
        return ImageOps.expand(canvas, _MARGIN, PAPER)

    def page(self) -> str:
        """The figure as an HTML page that contains its pictures."""
        return render(
            "tools/inspection/templates/figure.html.j2",
            title=self.title,
            lead=self.lead,
            sections=[
                (section, data_uri(_encoded(section.picture, "png"), "png"))
                for section in self.sections
            ],
            source=self.source,
        )

    def save(self, stem: Path, formats: Sequence[str]) -> list[Path]:
        """Write the figure to files.

        Args:
            stem: Path without ending; an ending in FORMATS is dropped.
            formats: Some of FORMATS.

        Returns:
            The paths, in the order of `formats`.

        Raises:
            InputError: A file cannot be written.
        """
        stem = stem.with_suffix("") if stem.suffix.lstrip(".") in FORMATS else stem
        written = []
        for kind in formats:
            target = stem.with_name(f"{stem.name}.{kind}")
            try:
                write_atomic(
                    target, self.page() if kind == "html" else _encoded(self.image(), kind)
                )
            except OSError as error:
                raise InputError(f"--out {target} cannot be written: {error}") from error
            written.append(target)
        return written


def _paragraph(
    text: str, width: int, size: int, colour: Colour = INK, bold: bool = False
) -> Image.Image:
    """Text wrapped to `width` pixels."""
    face = font(size, bold)
    characters = max(1, len(text))
    lines = [text]
    while characters > 1 and any(face.getlength(line) > width for line in lines):
        characters -= 1
        lines = textwrap.wrap(text, characters)
    step = round(1.35 * size)
    image = Image.new("RGB", (width, step * len(lines) + 2), PAPER)
    pen = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        pen.text((0, step * number), line, font=face, fill=colour)
    return image


def _encoded(image: Image.Image, kind: str) -> bytes:
    buffer = BytesIO()
    if kind == "webp":
        image.save(buffer, "webp", quality=82, method=6)
    else:
        image.save(buffer, "png", optimize=True)
    return buffer.getvalue()
