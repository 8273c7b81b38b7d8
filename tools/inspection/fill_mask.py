"""Predicts the masked words of a text, given a video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from allinone.tools.inspection.checkpoints import LoadedModel
from allinone.tools.inspection.media_inputs import InputClip, InputText, TextReader


@dataclass(frozen=True)
class Guess:
    """A word piece predicted at a [MASK]."""

    token: int
    word: str
    probability: float
    """Over the full vocabulary."""
    rank: int
    """Among all word pieces; 1 is the most probable."""


@torch.inference_mode()
def fill_masks(
    loaded: LoadedModel,
    reader: TextReader,
    clip: InputClip,
    text: InputText,
    top: int,
    wanted: Sequence[int | None] = (),
) -> list[list[Guess]]:
    """Predict each [MASK] of a text independently.

    Args:
        loaded: The model.
        reader: The tokenizer that made `text`.
        clip: The video.
        text: A text with at least one [MASK].
        top: Number of word pieces per [MASK].
        wanted: For each [MASK] a word piece that is also returned, or None; empty for none.

    Returns:
        For each [MASK], the `top` most probable word pieces, best first, followed by the wanted
        one if it is not among them. Special tokens such as [SEP] are excluded.

    Raises:
        InputError: The model has no MLM head.
    """
    loaded.needs("mlm_head")
    device = loaded.device
    output = loaded.model(clip.pixels.to(device), text.ids.to(device), text.mask.to(device))
    # the head at the masks only: [masks, V] instead of [L, V]
    hidden = output.text[0, list(text.mask_positions)]
    probabilities = loaded.model.mlm_head(hidden).softmax(-1).cpu()
    tokenizer = reader.tokenizer
    first = tokenizer.first_word_id
    # after the softmax: probabilities stay those over the full vocabulary
    words = probabilities[:, first : tokenizer.size]
    orders = words.argsort(descending=True, stable=True).tolist()
    found = []
    for values, order, token in zip(words, orders, wanted or [None] * len(orders), strict=True):
        shown = order[:top]
        if token is not None and token - first not in shown:
            shown.append(token - first)
        found.append(
            [
                Guess(
                    first + index,
                    reader.word(first + index),
                    float(values[index]),
                    order.index(index) + 1,
                )
                for index in shown
            ]
        )
    return found
