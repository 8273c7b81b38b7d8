"""Predicts the masked words of a text, given a video."""

from __future__ import annotations

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


@torch.inference_mode()
def fill_masks(
    loaded: LoadedModel, reader: TextReader, clip: InputClip, text: InputText, top: int
) -> list[list[Guess]]:
    """Predict each [MASK] of a text independently.

    Args:
        loaded: The model.
        reader: The tokenizer that made `text`.
        clip: The video.
        text: A text with at least one [MASK].
        top: Number of word pieces per [MASK].

    Returns:
        For each [MASK], the `top` most probable word pieces, best first. Special tokens such as
        [SEP] are excluded.

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
    best = words.topk(min(top, tokenizer.size - first))
    return [
        [
            Guess(first + int(index), reader.word(first + int(index)), float(probability))
            for probability, index in zip(values, indices, strict=True)
        ]
        for values, indices in zip(best.values, best.indices, strict=True)
    ]
