"""Captions with characters that matplotlib would take for formulas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from allinone.common.formatting import shortened
from allinone.tools.inspection.figure import PictureGrid, text_style
from allinone.tools.reporting.pretrain_figures import (
    MaskedWord,
    RankedClip,
    RetrievalExample,
    plot_masked_words,
    plot_retrieval_examples,
)

CAPTIONS = [
    r"$\frac{$",
    "costs $5 or $6",
    r"$\undefined$ \\ % # _ ^ { }",
    "$$$$",
    r"\$",
    "日本 $x^",
    "word " * 26_000,
    "x" * 131_000,
    "\x1b]0;x\x07 \u202e <b>",
]


@pytest.mark.parametrize("caption", CAPTIONS)
def test_no_caption_breaks_a_figure(tmp_path: Path, caption: str) -> None:
    frames = np.zeros((3, 8, 8, 3), np.uint8)
    clips = [RankedClip(frames, caption, 1, True)]
    plot_retrieval_examples([RetrievalExample(caption, clips)], tmp_path / "a.png")
    guesses = [(caption, 0.5), ("dog", 0.25)]
    word = MaskedWord(caption, caption, caption, guesses, frames, rank=9, probability=0.01)
    plot_masked_words([word], tmp_path / "b.png")
    grid = PictureGrid(1, 1, 64, left=200)
    grid.show(0, 0, Image.new("RGB", (64, 64)), caption)
    grid.left[0].text(0, 1, shortened(caption), **text_style(12))
    assert grid.image().width > 64
    assert all(Image.open(tmp_path / name).width > 200 for name in ("a.png", "b.png"))
