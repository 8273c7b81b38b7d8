"""Masked-word predictions with the patches that support them, as a figure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from allinone.common.errors import InputError
from allinone.tools.inspection.checkpoints import LoadedModel
from allinone.tools.inspection.figure import (
    BLACK,
    GREEN,
    HEADING,
    INK,
    ORANGE,
    PAPER,
    SMALL,
    SOFT,
    Section,
    Sheet,
    cells,
    column,
    font,
    label,
    outline,
    row,
    tinted,
)
from allinone.tools.inspection.fill_mask import Guess, fill_masks
from allinone.tools.inspection.media_inputs import MASK_TOKEN, InputClip, TextReader, upscaled
from allinone.tools.inspection.patch_attribution import patch_relevance

OUTLINED = 5
"""Number of outlined patches: those with the highest attribution, over all frames."""
LEFT = 280
"""Width of the predictions, pixels."""
SHADE = 0.8
"""How dark a patch without attribution is drawn: 0 not at all, 1 black."""
LEAD = (
    "The model reads the frames and the sentence with its masked words. Left: the most probable"
    " words for each mask, with their probabilities; the correct word in green. Right: how much"
    " each patch supports the first of them (attention from the mask to the patch, weighted by its"
    " effect on the prediction; see tools/cloze.py for a comparison with plain attention and"
    " word-patch alignment). Percentages are the shares of the frames."
)


@dataclass(frozen=True)
class MaskPrediction:
    """The predictions for one masked word."""

    answer: str | None
    """The correct word, if it was given."""
    guesses: list[Guess]
    relevance: np.ndarray
    """float32 [T, P], sum 1: how much each patch supports the first guess."""


@dataclass(frozen=True)
class Cloze:
    """One clip with a sentence."""

    sentence: str
    clip: InputClip
    predictions: list[MaskPrediction]


def split_answers(text: str) -> tuple[str, list[str | None]]:
    """Split [MASK=word] into [MASK] and the word: (text, one word or None for each mask)."""
    answers: list[str | None] = []

    def collect(match: re.Match[str]) -> str:
        answers.append(match[1].strip().lower() if match[1] else None)
        return MASK_TOKEN

    plain = re.sub(r"\[MASK(?:=([^\]]*))?\]", collect, text, flags=re.IGNORECASE)
    return plain, answers


def predict_masks(
    loaded: LoadedModel, reader: TextReader, clip: InputClip, text: str, top: int = 5
) -> Cloze:
    """Predict each masked word of a text and attribute the first guess to patches.

    Args:
        loaded: The model.
        reader: Its tokenizer.
        clip: The video.
        text: Text with [MASK] or [MASK=word].
        top: Guesses per mask.

    Raises:
        InputError: The text has no [MASK], or a word in [MASK=word] is several word pieces.
    """
    plain, answers = split_answers(text)
    masked = reader.masked(plain)
    for answer in answers:
        if answer and len(pieces := reader.word_pieces(answer)) != 1:
            raise InputError(
                f"--text {text!r}: {answer!r} is {len(pieces)} word pieces ({' '.join(pieces)});"
                f" write one {MASK_TOKEN} for each"
            )
    guesses = fill_masks(loaded, reader, clip, masked, top)
    relevance = patch_relevance(loaded, clip, masked, [best[0].token for best in guesses])
    sentence = plain
    for number in range(1, len(answers) + 1):
        sentence = sentence.replace(MASK_TOKEN, f"[ {number} ]", 1)
    predictions = [
        MaskPrediction(answer, best, patches.numpy())
        for answer, best, patches in zip(answers, guesses, relevance, strict=True)
    ]
    return Cloze(sentence, clip, predictions)


def _overlay(picture: Image.Image, weights: np.ndarray, outlined: Sequence[int]) -> Image.Image:
    """A frame whose patches are as bright as their weights [P], from 0 to 1."""
    image = picture.copy()
    boxes = cells(picture.width, round(len(weights) ** 0.5))
    for box, weight in zip(boxes, weights, strict=True):
        image.paste(tinted(picture.crop(box), BLACK, SHADE * (1 - float(weight))), box)
    for index in outlined:
        outline(image, boxes[index], ORANGE)
    return image


def _key() -> Image.Image:
    """The legend of brightness and outlines."""
    shades = [round(255 * (1 - SHADE) + SHADE * value) for value in range(256)]
    ramp = Image.linear_gradient("L").rotate(90).resize((120, 16)).point(shades)
    ring = Image.new("RGB", (16, 16), PAPER)
    outline(ring, (0, 0, 16, 16), ORANGE)
    brightness = [label("least support"), ramp.convert("RGB"), label("most support")]
    outlines = [ring, label(f"the {OUTLINED} patches with the most support")]
    return row([row(brightness, 8, middle=True), row(outlines, 8, middle=True)], 28, middle=True)


def _bars(prediction: MaskPrediction, number: int) -> Image.Image:
    """The guesses for one mask with bars, the correct word in green."""
    step, start = 24, 62
    image = Image.new("RGB", (LEFT, start + step * len(prediction.guesses)), PAPER)
    pen = ImageDraw.Draw(image)
    pen.text((0, 0), f"mask [ {number} ]", font=font(HEADING, bold=True), fill=INK)
    if prediction.answer:
        pen.text((0, 28), f"correct word: {prediction.answer}", font=font(SMALL), fill=GREEN)
    for index, guess in enumerate(prediction.guesses):
        correct = guess.word == prediction.answer
        y = start + index * step
        length = round(120 * guess.probability)
        pen.text((0, y), guess.word, font=font(SMALL, bold=correct), fill=INK)
        pen.rectangle((100, y + 2, 100 + max(1, length), y + 15), fill=GREEN if correct else SOFT)
        percent = f"{100 * guess.probability:.0f} %"
        pen.text((106 + length, y), percent, font=font(SMALL), fill=INK)
    return image


def _attributions(prediction: MaskPrediction, pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """One picture per frame, with its share of the attribution above."""
    relevance = prediction.relevance
    relative = relevance / max(float(relevance.max()), 1e-12)
    strongest = np.argsort(-relevance, axis=None, kind="stable")[:OUTLINED]
    frames, patches = np.unravel_index(strongest, relevance.shape)
    word = prediction.guesses[0].word
    return [
        column(
            [
                label(f"for “{word}”: {100 * relevance[frame].sum():.0f} %", SMALL),
                _overlay(picture, relative[frame], patches[frames == frame].tolist()),
            ],
            4,
        )
        for frame, picture in enumerate(pictures)
    ]


def _section(cloze: Cloze) -> Section:
    """The frames, then one row per mask."""
    frames = len(cloze.clip.pictures)
    side = max(96, min(190, 900 // frames))
    pictures = [upscaled(picture, side) for picture in cloze.clip.pictures]
    shown = [
        column([label(f"frame {number}"), picture], 4)
        for number, picture in enumerate(pictures, start=1)
    ]
    rows = [row([Image.new("RGB", (LEFT, 1), PAPER), *shown])]
    answers = []
    for number, prediction in enumerate(cloze.predictions, start=1):
        rows.append(row([_bars(prediction, number), *_attributions(prediction, pictures)]))
        best = prediction.guesses[0]
        correct = f", hidden was {prediction.answer}" if prediction.answer else ""
        answers.append(f"mask {number}: {best.word} ({100 * best.probability:.0f} %){correct}")
    return Section(f"“{cloze.sentence}”", column(rows, gap=14), alt="; ".join(answers))


def cloze_figure(clozes: Sequence[Cloze], source: str) -> Sheet:
    """All clips in one figure; `source` names the model and the files."""
    legend = Section("", _key(), alt="bright patches support the word most")
    title = "Masked-word prediction: which patches support a word"
    return Sheet(title, LEAD, [*(_section(cloze) for cloze in clozes), legend], source)
