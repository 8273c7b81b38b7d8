"""Captions → word pieces, and whole-word masking.

Letters: L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from allinone.common.errors import DataError

if TYPE_CHECKING:
    from transformers import BertTokenizerFast

VOCABULARY = Path(__file__).parent / "vocab" / "bert-base-uncased.txt"
IGNORE = -100
"""Label of tokens without a loss; torch's default `ignore_index`."""
KEEP_SHARE = 0.1
"""Share of the chosen words that stay as they are (BERT, Devlin et al. 2019, section 3.1)."""
RANDOM_SHARE = 0.1
"""Share of the chosen words whose pieces become random ones; the rest becomes [MASK]."""


class Tokenizer:
    """BERT's fast WordPiece tokenizer with the vocabulary that ships with the project."""

    def __init__(self, vocabulary: Path = VOCABULARY) -> None:
        self._fast = _from_vocabulary(vocabulary)
        self.pad_id = self._fast.pad_token_id
        self.cls_id = self._fast.cls_token_id
        self.sep_id = self._fast.sep_token_id
        self.mask_id = self._fast.mask_token_id
        self.size = len(self._fast)
        # Lower ids are special or unused entries of BERT's vocabulary; words begin with "!".
        self.first_word_id = 999

    def encode(
        self, caption: str, length: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Tokenise a caption, padded or cut to `length` tokens with [SEP] last.

        Returns:
            (ids, mask, words), each int64 [L]: mask is 1 at tokens, words has the number of each
            token's word and -1 outside of words.
        """
        encoded = self._fast(caption, max_length=length, truncation=True, padding="max_length")
        words = [-1 if word is None else word for word in encoded.word_ids()]
        return (
            np.array(encoded["input_ids"], dtype=np.int64),
            np.array(encoded["attention_mask"], dtype=np.int64),
            np.array(words, dtype=np.int64),
        )

    def ids(self, text: str) -> list[int]:
        """Return the word pieces of a text, without special tokens and without a limit."""
        return list(self._fast(text, add_special_tokens=False)["input_ids"])

    def lengths(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return the tokens of each text, [CLS] and [SEP] included, without a limit."""
        encoded = self._fast(list(texts))["input_ids"]
        return np.array([len(ids) for ids in encoded], dtype=np.int64)

    def piece(self, token: int) -> str:
        """Return the word piece of one id, as the vocabulary spells it."""
        return str(self._fast.convert_ids_to_tokens(token))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of these ids, without special tokens."""
        return self._fast.decode(list(ids), skip_special_tokens=True)


def _from_vocabulary(vocabulary: Path) -> BertTokenizerFast:
    from transformers import BertTokenizerFast

    pieces = vocabulary.read_text(encoding="utf-8-sig").splitlines()
    return BertTokenizerFast(
        vocab={piece: index for index, piece in enumerate(pieces)}, do_lower_case=True
    )


def fast_tokenizer(length: int, folder: Path | None = None) -> BertTokenizerFast:
    """transformers' tokenizer, as Tokenizer uses it.

    Args:
        length: Most tokens of a text, `model_max_length`.
        folder: Take the tokenizer that was saved here, if there is one.

    Raises:
        DataError: The saved tokenizer is damaged, or there is no vocabulary.
    """
    from transformers import BertTokenizerFast

    try:
        if folder is not None and (folder / "tokenizer.json").is_file():
            # by its class: no file of the folder can name code to run
            tokenizer = BertTokenizerFast.from_pretrained(folder, local_files_only=True)
        else:
            tokenizer = _from_vocabulary(VOCABULARY)
    except Exception as error:
        raise DataError(f"{folder or VOCABULARY}: the tokenizer cannot be read: {error}") from error
    tokenizer.model_max_length = length
    tokenizer.init_kwargs["model_max_length"] = length
    return tokenizer


def mask_words(
    ids: NDArray[np.int64],
    words: NDArray[np.int64],
    share: float,
    random: np.random.Generator,
    mask_id: int,
    low: int,
    high: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose whole words for MLM and mask them.

    Words are taken in random order until `share` of the real word pieces is chosen, rounded, at
    least one word; a word that would exceed that number is skipped unless nothing is chosen yet.
    All pieces of a word are treated alike: 80 % become [MASK], 10 % random ids, 10 % stay. The
    original code counts padding among the candidates, and so masks short captions too rarely or
    not at all; here only real words count.

    Args:
        ids: int64 [L].
        words: int64 [L], number of each token's word, -1 outside of words.
        share: Share of the real word pieces to choose.
        random: The sample's generator.
        mask_id: Id of [MASK].
        low: Smallest random id.
        high: Random ids are below this.

    Returns:
        (masked ids [L], labels [L]); labels are IGNORE where nothing was chosen.
    """
    labels = np.full_like(ids, IGNORE)
    masked = ids.copy()
    # The number and order of the draws below are part of the training order: exact resume needs
    # them unchanged.
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
