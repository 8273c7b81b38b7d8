"""Texts made of parts of which some may be cut and others must not: what decides an item is never
lost to the text limit.

The original joins question, options and answer into one string and cuts it at 40 tokens: where the
options are long, the answer is gone and all five inputs are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from allinone.data.text import Tokenizer

KEEP, QUESTION, LIST, CONTEXT = 0, 1, 2, 3
"""How readily a part is cut, the highest first: subtitles, the list of options, the question; what
decides only where it alone is too long."""


@dataclass(frozen=True)
class Part:
    """A piece of a text."""

    text: str
    cut: int = KEEP
    after_sep: bool = False
    """Whether a [SEP] stands before it."""


Text = tuple[Part, ...]


@dataclass(frozen=True)
class Encoded:
    """L tokens of a text."""

    ids: NDArray[np.int64]
    """int64 [L], 0 is padding."""
    mask: NDArray[np.int64]
    """int64 [L], 1 at tokens."""
    lost: bool
    """Whether something that decides was cut: the text limit is too small for this item."""
    shortened: bool
    """Whether anything was cut."""


def encode(tokenizer: Tokenizer, text: Text, length: int) -> Encoded:
    """[CLS] parts [SEP], cut to `length` tokens: of the parts that are cut first the longest loses
    its end, then the next kind."""
    pieces = [tokenizer.ids(part.text) for part in text]
    excess = sum(map(len, pieces)) + 2 + sum(part.after_sep for part in text) - length
    lost, shortened = False, excess > 0
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
    """A text that is cut at its end: a caption, a question."""
    return (Part(text, QUESTION),)


def option(question: str, choice: str, choices: Sequence[str] = (), context: str = "") -> Text:
    """One option of a question, as the original words it: `question Options: all of them Answer:
    this one`; the option alone without a question."""
    if not question:
        return (Part(choice),)
    parts = [Part(context, CONTEXT)] if context else []
    parts.append(Part(question, QUESTION, after_sep=bool(context)))
    if choices:
        parts.append(Part(f"Options: {' '.join(choices)}", LIST))
    return (*parts, Part(f"Answer: {choice}"))
