"""Movie stills for the demo of VCR: figures of several clips in one picture, with boxes, outlines,
and questions that only the highlighting answers.

A question points at a figure by its detection's number. Another figure of the same picture lends
one wrong answer, so whoever ignores where the highlighted figure is does no better than guessing
between the two.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from allinone.examples.demo_clips import TONES, DemoClip, middle_frame, pick
from allinone.finetune.annotations.common import place_in_order

CELL, SIDE = 128, 256
"""Pixels of a figure's place and of the whole picture: two by two places."""
PLACES = ("top left", "top right", "bottom left", "bottom right")
FIGURES = (2, 3, 4)
QUESTIONS_PER_STILL = 2
STILLS = 600
"""At most so many per split."""
MOVIE = 10
"""Stills of one made-up movie; whole movies are held out."""
WHITE = 250
"""Brighter than this in all three channels is background."""
OUTLINE_ROWS = 16
"""Rows of a figure's outline."""

Tokens = list[str | list[int]]


@dataclass(frozen=True)
class _Figure:
    clip: DemoClip
    place: int

    @property
    def does(self) -> str:
        return _does(self.clip)

    @property
    def where(self) -> str:
        return PLACES[self.place]


def _does(clip: DemoClip) -> str:
    article = "an" if clip.role[:1] in "aeiou" else "a"
    return clip.doing or (f"working as {article} {clip.role}" if clip.role else "")


def write(clips: Sequence[DemoClip], split: str, folder: Path) -> list[dict[str, Any]]:
    """Write the stills of a split with their metadata files into `folder`; returns the rows of
    {split}.jsonl.

    Every figure with an action or a job stands in the middle of one still; others join it. Uses
    only `clips`, so splits share no figure.
    """
    people = [clip for clip in clips if clip.tone and clip.who and (clip.doing or clip.role)]
    asked_about = sorted(people, key=lambda clip: place_in_order(f"still {clip.number}"))[:STILLS]
    things = [clip for clip in clips if not clip.who and not clip.tone]
    actions = sorted({_does(clip) for clip in people})
    rows: list[dict[str, Any]] = []
    for number, clip in enumerate(asked_about):
        key = f"{split} {clip.number}"
        figures = _cast(clip, people, things, key)
        movie = f"demo_{split}_{number // MOVIE:04d}"
        name = f"{movie}/{number:06d}@0"
        objects = [
            "person" if figure.clip.who else figure.clip.base.split()[-1] for figure in figures
        ]
        _write_still(folder / f"{name}.jpg", folder / f"{name}.json", figures, objects)
        for asked, row in enumerate(_questions(figures, actions, key)):
            shared = {
                "movie": movie,
                "objects": objects,
                "img_fn": f"{name}.jpg",
                "metadata_fn": f"{name}.json",
            }
            ids = {
                "img_id": f"{split}-{number}",
                "question_number": asked,
                "annot_id": f"{split}-{len(rows)}",
            }
            rows.append(
                {**shared, **row, **ids, "match_fold": f"{split}-0", "match_index": len(rows)}
            )
    return rows


def _cast(
    clip: DemoClip, people: Sequence[DemoClip], things: Sequence[DemoClip], key: str
) -> list[_Figure]:
    """The clip's figure, one person that differs in action and tone, and up to two more persons or
    things, in detections of mixed order."""
    rivals = [
        other
        for other in people
        if (other.doing or other.role) != (clip.doing or clip.role) and other.tone != clip.tone
    ]
    rival = rivals[int(place_in_order(f"{key} rival") * len(rivals))]
    extra = FIGURES[int(place_in_order(f"{key} size") * len(FIGURES))] - 2
    pool = (*things, *people)
    drawn = [pool[int(place_in_order(f"{key} extra {k}") * len(pool))] for k in range(2 * extra)]
    chosen = [
        clip,
        rival,
        *[other for other in dict.fromkeys(drawn) if other not in (clip, rival)][:extra],
    ]
    places = pick(PLACES, len(chosen), f"{key} places")
    figures = [
        _Figure(figure, PLACES.index(place)) for figure, place in zip(chosen, places, strict=True)
    ]
    return sorted(figures, key=lambda figure: place_in_order(f"{key} order {figure.clip.number}"))


def _write_still(
    image: Path, metadata: Path, figures: Sequence[_Figure], objects: Sequence[str]
) -> None:
    canvas = np.full((SIDE, SIDE, 3), 255, np.uint8)
    boxes, outlines = [], []
    for figure in figures:
        top, left = CELL * (figure.place // 2), CELL * (figure.place % 2)
        shown = middle_frame(figure.clip)
        canvas[top : top + CELL, left : left + CELL] = shown
        polygon = outline(shown)
        xs, ys = [x + left for x, _ in polygon], [y + top for _, y in polygon]
        boxes.append([float(min(xs)), float(min(ys)), float(max(xs)), float(max(ys)), 1.0])
        outlines.append([[[float(x), float(y)] for x, y in zip(xs, ys, strict=True)]])
    image.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(canvas).save(image, quality=92)
    content = {
        "boxes": boxes,
        "segms": outlines,
        "names": list(objects),
        "width": SIDE,
        "height": SIDE,
    }
    metadata.write_text(json.dumps(content))


def outline(picture: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """A polygon around all that is not background: down its right side, up its left one. The whole
    picture where all is background."""
    ink = picture.min(axis=-1) < WHITE
    rows = np.flatnonzero(ink.any(axis=1))
    if rows.size == 0:
        rows, ink = np.arange(picture.shape[0]), np.ones(picture.shape[:2], bool)
    chosen = [
        int(row)
        for row in np.unique(np.linspace(rows[0], rows[-1], OUTLINE_ROWS).round().astype(int))
        if ink[row].any()
    ]
    sides = [
        (int(np.flatnonzero(ink[row])[0]), int(np.flatnonzero(ink[row])[-1]), row) for row in chosen
    ]
    return [(right, row) for _, right, row in sides] + [
        (left, row) for left, _, row in reversed(sides)
    ]


def _questions(
    figures: Sequence[_Figure], actions: Sequence[str], key: str
) -> list[dict[str, Any]]:
    """Questions about different figures: what one does, which skin tone it has, where it is; the
    rationale tells another thing about it."""
    people = [index for index, figure in enumerate(figures) if figure.does and figure.clip.tone]
    order = sorted(people, key=lambda index: place_in_order(f"{key} asked {index}"))
    rows = []
    for asked, index in enumerate(order[:QUESTIONS_PER_STILL]):
        kind = ("does", "tone", "where")[int(place_in_order(f"{key} kind {asked}") * 3)]
        place = f"{key} {asked}"
        question, answers, label = _asked(figures, index, kind, actions, place)
        rationales, rationale = _reasons(figures, index, kind, actions, place)
        labels = {"answer_label": label, "rationale_label": rationale}
        rows.append(
            {
                "question": question,
                "answer_choices": answers,
                "rationale_choices": rationales,
                **labels,
            }
        )
    return rows


def _asked(
    figures: Sequence[_Figure], index: int, kind: str, actions: Sequence[str], key: str
) -> tuple[Tokens, list[Tokens], int]:
    """(question, answers, place of the right answer)."""
    if kind == "where":
        return (
            ["Where", "is", [index], "?"],
            [_said(index, f"is in the {place}") for place in PLACES],
            figures[index].place,
        )
    if kind == "tone":
        tone = figures[index].clip.tone
        options = _four(tone, [figure.clip.tone for figure in figures], TONES, key)
        question: Tokens = ["What", "skin", "tone", "does", [index], "have", "?"]
        return (
            question,
            [_said(index, f"has {option} skin") for option in options],
            options.index(tone),
        )
    does = figures[index].does
    options = _four(does, [figure.does for figure in figures], actions, key)
    return (
        ["What", "is", [index], "doing", "?"],
        [_said(index, f"is {option}") for option in options],
        options.index(does),
    )


def _reasons(
    figures: Sequence[_Figure], index: int, kind: str, actions: Sequence[str], key: str
) -> tuple[list[Tokens], int]:
    """True and false sentences about the figure, none about what was asked: its place, or what it
    does where the place was asked."""
    if kind == "where":
        does = figures[index].does
        options = _four(does, [figure.does for figure in figures], actions, f"{key} because")
        return [_said(index, f"is the one who is {option}") for option in options], options.index(
            does
        )
    options = pick(PLACES, len(PLACES), f"{key} because")
    return [_said(index, f"is the one in the {option}") for option in options], options.index(
        figures[index].where
    )


def _said(index: int, words: str) -> Tokens:
    return [[index], *words.split(), "."]


def _four(right: str, shown: Sequence[str], pool: Sequence[str], key: str) -> list[str]:
    """The right option and three others in an order fixed by `key`: one that another figure of the
    picture has, two that none has, as in VCR, whose wrong answers are right ones of other
    pictures."""
    wrong = [option for option in dict.fromkeys(shown) if option not in ("", right)][:1]
    others = pick(
        [option for option in pool if option not in (right, *wrong)], len(pool), f"{key} wrong"
    )
    wrong += sorted(others, key=lambda option: option in shown)[: 3 - len(wrong)]
    return pick([right, *wrong], 4, f"{key} options")
