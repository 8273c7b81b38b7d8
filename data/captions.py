"""How many tokens the captions of a prepared set have, and how many a text limit cuts off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from allinone.data.index import Index
from allinone.data.loading.sampling import generator
from allinone.data.text import Tokenizer

COUNTED = 2000
"""Clips whose captions are counted, evenly spaced over the split."""
SAMPLED = 512
"""Captions from which the mean length is estimated: to 2 % if lengths deviate by half of it."""


@dataclass(frozen=True)
class CaptionLengths:
    """Tokens per caption, [CLS] and [SEP] included; sorted."""

    tokens: tuple[int, ...]
    complete: bool
    """Whether these are the captions of all clips, or those of COUNTED clips."""

    def quantile(self, share: float) -> int:
        """The smallest number of tokens that this share of the captions does not exceed."""
        return int(np.quantile(self.tokens, share, method="inverted_cdf"))

    def cut(self, limit: int) -> int:
        """Captions that have more tokens than `limit`."""
        return sum(tokens > limit for tokens in self.tokens)

    def describe(self, limit: int) -> str:
        """Length of the captions and what `limit` cuts, in one line."""
        number, cut = len(self.tokens), self.cut(limit)
        counted = f"{number:,} captions" + ("" if self.complete else " that were counted")
        return (
            f"{counted}: median {self.quantile(0.5)} tokens, 95 % at most {self.quantile(0.95)},"
            f" longest {self.tokens[-1]}; the limit of {limit} tokens cuts"
            f" {f'{cut:,} ({100 * cut / number:.3g} %)' if cut else 'none'}"
        )


def caption_lengths(folder: Path, split: str) -> CaptionLengths:
    """Count the tokens of a split's captions.

    Args:
        folder: Prepared folder.
        split: Name of the split.

    Raises:
        DataError: The folder is unfinished or damaged, or the split has no good clip.
    """
    index, tokenizer = Index(folder, split), Tokenizer()
    number = min(COUNTED, len(index))
    rows = (int((k + 0.5) * len(index) / number) for k in range(number))
    lengths = [len(tokenizer.ids(text)) + 2 for row in rows for text in index[row]["captions"]]
    return CaptionLengths(tuple(sorted(lengths)), number == len(index))


def sample_lengths(indexes: Sequence[Index], weights: Sequence[float]) -> NDArray[np.int64]:
    """Tokens of a random sample of a mixture's captions, [CLS] and [SEP] included, not cut.

    Args:
        indexes: The data sets.
        weights: Their relative shares.

    Returns:
        int64 [SAMPLED], in random order; the same for the same data sets.
    """
    random, shares = generator(0, "text lengths", 0, 0), np.array(weights)
    captions = []
    for number in random.choice(len(shares), SAMPLED, p=shares / shares.sum()):
        index = indexes[number]
        found = index[int(random.integers(len(index)))]["captions"]
        captions.append(found[int(random.integers(len(found)))])
    return Tokenizer().lengths(captions)
