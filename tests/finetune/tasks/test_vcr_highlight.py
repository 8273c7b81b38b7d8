"""Highlighting for VCR: which detections, their colours and opacity, and that the outline survives
resizing to the model's input."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from allinone.finetune.annotations.schema import ImageRegion, Media, VCRItem
from allinone.finetune.annotations.vcr_text import mentioned
from allinone.finetune.tasks.vcr_highlight import GREY, OPACITY, PALETTE, highlight, outline_width

PERSON_0, PERSON_1, CHAIR, PERSON_3 = range(4)


def still(height: int = 800, width: int = 1200) -> NDArray[np.uint8]:
    """A smooth picture in which no pixel has a colour of the palette."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack(
        [60 + rows % 90, 90 + columns % 70, np.full((height, width), 120)], axis=-1
    ).astype(np.uint8)


def item(scale: float = 1.0) -> VCRItem:
    boxes = ((100, 100, 300, 700), (400, 100, 600, 700), (650, 400, 900, 790), (950, 50, 1199, 799))
    names = ("person", "person", "chair", "person")
    regions = tuple(
        ImageRegion(name, (x1 * scale, y1 * scale, x2 * scale, y2 * scale))
        for name, (x1, y1, x2, y2) in zip(names, boxes, strict=True)
    )
    question = ("Why", "is", (1,), "on", (2,), "?")
    answers = (((1, 0), "rests"),) * 4
    return VCRItem(
        "val-1", Media("a", "a.jpg"), regions, question, answers, (((3,), "said", "so"),) * 4, 0, 0
    )


def test_q_to_a_never_shows_what_only_the_rationales_mention() -> None:
    """The picture of the answer task does not depend on the rationales; person 3 is shown in the
    rationale task only."""
    picture, one = still(), item()
    answer = highlight(picture, one, mentioned(one, "answer"))
    x1, y1, x2, y2 = (int(value) for value in one.regions[PERSON_3].box)
    assert np.array_equal(answer[y1:y2, x1:x2], picture[y1:y2, x1:x2])
    assert not np.array_equal(answer[y1:y2, 400:600], picture[y1:y2, 400:600])
    rationale = highlight(picture, one, mentioned(one, "rationale"))
    assert not np.array_equal(rationale[y1:y2, x1:x2], picture[y1:y2, x1:x2])
    assert np.array_equal(picture, still()), "the given picture stays as it was"


def test_persons_are_coloured_by_index_and_others_are_grey() -> None:
    """Neither the order of mention (1, 2, 0) nor other mentioned persons matter."""
    picture, one = still(), item()
    for chosen in ([1, 2, 0], [0], [1], [2], [3]):
        drawn = highlight(picture, one, chosen)
        for region, wanted in (
            (PERSON_0, PALETTE[0]),
            (PERSON_1, PALETTE[1]),
            (CHAIR, GREY),
            (PERSON_3, PALETTE[3]),
        ):
            x1, _, _, y2 = (int(value) for value in one.regions[region].box)
            edge = drawn[y2 - 150, x1]
            assert (tuple(edge) == wanted) == (region in chosen)


def test_fill_is_15_percent_and_overlaps_are_filled_once() -> None:
    picture, one = still(), item()
    expected = np.round(
        picture[400, 200] * (1 - OPACITY / 255) + np.array(PALETTE[0]) * OPACITY / 255
    )
    assert np.abs(highlight(picture, one, [0])[400, 200] - expected).max() <= 1
    part = ((110.0, 110.0), (290.0, 110.0), (290.0, 690.0), (110.0, 690.0))
    shapes = [[part, part[:2], part], [], [], []]
    assert np.abs(highlight(picture, one, [0], polygons=shapes)[400, 200] - expected).max() <= 1


def test_outlines_follow_polygons_or_else_the_box() -> None:
    picture, one = still(), item()
    triangle = ((200.0, 100.0), (300.0, 700.0), (100.0, 700.0))
    drawn = highlight(picture, one, [0, 1], polygons=[[triangle], [], [], []])
    assert tuple(drawn[700, 200]) == PALETTE[0]
    assert np.array_equal(drawn[150, 110], picture[150, 110]), (
        "inside of the box, outside of the polygon"
    )
    assert tuple(drawn[400, 400]) == PALETTE[1]


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(800, 1920, 224), (800, 1920, 384), (304, 720, 224), (1080, 1920, 384), (192, 192, 96)],
)
def test_the_outline_survives_resizing_to_the_models_input(
    height: int, width: int, size: int
) -> None:
    """Somewhere on the line, the resized picture contains the colour nearly unmixed."""
    scale = height / 800
    drawn = highlight(still(height, width), item(scale), [PERSON_1], image_size=size)
    small = np.asarray(
        Image.fromarray(drawn).resize(
            (round(width * size / height), size), Image.Resampling.BILINEAR
        )
    ).astype(int)
    row = small[round(400 * scale * size / height)]
    assert np.abs(row - np.array(PALETTE[PERSON_1])).max(axis=-1).min() < 60
    assert outline_width(1920, 800) == 7
    assert outline_width(width, height, size) * size / min(height, width) >= 2


def test_box_at_the_edge_keeps_all_four_sides_visible() -> None:
    picture = still()
    drawn = highlight(picture, item(), [PERSON_3])
    assert tuple(drawn[400, 1199 - 3]) == PALETTE[3]
    assert tuple(drawn[799 - 3, 1000]) == PALETTE[3]


def test_palette_has_55_distinguishable_colours() -> None:
    """CIE76 distance in CIELAB (D65), written out here; 2.3 is a just noticeable difference."""

    def lab(rgb: tuple[int, int, int]) -> NDArray[np.float64]:
        linear = [
            ((v / 255 + 0.055) / 1.055) ** 2.4 if v / 255 > 0.04045 else v / 255 / 12.92
            for v in rgb
        ]
        matrix = np.array(
            [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
        )
        f = np.array(
            [
                t ** (1 / 3) if t > 216 / 24389 else (24389 / 27 * t + 16) / 116
                for t in matrix @ linear / (0.9505, 1, 1.089)
            ]
        )
        return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])

    assert len(set(PALETTE)) == 55
    assert (
        min(float(np.linalg.norm(lab(a) - lab(b))) for a, b in combinations((*PALETTE, GREY), 2))
        > 24
    )
    one = item()
    many = VCRItem(
        "m",
        one.media,
        (ImageRegion("person", (10, 10, 200, 200)),) * 56,
        one.question,
        one.answers,
        one.rationales,
    )
    assert tuple(highlight(still(), many, [55])[100, 10]) == PALETTE[0]


def test_what_cannot_be_drawn_is_refused() -> None:
    one = item()
    with pytest.raises(ValueError, match=r"expected uint8 RGB \[H, W, 3\]"):
        highlight(np.zeros((8, 8), np.uint8), one, [])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has regions 0 to 3, mentioned are"):
        highlight(still(), one, [4])
    with pytest.raises(ValueError, match="4 regions, but outlines were given for 1"):
        highlight(still(), one, [0], polygons=[[]])


def test_vcrs_made_up_official_files_can_be_drawn(samples: object, tmp_path: Path) -> None:
    from allinone.finetune.annotations import vcr

    sample = samples("vcr")  # type: ignore[operator]
    found = vcr.load(sample.annotations, "val", images=sample.media).items[0]
    assert isinstance(found, VCRItem)
    picture = np.asarray(Image.open(sample.media / found.media.path).convert("RGB"))
    shown = [
        highlight(
            picture, found, mentioned(found, task), polygons=vcr.outlines(sample.media, found)
        )
        for task in ("answer", "rationale")
    ]
    assert not np.array_equal(shown[0], picture)
    assert not np.array_equal(*shown)
