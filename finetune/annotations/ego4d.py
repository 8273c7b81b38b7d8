"""Ego4D multiple choice as described by All-in-one: one clip, four narrations, zero-shot.

This is not EgoMCQ (see `egomcq`).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from allinone.finetune.annotations.common import Builder, RowError, check_split, find, table
from allinone.finetune.annotations.schema import AnnotationError, ChoiceItem, Media, Split

SPLITS = ("val",)
OPTIONS = 4
WINDOW_FRAMES, FRAMES_PER_SECOND = 120, 30.0
"""Window around the annotated frame. The list gives frames without a rate; 30 per second is
assumed, which is wrong for the few videos with 60."""
_SOURCE = "mc_val.csv of All-in-one's metadata (the item list was not published elsewhere)"


def load(folder: Path, split: str, *, tags: str = "keep") -> Split:
    """Read mc_val.csv.

    `question` and `answers` are Python literals: (uid, frame, …, narration), and a list of four
    such tuples. The correct option is the question's narration.

    Args:
        folder: Holds the file.
        split: One of SPLITS.
        tags: keep or drop: annotators' marks such as `#C C` in the texts.
    """
    check_split(split, SPLITS, "Ego4D multiple choice")
    if tags not in ("keep", "drop"):
        raise AnnotationError(f"tags is {tags!r}; choose one of: keep, drop")
    builder = Builder(split)
    path = builder.use(find(folder, ["mc_val.csv"], _SOURCE))
    repeated: list[str] = []
    rows = table(path, builder, columns=["question", "answers"], delimiter=",", quoted=True)
    builder.read(
        ((where, {**record, "where": where}) for where, record in rows), _item(tags, repeated)
    )
    if repeated:
        builder.note(
            "the correct narration is repeated, the last one counts, as in the original code:"
            f" {len(repeated):,} ({', '.join(repeated[:5])})"
        )
    builder.note(f"questions: {len(builder.items):,}; the paper's number is not published")
    return builder.split()


def _item(tags: str, repeated: list[str]) -> Callable[[dict[str, Any]], ChoiceItem]:
    def make(record: dict[str, Any]) -> ChoiceItem:
        question, answers = _literal(record, "question"), _literal(record, "answers")
        if not _is_moment(question):
            raise RowError("'question' is not (uid, frame, …, narration)")
        if not isinstance(answers, list | tuple) or len(answers) != OPTIONS:
            raise RowError(f"'answers' does not have {OPTIONS} entries")
        if not all(
            isinstance(answer, tuple | list) and answer and isinstance(answer[-1], str)
            for answer in answers
        ):
            raise RowError("an answer does not end in a narration")
        narrations = tuple(answer[-1] for answer in answers)
        # the list has no labels: the original compares the texts
        right = [number for number, narration in enumerate(narrations) if narration == question[-1]]
        # a question without its own narration has no correct option
        if not right:
            raise RowError("no answer equals the question's narration")
        if len(right) > 1:
            repeated.append(record["where"])
        # the window is centred on the frame, and cut at the start of the video
        uid, frame = question[0], question[1]
        start = max(0.0, (frame - WINDOW_FRAMES / 2) / FRAMES_PER_SECOND)
        media = Media(uid, uid, start, (frame + WINDOW_FRAMES / 2) / FRAMES_PER_SECOND)
        texts = (
            narrations
            if tags == "keep"
            else tuple(without_tags(narration) for narration in narrations)
        )
        return ChoiceItem(record["where"], media, "", texts, right[-1])

    return make


def _is_moment(value: Any) -> bool:
    if not isinstance(value, tuple | list) or len(value) < 3:
        return False
    return (
        isinstance(value[0], str)
        and type(value[1]) is int
        and value[1] >= 0
        and isinstance(value[-1], str)
    )


def _literal(record: dict[str, str], name: str) -> Any:
    try:
        # literal_eval reads literals only; eval would run code of the file
        return ast.literal_eval(record[name].strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise RowError(f"{name!r} is not a Python literal") from None


def without_tags(narration: str) -> str:
    """Remove annotators' marks: "#C C opens a drawer" (the camera wearer) → "C opens a drawer"."""
    return " ".join(
        re.sub(r"#\s*(?:unsure|[A-Za-z])\b", " ", narration, flags=re.IGNORECASE).split()
    )
