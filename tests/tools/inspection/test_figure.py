"""Grids of pictures keep the pixels of the pictures; figure pages show data as text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from allinone.common.errors import InputError
from allinone.tools.inspection.figure import GREEN, PictureGrid, Section, Sheet

SIDE, LEFT, GAP, TOP = 96, 200, 12, 26


def noise(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def grid() -> tuple[Image.Image, list[Image.Image]]:
    pictures = [noise(seed) for seed in range(6)]
    drawn = PictureGrid(2, 3, SIDE, left=LEFT, legend=[(GREEN, "correct")])
    for index, picture in enumerate(pictures):
        drawn.show(index // 3, index % 3, picture, "" if index else "frame")
    return drawn.image(), pictures


def test_grids_keep_the_pixels_of_every_picture() -> None:
    image, pictures = grid()
    for index, picture in enumerate(pictures):
        x = LEFT + index % 3 * (SIDE + GAP)
        y = TOP + index // 3 * (SIDE + 10)
        shown = np.asarray(image.crop((x, y, x + SIDE, y + SIDE)))
        np.testing.assert_array_equal(shown, np.asarray(picture))


def test_pages_show_titles_and_notes_as_text() -> None:
    hostile = "<script>alert('x')</script> \"a\" {{ 7 * 7 }}"
    page = Sheet(hostile, hostile, [Section(hostile, noise(0), hostile, hostile)], hostile).page()
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;") == 7
    assert page.count("{{ 7 * 7 }}") == 7


def test_long_texts_are_wrapped_within_the_figure() -> None:
    wide = Sheet("W" * 20 + " " + "MMMM " * 60, "lead", [Section("", noise(0))]).image()
    margin = np.asarray(wide)[:, -24:]
    assert wide.width == 760 + 2 * 24
    assert (margin == 255).all()


def test_unwritable_outputs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    figure = Sheet("title", "lead", [Section("", noise(0))])
    with pytest.raises(InputError, match="--out"):
        figure.save(tmp_path / "file" / "x", ["png"])
