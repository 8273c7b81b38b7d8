"""Masked-word predictions with the patches that support them, as a figure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from allinone.common.errors import InputError
from allinone.common.formatting import percent_text
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
    PictureGrid,
    Section,
    Sheet,
    cells,
    outline,
    rgb,
    text_style,
    tinted,
)
from allinone.tools.inspection.fill_mask import Guess, fill_masks
from allinone.tools.inspection.media_inputs import MASK_TOKEN, InputClip, TextReader, upscaled
from allinone.tools.inspection.patch_attribution import patch_relevance

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OUTLINED = 5
"""Number of outlined patches: those with the highest attribution, over all frames."""
LEFT = 280
"""Width of the predictions, pixels."""
SHADE = 0.8
"""How dark a patch without attribution is drawn: 0 not at all, 1 black."""
HEAT = (255, 200, 0)
"""Colour of support: on a dark clip brightness alone would show nothing."""
TRACK = (234, 238, 242)
"""Behind the bars."""
HEAT_STRENGTH = 0.45
"""Share of that colour in the patch with the most support; the rest is the picture."""
LEAD = (
    "The model reads the frames and the sentence with its masked words. Left: the most probable"
    " words for each mask, with their probabilities; the correct word in green, with its rank"
    " among all words where others are more probable. Right: how much"
    " each patch supports the first of them (attention from the mask to the patch, weighted by its"
    " effect on the prediction; see tools/cloze.py for a comparison with plain attention and"
    " word-patch alignment). Above a frame: its share."
)


@dataclass(frozen=True)
class MaskPrediction:
    """The predictions for one masked word."""

    answer: str | None
    """The correct word, if it was given."""
    token: int | None
    """Its word piece; None also where the vocabulary lacks it."""
    guesses: list[Guess]
    """Best first; the last one is the correct word, if it is not among the best."""
    relevance: np.ndarray
    """float32 [T, P], sum 1: how much each patch supports the first guess."""

    @property
    def answer_text(self) -> str:
        """The correct word with its rank; empty if it was not given."""
        if not self.answer:
            return ""
        ranks = [guess.rank for guess in self.guesses if guess.token == self.token]
        return f"{self.answer}, {f'rank {ranks[0]:,}' if ranks else 'not in the vocabulary'}"


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
        """Keep the word, and leave the mask alone."""
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
    wanted: list[int | None] = []
    for answer in answers:
        ids = reader.tokenizer.ids(answer) if answer else []
        # a word with characters that the vocabulary lacks is [UNK], which is never predicted
        known = [token for token in ids if token >= reader.tokenizer.first_word_id]
        wanted.append(known[0] if known else None)
        if answer and len(pieces := reader.word_pieces(answer)) != 1:
            raise InputError(
                f"--text {text!r}: {answer!r} is {len(pieces)} word pieces ({' '.join(pieces)});"
                f" write one {MASK_TOKEN} for each"
            )
    guesses = fill_masks(loaded, reader, clip, masked, top, wanted)
    relevance = patch_relevance(loaded, clip, masked, [best[0].token for best in guesses])
    sentence = plain
    # one at a time: each replacement removes the first mask that is left
    for number in range(1, len(answers) + 1):
        sentence = sentence.replace(MASK_TOKEN, f"[ {number} ]", 1)
    predictions = [
        MaskPrediction(answer, token, best, patches.numpy())
        for answer, token, best, patches in zip(answers, wanted, guesses, relevance, strict=True)
    ]
    return Cloze(sentence, clip, predictions)


def _heated(patch: Image.Image, weight: float) -> Image.Image:
    return tinted(tinted(patch, BLACK, SHADE * (1 - weight)), HEAT, HEAT_STRENGTH * weight)


def _heated_white(weight: float) -> tuple[int, int, int]:
    red, green, blue = np.asarray(_heated(Image.new("RGB", (1, 1), PAPER), weight))[0, 0].tolist()
    return red, green, blue


def _overlay(picture: Image.Image, weights: np.ndarray, outlined: Sequence[int]) -> Image.Image:
    """A frame whose patches are as bright and as yellow as their weights [P], from 0 to 1."""
    image = picture.copy()
    boxes = cells(picture.width, round(len(weights) ** 0.5))
    for box, weight in zip(boxes, weights, strict=True):
        image.paste(_heated(picture.crop(box), float(weight)), box)
    for index in outlined:
        outline(image, boxes[index], ORANGE)
    return image


def _draw_attributions(
    grid: PictureGrid, row: int, prediction: MaskPrediction, pictures: Sequence[Image.Image]
) -> None:
    """One picture per frame, with its share of the attribution above."""
    relevance = prediction.relevance
    # relative to the strongest patch of all frames, so that frames can be compared
    relative = relevance / max(float(relevance.max()), 1e-12)
    strongest = np.argsort(-relevance, axis=None, kind="stable")[:OUTLINED]
    frames, patches = np.unravel_index(strongest, relevance.shape)
    for frame, picture in enumerate(pictures):
        image = _overlay(picture, relative[frame], patches[frames == frame].tolist())
        grid.show(row, frame, image, f"{100 * relevance[frame].sum():.0f} %")


def _draw_guesses(axes: Axes, number: int, prediction: MaskPrediction) -> None:
    """The guesses for one mask as bars, the correct word in green."""
    axes.text(0, 1, f"mask [ {number} ]", va="top", **text_style(HEADING, bold=True))
    if prediction.answer:
        answer = f"correct word: {prediction.answer_text}"
        axes.text(0, 0.86, answer, va="top", **text_style(SMALL, GREEN))
    start, width = 0.36, 0.42
    plot = axes.inset_axes((start, 0.04, width, 0.67))
    left_edge = -start / width
    plot.axis("off")
    plot.set_xlim(0, 1)
    plot.set_ylim(max(5, len(prediction.guesses)) - 0.5, -0.5)  # the best first
    for row, guess in enumerate(prediction.guesses):
        correct = guess.token == prediction.token
        # on a pale track, so that a bar of nearly 0 % also shows where it is
        plot.barh(row, 1, 0.6, color=rgb(TRACK))
        plot.barh(row, guess.probability, 0.6, color=rgb(GREEN if correct else SOFT))
        style = text_style(SMALL, GREEN if correct else INK, bold=correct)
        plot.text(1.04, row, percent_text(guess.probability), va="center", **style)
        plot.text(left_edge, row, guess.word, va="center", **style)


def _section(cloze: Cloze) -> Section:
    """The frames, then one row per mask."""
    frames = len(cloze.clip.pictures)
    most = max(len(prediction.guesses) for prediction in cloze.predictions)
    side = max(min(190, 900 // frames), 96, 30 * most)  # the bars need 20 pixels each
    pictures = [upscaled(picture, side) for picture in cloze.clip.pictures]
    legend = [
        (_heated_white(0.0), "white with the least support"),
        (_heated_white(1.0), "with the most"),
        (ORANGE, f"outline: the {OUTLINED} patches with the most support"),
    ]
    rows = 1 + len(cloze.predictions)
    grid = PictureGrid(rows, frames, side, left=LEFT, row_gap=36, legend=legend)
    for frame, picture in enumerate(pictures):
        grid.show(0, frame, picture, f"frame {frame + 1}")
    answers = []
    for number, prediction in enumerate(cloze.predictions, start=1):
        _draw_guesses(grid.left[number], number, prediction)
        _draw_attributions(grid, number, prediction, pictures)
        best = prediction.guesses[0]
        correct = f", hidden was {prediction.answer_text}" if prediction.answer else ""
        answers.append(f"mask {number}: {best.word} ({100 * best.probability:.0f} %){correct}")
    return Section(f"“{cloze.sentence}”", grid.image(), alt="; ".join(answers))


def cloze_figure(clozes: Sequence[Cloze], source: str) -> Sheet:
    """All clips in one figure; `source` names the model and the files."""
    title = "Masked-word prediction: which patches support a word"
    return Sheet(title, LEAD, [_section(cloze) for cloze in clozes], source)
