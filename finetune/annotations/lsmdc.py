"""LSMDC 2016: retrieval (one caption per test clip), multiple choice, fill in the blank.

All files are tab-separated without a header and without quoting.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from allinone.finetune.annotations.common import (
    Builder,
    RowError,
    check_split,
    find,
    index_of,
    place_in_order,
    table,
    text_of,
)
from allinone.finetune.annotations.schema import (
    AnnotationError,
    ChoiceItem,
    Media,
    QAItem,
    RetrievalItem,
    Split,
)

SPLITS = ("train", "val", "test")
TASKS = ("retrieval", "choice", "blank")
RETRIEVAL_FILES = {
    "train": "LSMDC16_annos_training.csv",
    "val": "LSMDC16_annos_val.csv",
    "test": "LSMDC16_challenge_1000_publictect.csv",
}
CHOICE_FILES = {
    "train": "LSMDC16_multiple_choice_train.csv",
    "val": "LSMDC16_multiple_choice_valid.csv",
    "test": "LSMDC16_multiple_choice_test_randomized.csv",
}
BLANK_FILES = {
    "train": "LSMDC16_annos_training_FIB.csv",
    "val": "LSMDC16_annos_val_FIB.csv",
    "test": "LSMDC16_annos_test_FIB.csv",
}
SENTENCES = {"train": 101_079, "val": 7_408, "test": 1_000}
CHOICE_TEST = 10_053
BLANKS = {"train": 296_960, "val": 21_689, "test": 30_349}
"""As stated by the README of the challenge's download."""
BLANK, MASK = "_____", "[MASK]"
"""The gap in the files, and the token that the model knows for it."""
_TIMES = ("start_aligned", "end_aligned", "start_extracted", "end_extracted")
_SOURCE = "the LSMDC 2016 challenge page (access by a signed form to MPI for Informatics)"


def load(folder: Path, split: str, *, task: str) -> Split:
    """Read one split of one task.

    Args:
        folder: Holds the files.
        split: One of SPLITS.
        task: retrieval: all sentences of a clip are its captions; choice: five options. In train
            the correct option is moved from the first place; blank: the missing word of a sentence.
    """
    if task not in TASKS:
        raise AnnotationError(f"LSMDC has no task {task!r}; choose one of: {', '.join(TASKS)}")
    check_split(split, SPLITS, f"LSMDC {task}")
    return {"retrieval": _retrieval, "choice": _choice, "blank": _blank}[task](folder, split)


def _media(record: dict[str, Any]) -> Media:
    """Split `0123_SOME_MOVIE_00.01.02.345-00.01.05.678`: the movie is all but the last field."""
    clip = text_of(record, "clip").removesuffix(".avi")
    # the dots belong to the times: a suffix other than .avi must not be removed
    movie, _, times = clip.rpartition("_")
    if not movie or "-" not in times:
        raise RowError("the clip id is not <movie>_<start>-<end>")
    return Media(clip, f"{movie}/{clip}")


def _retrieval(folder: Path, split: str) -> Split:
    builder = Builder(split)
    path = builder.use(find(folder, [RETRIEVAL_FILES[split]], _SOURCE))
    captions: dict[Media, list[str]] = {}
    places: dict[Media, str] = {}
    for where, record in table(path, builder, columns=["clip", *_TIMES, "sentence"], header=False):
        with builder.row(where):
            media = _media(record)
            # the sixth column; the original reads the first, so its captions are clip ids. Ids
            # repeat in train and val: a clip may have several sentences
            captions.setdefault(media, []).append(text_of(record, "sentence"))
            places.setdefault(media, where)
    for media, sentences in captions.items():
        builder.add(RetrievalItem(media.id, media, tuple(sentences)), places[media])
    builder.official(
        "sentences", sum(len(sentences) for sentences in captions.values()), SENTENCES[split]
    )
    if split == "test" and len(captions) != SENTENCES["test"]:
        builder.note(f"clips: {len(captions):,}; the protocol is 1,000 x 1,000")
    return builder.split()


def _choice(folder: Path, split: str) -> Split:
    builder = Builder(split)
    path = builder.use(find(folder, [CHOICE_FILES[split]], _SOURCE))
    options = [f"option{number}" for number in range(1, 6)]
    columns = ["clip", *_TIMES, *options]
    labelled = _has_label(path, len(columns), needed=split != "train")
    for where, record in table(
        path, builder, columns=[*columns, "correct"] if labelled else columns, header=False
    ):
        with builder.row(where):
            media = _media(record)
            texts = [text_of(record, option) for option in options]
            # the correct option is numbered from 1; train without the field lists it first
            answer = index_of(record, "correct", 5, base=1) if labelled else 0
            if split == "train":
                texts, answer = _moved(texts, answer, where)
            # A clip may have several sentences: the line number distinguishes its questions.
            builder.add(ChoiceItem(f"{media.id}@{where}", media, "", tuple(texts), answer), where)
    if split == "train":
        builder.note(
            "the official file lists the correct option first; options are rotated by a fixed rule,"
            " so that the position carries no information"
        )
    if split == "test":
        builder.official("questions", len(builder.items), CHOICE_TEST, verified=False)
    return builder.split()


def _blank(folder: Path, split: str) -> Split:
    """Read sentences with a gap.

    The sixth column is the complete sentence, with the answer: it is not read. Answers are compared
    in lower case, as JSFusion does (github.com/yj-yu/lsmdc, videocap/datasets/data_util.py).
    """
    builder = Builder(split)
    path = builder.use(find(folder, [BLANK_FILES[split]], _SOURCE))
    columns = ["clip", *_TIMES, "sentence", "fill_in", "blank"]
    for where, record in table(path, builder, columns=columns, header=False):
        with builder.row(where):
            media, gap = _media(record), text_of(record, "fill_in")
            if gap.count(BLANK) != 1:
                raise RowError(f"'fill_in' does not have one {BLANK}")
            answer = text_of(record, "blank").lower()
            # a clip has several sentences, and a sentence several gaps
            question = gap.replace(BLANK, MASK)
            builder.add(QAItem(f"{media.id}@{where}", media, question, (answer,)), where)
    builder.official("questions", len(builder.items), BLANKS[split], verified=False)
    return builder.split()


def _has_label(path: Path, columns: int, *, needed: bool) -> bool:
    """Whether rows have the eleventh field: always in val and test, sometimes also in train."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return needed or file.readline().rstrip("\r\n").count("\t") == columns


def _moved(texts: list[str], answer: int, key: str) -> tuple[list[str], int]:
    """The options rotated by 0 to 4 places, the same in every run."""
    shift = int(5 * place_in_order(key))
    return texts[-shift:] + texts[:-shift] if shift else texts, (answer + shift) % 5
