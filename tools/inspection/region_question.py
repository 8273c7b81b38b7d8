"""Questions about regions of a picture, as models that were fine-tuned for VCR are asked.

Regions are given as NAME:X1,Y1,X2,Y2 and are numbered from 1; texts refer to them by [1] or [1,2].
They are named and drawn as in training (finetune/tasks/vcr.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from allinone.common.errors import InputError
from allinone.finetune.annotations.schema import ImageRegion, Media, VCRItem
from allinone.finetune.annotations.vcr import Tokens
from allinone.finetune.inputs.prompts import Text
from allinone.finetune.tasks.options import VCROptions
from allinone.finetune.tasks.vcr import VCRExamples
from allinone.model import AllInOneConfig

_REGION = re.compile(
    r"\s*([^:]*[^:\s])\s*:\s*" + r"\s*,\s*".join([r"(\d+(?:\.\d*)?)"] * 4) + r"\s*"
)
_REFERENCE = re.compile(r"\[\s*(\d+(?:\s*,\s*\d+)*)\s*\]")

Paint = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""RGB picture [H, W, 3] → the same with regions drawn."""


@dataclass(frozen=True)
class RegionQuestion:
    """A question with its options, ready for the model."""

    part: str
    """Whose head scores the options: answer or rationale."""
    head: str
    """The same, for the user."""
    texts: tuple[Text, ...]
    """One for each option."""
    paint: Paint | None
    """Draws the regions that the texts mention; None: there are none, or the model was trained
    without drawn regions."""
    notes: tuple[str, ...]
    """For the user."""


def region_question(
    question: str,
    choices: Sequence[str],
    regions: Sequence[str],
    given_answer: str,
    config: AllInOneConfig,
) -> RegionQuestion:
    """Make the inputs of a question.

    Args:
        question: The question.
        choices: Answers; or rationales, if `given_answer` is not empty.
        regions: NAME:X1,Y1,X2,Y2 in pixels of the upright picture.
        given_answer: The answer that the rationales explain.
        config: Of the model; "task" holds highlight and naming of its training.

    Raises:
        InputError: A region is not written as above, or a text mentions one that is not given.
    """
    task = config.task
    found = tuple(_region(text) for text in regions)
    options = VCROptions(
        highlight="none" if task.get("highlight") == "none" else "boxes",
        naming=task.get("naming", VCROptions().naming),
    )
    listed = tuple(_tokens(choice, len(found), "--choices") for choice in choices)
    answers = (_tokens(given_answer, len(found), "--given-answer"),) if given_answer else listed
    item = VCRItem(
        "question",
        Media("picture", "picture"),
        found,
        _tokens(question, len(found), "--question"),
        answers,
        listed if given_answer else (),
        answer=0,
    )
    examples = VCRExamples([item], options, Path(), config.image_size, every_answer=False)
    example = examples(0, None)
    look = example.looks[1 if given_answer else 0]
    drawn = look.paint if _REFERENCE.search(" ".join((question, given_answer, *choices))) else None
    notes = []
    if drawn and task.get("highlight") == "masks":
        notes.append("the model was trained with outlines of the regions; their boxes are drawn")
    return RegionQuestion(
        "rationale" if given_answer else "answer",
        f"VCR head for {'reasons' if given_answer else 'answers'}",
        # with a given answer, the first text is that answer's own
        example.texts[len(example.texts) - len(listed) :],
        _Checked(drawn, found) if drawn else None,
        tuple(notes),
    )


def _region(text: str) -> ImageRegion:
    match = _REGION.fullmatch(text)
    if match is None:
        raise InputError(
            f"--regions {text!r} is not NAME:X1,Y1,X2,Y2 in pixels, for example"
            " person:10,20,110,220"
        )
    x1, y1, x2, y2 = map(float, match.groups()[1:])
    if x1 >= x2 or y1 >= y2:
        raise InputError(f"--regions {text!r} is empty: X1 must be below X2, and Y1 below Y2")
    return ImageRegion(match[1], (x1, y1, x2, y2))


def _tokens(text: str, regions: int, option: str) -> Tokens:
    """The text between references, and the indices of each reference."""
    tokens: list[str | tuple[int, ...]] = []
    # with one group, split returns text and group in turn
    for number, part in enumerate(_REFERENCE.split(text)):
        if number % 2 == 0:
            tokens += [part.strip()] if part.strip() else []
            continue
        indices = tuple(int(index) - 1 for index in part.split(","))
        if not all(0 <= index < regions for index in indices):
            raise InputError(
                f"{option} mentions region [{part}], but --regions gives {regions}; they are"
                " numbered from 1"
            )
        tokens.append(indices)
    return tuple(tokens)


@dataclass(frozen=True)
class _Checked:
    """Draws regions, once it is known that they are inside the picture."""

    paint: Paint
    regions: tuple[ImageRegion, ...]

    def __call__(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = picture.shape[:2]
        for number, region in enumerate(self.regions, start=1):
            if region.box[2] > width or region.box[3] > height:
                raise InputError(
                    f"--regions: region {number}, {region.name}, ends at"
                    f" {region.box[2]:g}, {region.box[3]:g}; the picture has {width} x {height}"
                    " pixels"
                )
        return self.paint(picture)
