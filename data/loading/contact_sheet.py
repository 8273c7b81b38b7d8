"""Draws batches for people: samples as the model sees them, with caption and masked text."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from allinone.data.config import DataConfig
from allinone.data.loading.batch import Batch
from allinone.data.text import Tokenizer

INK = "#1d2430"
QUIET = "#6b7482"
ACCENT = "#c2410c"
PAPER = "#ffffff"
STRIPE = "#f3f5f8"
EDGE = "#d5dae1"
FRAME = 140
"""Side of a shown frame, pixels."""
GAP = 14
"""Space around frames and texts, pixels."""
TEXT_WIDTH = 400
"""Pixels."""


@functools.cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Load DejaVu Sans, which ships with matplotlib: the same on every machine."""
    from matplotlib import get_data_path

    name = f"DejaVuSans{'-Bold' if bold else ''}.ttf"
    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / name), size)


def _flow(
    draw: ImageDraw.ImageDraw,
    x: int,
    y: int,
    width: int,
    words: Sequence[tuple[str, str]],
    face: Any,
    lines: int,
) -> int:
    """Draw coloured words in lines and return the y below; an ellipsis ends what does not fit.

    Args:
        draw: Where to draw.
        x: Left edge, pixels.
        y: Upper edge, pixels.
        width: Pixels.
        words: Words with their colours.
        face: Font.
        lines: Lines at most.

    Returns:
        Pixels from the top.
    """
    height, space, left = face.size + 6, draw.textlength(" ", font=face), float(x)
    for word, colour in words:
        while draw.textlength(word, font=face) > width:
            word = word[: len(word) * 2 // 3] + "…"
        length = draw.textlength(word, font=face)
        if left + length > x + width:
            lines -= 1
            if lines == 0:
                draw.text((left, y), "…", fill=QUIET, font=face)
                return y + height
            left, y = float(x), y + height
        draw.text((left, y), word, fill=colour, font=face)
        left += length + space
    return y + height


def _tokens(
    batch: Batch, row: int, tokenizer: Tokenizer
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the texts of one clip as word pieces with their colours.

    Args:
        batch: The samples.
        row: Which of them.
        tokenizer: Turns ids into word pieces.

    Returns:
        (the text that MLM sees, the words to predict).
    """
    names = tokenizer.piece
    seen, wanted = [], []
    columns = (batch.mlm_ids, batch.mlm_labels, batch.text_mask)
    for given, label, real in zip(*(column[row].tolist() for column in columns), strict=True):
        if real:
            seen.append((names(given), ACCENT if label >= 0 else INK))
            if label >= 0:
                wanted.append((names(label), ACCENT))
    return seen, wanted


def _describe(
    draw: ImageDraw.ImageDraw, x: int, y: int, batch: Batch, number: int, tokenizer: Tokenizer
) -> None:
    """Draw name, caption, masked text and the words to predict of one clip.

    Args:
        draw: Where to draw.
        x: Left edge, pixels.
        y: Upper edge, pixels.
        batch: The samples.
        number: Which of them.
        tokenizer: Turns ids into word pieces.
    """
    seen, wanted = _tokens(batch, number, tokenizer)
    caption = [(word, INK) for word in batch.captions[number].split()]
    y = _flow(draw, x, y, TEXT_WIDTH, [(batch.clips[number], QUIET)], font(12), 1) + 3
    y = _flow(draw, x, y, TEXT_WIDTH, caption, font(15, bold=True), 2) + 3
    y = _flow(draw, x, y, TEXT_WIDTH, seen, font(13), 3) + 3
    _flow(draw, x, y, TEXT_WIDTH, [("→", QUIET), *wanted], font(13), 1)


def contact_sheet(batch: Batch, config: DataConfig, title: str, columns: int = 1) -> Image.Image:
    """Draw samples: frames as the model sees them, caption, and the masked text.

    Args:
        batch: Samples after crop, colour and normalisation.
        config: Its normalisation is undone.
        title: Heading.
        columns: Samples per row; TensorBoard makes pictures as narrow as its cards.

    Returns:
        The picture, RGB.
    """
    tokenizer = Tokenizer()
    clips, frames = batch.pixels.shape[:2]
    normalised = batch.pixels.permute(0, 1, 3, 4, 2).cpu().numpy()
    pixels = normalised * np.array(config.std) + np.array(config.mean)
    # rounding may leave [0, 1] by a little, and a cast to uint8 would turn white into black
    shown = (np.clip(pixels, 0, 1) * 255).round().astype(np.uint8)
    cell_height = FRAME + 2 * GAP
    cell_width = 3 * GAP + frames * (FRAME + 6) + TEXT_WIDTH
    head = 62
    columns = min(columns, clips)
    rows = -(-clips // columns)
    sheet = Image.new("RGB", (columns * cell_width, head + rows * cell_height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 10), title, fill=INK, font=font(17, bold=True))
    legend = "name · caption · the text as MLM sees it · the word pieces to predict"
    draw.text((GAP, 35), legend, fill=QUIET, font=font(13))
    for number in range(clips):
        left, top = number % columns * cell_width, head + number // columns * cell_height
        if number // columns % 2 == 0:
            draw.rectangle((left, top, left + cell_width, top + cell_height), fill=STRIPE)
        for k in range(frames):
            x = left + GAP + k * (FRAME + 6)
            sheet.paste(
                Image.fromarray(shown[number, k]).resize((FRAME, FRAME), Image.Resampling.BICUBIC),
                (x, top + GAP),
            )
            draw.rectangle((x, top + GAP, x + FRAME - 1, top + GAP + FRAME - 1), outline=EDGE)
        _describe(draw, left + cell_width - TEXT_WIDTH - GAP, top + GAP, batch, number, tokenizer)
    return sheet
