"""Captions to word pieces, and whole-word masking."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

VOCABULARY = Path(__file__).parent / "vocab" / "bert-base-uncased.txt"
IGNORE = -100
KEEP_SHARE, RANDOM_SHARE = (
    0.1,
    0.1,
)  # of the masked words; the rest becomes [MASK] (BERT, Devlin et al. 2019, section 3.1)


class Tokenizer:
    """BERT's fast WordPiece tokenizer over the vocabulary that ships with the project."""

    def __init__(self, vocabulary: Path = VOCABULARY) -> None:
        from transformers import BertTokenizerFast

        pieces = vocabulary.read_text(encoding="utf-8").splitlines()
        self._fast = BertTokenizerFast(
            vocab={piece: index for index, piece in enumerate(pieces)}, do_lower_case=True
        )
        fast = self._fast
        self.pad_id, self.cls_id, self.sep_id, self.mask_id = (
            fast.pad_token_id,
            fast.cls_token_id,
            fast.sep_token_id,
            fast.mask_token_id,
        )
        self.size = len(fast)
        # ids below are special or unused entries of BERT's vocabulary, from "!" on are words
        self.first_word_id = 999

    def encode(
        self, caption: str, length: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """(ids [L], mask [L], word of each token [L], -1 outside words). Longer captions are cut,
        [SEP] stays last."""
        encoded = self._fast(caption, max_length=length, truncation=True, padding="max_length")
        words = [-1 if word is None else word for word in encoded.word_ids()]
        return (
            np.array(encoded["input_ids"], dtype=np.int64),
            np.array(encoded["attention_mask"], dtype=np.int64),
            np.array(words, dtype=np.int64),
        )

    def ids(self, text: str) -> list[int]:
        """Word pieces of a text, without special tokens and without a limit."""
        return list(self._fast(text, add_special_tokens=False)["input_ids"])

    def piece(self, token: int) -> str:
        """The word piece of one id, as the vocabulary writes it."""
        return str(self._fast.convert_ids_to_tokens(token))

    def decode(self, ids: Sequence[int]) -> str:
        """Words of these ids without special tokens."""
        return self._fast.decode(list(ids), skip_special_tokens=True)


def mask_words(
    ids: NDArray[np.int64],
    words: NDArray[np.int64],
    share: float,
    random: np.random.Generator,
    mask_id: int,
    low: int,
    high: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Whole-word masking: (masked ids [L], labels [L] with -100 where nothing was chosen).

    Words are drawn in random order until `share` of the real word pieces is chosen, rounded, at
    least one word; a word that would exceed the number is left out unless nothing is chosen yet.
    The pieces of a word share its fate: 80 % [MASK], 10 % random ids of [low, high), 10 % kept. The
    original counts padding among the candidates and so masks short captions too rarely, or not at
    all; here only real words count.
    """
    labels = np.full_like(ids, IGNORE)
    masked = ids.copy()
    real = np.flatnonzero(words >= 0)
    if real.size == 0:
        return masked, labels
    wanted = max(1, round(share * real.size))
    chosen = 0
    for word in random.permutation(np.unique(words[real])):
        places = np.flatnonzero(words == word)
        if chosen and chosen + places.size > wanted:
            continue
        fate = random.random()
        labels[places] = ids[places]
        if fate >= KEEP_SHARE + RANDOM_SHARE:
            masked[places] = mask_id
        elif fate >= KEEP_SHARE:
            masked[places] = random.integers(low, high, places.size)
        chosen += places.size
        if chosen >= wanted:
            break
    return masked, labels
