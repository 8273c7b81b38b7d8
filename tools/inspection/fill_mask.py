"""The model's words for the gaps of a text."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from allinone.tools.inspection.checkpoints import LoadedModel
from allinone.tools.inspection.media_inputs import InputClip, TextReader, Words


@dataclass(frozen=True)
class Guess:
    """A word piece for a gap."""

    token: int
    word: str
    probability: float
    """Over the whole vocabulary."""


@torch.inference_mode()
def fill_gaps(
    loaded: LoadedModel, reader: TextReader, clip: InputClip, words: Words, top: int
) -> list[list[Guess]]:
    """The `top` likeliest word pieces of every gap, best first, each gap on its own. Special tokens
    are no words and are left out."""
    loaded.needs("mlm_head")
    device = loaded.device
    text = loaded.model(clip.pixels.to(device), words.ids.to(device), words.mask.to(device)).text
    chances = loaded.model.mlm_head(text[0, list(words.gaps)]).softmax(-1).cpu()
    first = reader.tokenizer.first_word_id
    best = chances[:, first : reader.tokenizer.size].topk(min(top, reader.tokenizer.size - first))
    return [
        [
            Guess(first + int(token), reader.word(first + int(token)), float(chance))
            for chance, token in zip(row_chances, row_tokens, strict=True)
        ]
        for row_chances, row_tokens in zip(best.values, best.indices, strict=True)
    ]
