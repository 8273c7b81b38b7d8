"""Movie stills for the VCR demo: figures of several clips in one image, with boxes, outlines, and
questions that can only be answered with the highlighting.

A question refers to a figure by the number of its detection. One of the wrong answers is true of
another figure in the image, so a model that ignores the highlighting can only guess between the
two.
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

FIGURE_SIDE = 128
"""Pixels of one figure."""
SIDE = 2 * FIGURE_SIDE
"""Pixels of the image, which holds two by two figures."""
POSITIONS = ("top left", "top right", "bottom left", "bottom right")
FIGURES = (2, 3, 4)
QUESTIONS_PER_STILL = 2
STILLS = 600
"""Maximum per split."""
MOVIE = 10
"""Stills per made-up movie; validation holds out complete movies."""
WHITE = 250
"""A pixel brighter than this in all three channels is background."""
OUTLINE_ROWS = 16
"""Rows of a figure's outline."""

Tokens = list[str | list[int]]


@dataclass(frozen=True)
class _Figure:
    clip: DemoClip
    position: int

    @property
    def activity(self) -> str:
        """What the figure does, as a phrase; empty if it has neither an action nor a job."""
        return _activity(self.clip)

    @property
    def position_name(self) -> str:
        """The quarter of the image that the figure is in."""
        return POSITIONS[self.position]


def _activity(clip: DemoClip) -> str:
    article = "an" if clip.role[:1] in "aeiou" else "a"
    return clip.doing or (f"working as {article} {clip.role}" if clip.role else "")


def write(clips: Sequence[DemoClip], split: str, folder: Path) -> list[dict[str, Any]]:
    """Write the stills of a split with their metadata files.

    Every person with an action or a job is the main figure of one still; others are added to it.

    Args:
        clips: Clips of this split, the only ones used, so that splits share no figure.
        split: Part of the names of movies and items.
        folder: Receives the images.

    Returns:
        The rows of {split}.jsonl.
    """
    people = [clip for clip in clips if clip.tone and clip.who and (clip.doing or clip.role)]
    main_clips = sorted(people, key=lambda clip: place_in_order(f"still {clip.number}"))[:STILLS]
    # no question asks about a thing: it has neither an activity nor a skin tone
    things = [clip for clip in clips if not clip.who and not clip.tone]
    actions = sorted({_activity(clip) for clip in people})
    rows: list[dict[str, Any]] = []
    for number, clip in enumerate(main_clips):
        key = f"{split} {clip.number}"
        figures = _choose_figures(clip, people, things, key)
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


def _choose_figures(
    clip: DemoClip, people: Sequence[DemoClip], things: Sequence[DemoClip], key: str
) -> list[_Figure]:
    """The main figure, a person who differs in action and skin tone, and up to two more people or
    things, in pseudo-random order."""
    distractors = [
        other
        for other in people
        if (other.doing or other.role) != (clip.doing or clip.role) and other.tone != clip.tone
    ]
    distractor = distractors[int(place_in_order(f"{key} rival") * len(distractors))]
    extra = FIGURES[int(place_in_order(f"{key} size") * len(FIGURES))] - 2
    pool = (*things, *people)
    # twice as many as needed, because draws may repeat
    drawn = [pool[int(place_in_order(f"{key} extra {k}") * len(pool))] for k in range(2 * extra)]
    chosen = [
        clip,
        distractor,
        *[other for other in dict.fromkeys(drawn) if other not in (clip, distractor)][:extra],
    ]
    positions = pick(POSITIONS, len(chosen), f"{key} places")
    figures = [
        _Figure(figure, POSITIONS.index(position))
        for figure, position in zip(chosen, positions, strict=True)
    ]
    return sorted(figures, key=lambda figure: place_in_order(f"{key} order {figure.clip.number}"))


def _write_still(
    image: Path, metadata: Path, figures: Sequence[_Figure], objects: Sequence[str]
) -> None:
    canvas = np.full((SIDE, SIDE, 3), 255, np.uint8)
    boxes, outlines = [], []
    for figure in figures:
        top, left = FIGURE_SIDE * (figure.position // 2), FIGURE_SIDE * (figure.position % 2)
        shown = middle_frame(figure.clip)
        canvas[top : top + FIGURE_SIDE, left : left + FIGURE_SIDE] = shown
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
    """A polygon around everything but the background, down the right side and up the left one; the
    image's own outline if all of it is background."""
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
    """Questions about different figures: their activity, skin tone, or position. The rationale
    states another attribute of the same figure."""
    people = [index for index, figure in enumerate(figures) if figure.activity and figure.clip.tone]
    order = sorted(people, key=lambda index: place_in_order(f"{key} asked {index}"))
    rows = []
    for asked, index in enumerate(order[:QUESTIONS_PER_STILL]):
        kind = ("activity", "tone", "position")[int(place_in_order(f"{key} kind {asked}") * 3)]
        question_key = f"{key} {asked}"
        question, answers, label = _asked(figures, index, kind, actions, question_key)
        rationales, rationale = _reasons(figures, index, kind, actions, question_key)
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
    """(question, answers, index of the correct answer)."""
    if kind == "position":
        return (
            ["Where", "is", [index], "?"],
            [_sentence(index, f"is in the {name}") for name in POSITIONS],
            figures[index].position,
        )
    if kind == "tone":
        tone = figures[index].clip.tone
        options = _four(tone, [figure.clip.tone for figure in figures], TONES, key)
        question: Tokens = ["What", "skin", "tone", "does", [index], "have", "?"]
        return (
            question,
            [_sentence(index, f"has {option} skin") for option in options],
            options.index(tone),
        )
    activity = figures[index].activity
    options = _four(activity, [figure.activity for figure in figures], actions, key)
    return (
        ["What", "is", [index], "doing", "?"],
        [_sentence(index, f"is {option}") for option in options],
        options.index(activity),
    )


def _reasons(
    figures: Sequence[_Figure], index: int, kind: str, actions: Sequence[str], key: str
) -> tuple[list[Tokens], int]:
    """(rationales, index of the true one) about the figure's position, or about its activity if the
    question asks for the position."""
    if kind == "position":
        activity = figures[index].activity
        options = _four(
            activity, [figure.activity for figure in figures], actions, f"{key} because"
        )
        sentences = [_sentence(index, f"is the one who is {option}") for option in options]
        return sentences, options.index(activity)
    options = pick(POSITIONS, len(POSITIONS), f"{key} because")
    sentences = [_sentence(index, f"is the one in the {option}") for option in options]
    return sentences, options.index(figures[index].position_name)


def _sentence(index: int, words: str) -> Tokens:
    return [[index], *words.split(), "."]


def _four(right: str, shown: Sequence[str], pool: Sequence[str], key: str) -> list[str]:
    """The correct option and three wrong ones, in an order that depends on `key`.

    One wrong option is true of another figure in the image, two are true of none. In VCR, too,
    wrong answers are correct answers for other images.

    Args:
        right: The correct option.
        shown: The options that are true of the figures in the image.
        pool: All options.
        key: Makes the choice differ between questions.
    """
    wrong = [option for option in dict.fromkeys(shown) if option not in ("", right)][:1]
    others = pick(
        [option for option in pool if option not in (right, *wrong)], len(pool), f"{key} wrong"
    )
    wrong += sorted(others, key=lambda option: option in shown)[: 3 - len(wrong)]
    return pick([right, *wrong], 4, f"{key} options")
