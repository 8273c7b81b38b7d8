"""The heat map of masked-word predictions."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from allinone.tools.inspection.cloze_figure import MaskPrediction, _overlay
from allinone.tools.inspection.fill_mask import Guess, fill_masks


def brightness(image: Image.Image) -> np.ndarray:
    """Mean brightness of each patch of a 4 x 4 grid, [16]."""
    grey = np.asarray(image.convert("L"), dtype=float)
    return grey.reshape(4, 8, 4, 8).mean(axis=(1, 3)).ravel()


@pytest.mark.parametrize("level", [0, 40, 128, 255])
def test_support_is_visible_on_clips_of_any_brightness(level: int) -> None:
    weights = np.zeros(16)
    weights[5], weights[6] = 1.0, 0.5
    image = _overlay(Image.new("RGB", (32, 32), (level,) * 3), weights, [])
    patches = brightness(image)
    others = np.delete(patches, [5, 6])
    assert patches[5] - others.max() > 60
    assert patches[5] > patches[6] > others.max() + 20
    red, _, blue = (float(band) for band in image.getpixel((12, 12)))  # of patch 5
    assert red - blue > 60  # a colour, and not only light


def test_the_picture_remains_visible_below_the_strongest_support() -> None:
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2] = 255
    drawn = np.asarray(_overlay(Image.fromarray(stripes), np.ones(16), []).convert("L"), float)
    assert drawn[:, ::2].mean() - drawn[:, 1::2].mean() > 100


class Reader:
    """A tokenizer of three special tokens and five words."""

    tokenizer = SimpleNamespace(first_word_id=3, size=8)

    def word(self, token: int) -> str:
        return "abcde"[token - 3]


def filled(wanted: list[int | None]) -> list[list[tuple[str, int]]]:
    """(word, rank) of the two best guesses for two masks, and of the wanted words."""
    # [SEP] and words behind the tokenizer's are never guessed
    logits = torch.tensor([[0, 0, 99, 5, 4, 3, 2, 1, 99], [0, 0, 99, 1, 2, 3, 4, 5, 99.0]])
    output = SimpleNamespace(text=torch.zeros(1, 4, 1))
    model = type("Model", (), {"__call__": lambda *_: output, "mlm_head": lambda *_: logits})()
    loaded = SimpleNamespace(needs=lambda _: None, device=torch.device("cpu"), model=model)
    nothing = torch.zeros(1)
    text = SimpleNamespace(ids=nothing, mask=nothing, mask_positions=(1, 2))
    clip = SimpleNamespace(pixels=nothing)
    found = fill_masks(loaded, Reader(), clip, text, 2, wanted)  # type: ignore[arg-type]
    return [[(guess.word, guess.rank) for guess in one] for one in found]


def test_the_hidden_word_follows_the_best_guesses_with_its_rank() -> None:
    assert filled([]) == [[("a", 1), ("b", 2)], [("e", 1), ("d", 2)]]
    assert filled([6, None]) == [[("a", 1), ("b", 2), ("d", 4)], [("e", 1), ("d", 2)]]
    assert filled([3, 3]) == [[("a", 1), ("b", 2)], [("e", 1), ("d", 2), ("a", 5)]]


def test_the_hidden_words_rank_is_stated_in_any_case() -> None:
    guesses = [Guess(5, "cat", 0.9, 1), Guess(9, "dog", 0.0001, 1234)]
    relevance = np.zeros((1, 4))
    assert MaskPrediction("dog", 9, guesses, relevance).answer_text == "dog, rank 1,234"
    assert MaskPrediction("cat", 5, guesses, relevance).answer_text == "cat, rank 1"
    assert MaskPrediction("日", None, guesses, relevance).answer_text == "日, not in the vocabulary"
    assert MaskPrediction(None, None, guesses, relevance).answer_text == ""
