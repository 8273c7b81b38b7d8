"""Batches as people can look at them: samples as the model sees them, with caption and masked
text."""

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

INK, QUIET, ACCENT, PAPER, STRIPE, EDGE = (
    "#1d2430",
    "#6b7482",
    "#c2410c",
    "#ffffff",
    "#f3f5f8",
    "#d5dae1",
)
FRAME, GAP, TEXT_WIDTH = 140, 14, 400
"""Pixels: side of a shown frame, space around things, width of the text."""


@functools.cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along: the same on every machine."""
    from matplotlib import get_data_path

    return ImageFont.truetype(
        str(Path(get_data_path()) / "fonts" / "ttf" / f"DejaVuSans{'-Bold' if bold else ''}.ttf"),
        size,
    )


def _flow(
    draw: ImageDraw.ImageDraw,
    x: int,
    y: int,
    width: int,
    words: Sequence[tuple[str, str]],
    face: Any,
    lines: int,
) -> int:
    """Coloured words in lines; returns the y below. What does not fit in `lines` ends with an
    ellipsis."""
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
    """(the text that MLM sees, the words that it is to find), word pieces with their colours."""
    names = tokenizer.piece
    seen, wanted = [], []
    for given, label, real in zip(
        *(t[row].tolist() for t in (batch.mlm_ids, batch.mlm_labels, batch.text_mask)), strict=True
    ):
        if real:
            seen.append((names(given), ACCENT if label >= 0 else INK))
            if label >= 0:
                wanted.append((names(label), ACCENT))
    return seen, wanted


def _describe(
    draw: ImageDraw.ImageDraw, x: int, y: int, batch: Batch, number: int, tokenizer: Tokenizer
) -> None:
    seen, wanted = _tokens(batch, number, tokenizer)
    caption = [(word, INK) for word in batch.captions[number].split()]
    y = _flow(draw, x, y, TEXT_WIDTH, [(batch.clips[number], QUIET)], font(12), 1) + 3
    y = _flow(draw, x, y, TEXT_WIDTH, caption, font(15, bold=True), 2) + 3
    y = _flow(draw, x, y, TEXT_WIDTH, seen, font(13), 3) + 3
    _flow(draw, x, y, TEXT_WIDTH, [("→", QUIET), *wanted], font(13), 1)


def contact_sheet(batch: Batch, config: DataConfig, title: str) -> Image.Image:
    """A row per sample: its frames after crop, colour and normalisation (undone for the eye),
    caption, and the masked text."""
    tokenizer = Tokenizer()
    clips, frames = batch.pixels.shape[:2]
    pixels = batch.pixels.permute(0, 1, 3, 4, 2).cpu().numpy() * np.array(config.std) + np.array(
        config.mean
    )
    shown = (np.clip(pixels, 0, 1) * 255).round().astype(np.uint8)
    cell_height, cell_width, head = FRAME + 2 * GAP, 3 * GAP + frames * (FRAME + 6) + TEXT_WIDTH, 62
    columns = 2 if clips > 3 else 1
    rows = -(-clips // columns)
    sheet = Image.new("RGB", (columns * cell_width, head + rows * cell_height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 10), title, fill=INK, font=font(17, bold=True))
    draw.text(
        (GAP, 35),
        "name · caption · the text as MLM sees it · the word pieces that it is to find",
        fill=QUIET,
        font=font(13),
    )
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
