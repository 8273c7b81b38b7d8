"""Figures of text and images in one column, as PNG or WebP and as a self-contained HTML page.

Everything is drawn at its final size, so text is readable at 1:1. Colours are RGB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from allinone.common.atomic_io import write_atomic
from allinone.common.errors import InputError
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


def _lines(text: str, width: int, face: ImageFont.FreeTypeFont) -> list[str]:
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split(" "):
            longer = f"{line} {word}" if line else word
            if line and face.getlength(longer) > width:
                lines.append(line)
                line = word
            else:
                line = longer
        lines.append(line)
    return lines


def paragraph(
    text: str, width: int, size: int = TEXT, colour: Colour = INK, bold: bool = False
) -> Image.Image:
    """Text wrapped to `width` pixels."""
    face = font(size, bold)
    lines = _lines(text, width, face)
    step = round(1.35 * size)
    image = Image.new("RGB", (width, step * len(lines) + 2), PAPER)
    pen = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        pen.text((0, step * number), line, font=face, fill=colour)
    return image


def label(text: str, size: int = SMALL, colour: Colour = INK, bold: bool = False) -> Image.Image:
    """One line of text on an image of its own width."""
    return paragraph(text, round(font(size, bold).getlength(text)) + 2, size, colour, bold)


def row(images: Sequence[Image.Image], gap: int = 12, middle: bool = False) -> Image.Image:
    """Images side by side, aligned at their tops or middles."""
    height = max(image.height for image in images)
    canvas = Image.new(
        "RGB", (sum(image.width for image in images) + gap * (len(images) - 1), height), PAPER
    )
    x = 0
    for image in images:
        canvas.paste(image, (x, (height - image.height) // 2 if middle else 0))
        x += image.width + gap
    return canvas


def column(images: Sequence[Image.Image], gap: int = 6) -> Image.Image:
    """Images below each other, aligned at their left edges."""
    canvas = Image.new(
        "RGB",
        (
            max(image.width for image in images),
            sum(image.height for image in images) + gap * (len(images) - 1),
        ),
        PAPER,
    )
    y = 0
    for image in images:
        canvas.paste(image, (0, y))
        y += image.height + gap
    return canvas


def swatch(colour: Colour, side: int = 16) -> Image.Image:
    """A filled square for a legend."""
    image = Image.new("RGB", (side, side + 2), PAPER)
    ImageDraw.Draw(image).rectangle((0, 2, side - 1, side + 1), fill=colour, outline=SOFT)
    return image


def legend(entries: Sequence[tuple[Colour, str]], width: int) -> Image.Image:
    """Swatches with their meaning, wrapped to `width` pixels."""
    lines: list[list[Image.Image]] = [[]]
    used = 0
    for colour, text in entries:
        entry = row([swatch(colour), label(text)], gap=6)
        if lines[-1] and used + entry.width > width:
            lines.append([])
            used = 0
        lines[-1].append(entry)
        used += entry.width + 20
    return column([row(line, gap=20) for line in lines])


def tinted(image: Image.Image, colour: Colour, strength: float) -> Image.Image:
    """The image blended with a colour: strength 0 keeps the image, 1 gives the plain colour."""
    return Image.blend(image, Image.new("RGB", image.size, colour), strength)


def cells(side: int, grid: int) -> list[tuple[int, int, int, int]]:
    """Boxes (left, top, right, bottom) of the grid x grid patches of a square picture, in raster
    order."""
    edges = [round(side * k / grid) for k in range(grid + 1)]
    return [
        (edges[x], edges[y], edges[x + 1], edges[y + 1]) for y in range(grid) for x in range(grid)
    ]


def outline(
    image: Image.Image, box: tuple[int, int, int, int], colour: Colour, width: int = 3
) -> None:
    """Draw a border just inside a box."""
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
    margin: int = field(default=24)

    def image(self) -> Image.Image:
        """The figure as one picture."""
        width = max(760, *(section.picture.width for section in self.sections))
        parts = [
            paragraph(self.title, width, TITLE, bold=True),
            paragraph(self.lead, width, TEXT, SOFT),
        ]
        for section in self.sections:
            parts.append(Image.new("RGB", (width, 1), LINE))
            if section.heading:
                parts.append(paragraph(section.heading, width, HEADING, bold=True))
            parts.append(section.picture)
            if section.note:
                parts.append(paragraph(section.note, width, SMALL, SOFT))
        if self.source:
            parts += [
                Image.new("RGB", (width, 1), LINE),
                paragraph(self.source, width, SMALL, SOFT),
            ]
        body = column(parts, gap=12)
        canvas = Image.new(
            "RGB", (body.width + 2 * self.margin, body.height + 2 * self.margin), PAPER
        )
        canvas.paste(body, (self.margin, self.margin))
        return canvas

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


def _encoded(image: Image.Image, kind: str) -> bytes:
    buffer = BytesIO()
    if kind == "webp":
        image.save(buffer, "webp", quality=82, method=6)
    else:
        image.save(buffer, "png", optimize=True)
    return buffer.getvalue()
