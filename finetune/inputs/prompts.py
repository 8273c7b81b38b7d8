"""Texts of several parts, truncated in a defined order.

The part that an item's answer depends on is truncated last.

The original joins question, options and answer into one string and cuts it at 40 tokens: if the
options are long, the answer is lost and all five inputs are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from allinone.data.text import Tokenizer

KEEP, QUESTION, LIST, CONTEXT = 0, 1, 2, 3
"""Cutting order of parts, the highest first: subtitles, the list of options, the question. A KEEP
part is cut only if it alone is too long."""


@dataclass(frozen=True)
class Part:
    """One part of a text."""

    text: str
    cut: int = KEEP
    after_sep: bool = False
    """Whether [SEP] precedes it."""


Text = tuple[Part, ...]


@dataclass(frozen=True)
class Encoded:
    """L tokens of a text."""

    ids: NDArray[np.int64]
    """int64 [L], 0 is padding."""
    mask: NDArray[np.int64]
    """int64 [L], 1 at tokens."""
    lost: bool
    """Whether a KEEP part was cut: the text limit is too small for this item."""
    shortened: bool
    """Whether anything was cut."""


def encode(tokenizer: Tokenizer, text: Text, length: int) -> Encoded:
    """Tokens of [CLS] parts [SEP], cut to `length`.

    Args:
        tokenizer: The tokenizer.
        text: The parts. Those with the highest `cut` lose tokens first, always the longest of them
            at its end, then those with the next lower value.
        length: Tokens of the result, padding included.
    """
    pieces = [tokenizer.ids(part.text) for part in text]
    # 2: [CLS] and the final [SEP]. TVQA's question with five answers has 36 words in the mean and
    # 187 at most, so at 100 tokens some texts are cut
    excess = sum(map(len, pieces)) + 2 + sum(part.after_sep for part in text) - length
    lost, shortened = False, excess > 0
    # tokens are removed one at a time, so that the parts of one level keep similar lengths
    for level in sorted({part.cut for part in text}, reverse=True):
        own = [piece for piece, part in zip(pieces, text, strict=True) if part.cut == level]
        while excess > 0 and any(own):
            max(own, key=len).pop()
            excess -= 1
            lost = lost or level == KEEP
    ids = [tokenizer.cls_id]
    for piece, part in zip(pieces, text, strict=True):
        ids += [tokenizer.sep_id, *piece] if part.after_sep and piece else piece
    ids.append(tokenizer.sep_id)
    padded = np.zeros(length, np.int64)
    padded[: len(ids)] = ids
    return Encoded(padded, (np.arange(length) < len(ids)).astype(np.int64), lost, shortened)


def plain(text: str) -> Text:
    """Make a text of one part, such as a caption or a question; it is truncated at its end."""
    return (Part(text, QUESTION),)


def option(question: str, choice: str, choices: Sequence[str] = (), context: str = "") -> Text:
    """One option of a question in the original's wording: `question Options: a b c Answer: b`.

    Args:
        question: Empty: the text is the option alone.
        choice: The option.
        choices: All options, if they are to be listed.
        context: Text before the question, such as subtitles.
    """
    if not question:
        return (Part(choice),)
    parts = [Part(context, CONTEXT)] if context else []
    parts.append(Part(question, QUESTION, after_sep=bool(context)))
    if choices:
        parts.append(Part(f"Options: {' '.join(choices)}", LIST))
    return (*parts, Part(f"Answer: {choice}"))
