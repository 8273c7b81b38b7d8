"""TGIF-QA, the version with 165,000 questions: action and transition (five options), frameqa (one
word).

Official files end in .csv but are tab-separated with CRLF, a header and no quoting. There is no
official validation split: one is held out of train.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from allinone.finetune.annotations.common import (
    TRAIN_PARTS,
    Builder,
    check_split,
    find,
    index_of,
    json_lines,
    numbered_answers,
    stem,
    table,
    text_of,
    texts_of,
    train_part,
)
from allinone.finetune.annotations.schema import AnnotationError, ChoiceItem, Media, QAItem, Split

SPLITS = (*TRAIN_PARTS, "test")
CLIPBERT_SPLITS = ("train", "val", "test")
TASKS = ("action", "transition", "frameqa")
SIZES = {
    ("action", "train"): (20_471, True),
    ("action", "test"): (2_274, True),
    ("transition", "train"): (52_704, False),
    ("transition", "test"): (6_232, True),
    ("frameqa", "train"): (39_392, False),
    ("frameqa", "test"): (13_691, True),
}
"""(questions, counted by us). The README of TGIF-QA says 20,475 for action; its file holds
20,471."""
KINDS = {"0": "object", "1": "number", "2": "color", "3": "location"}
_SOURCE = "the dataset folder of YunseokJANG/tgif-qa, or ClipBERT's tgif_qa annotations"


def load(folder: Path, split: str, *, task: str, form: str = "") -> Split:
    """Read one split of one task.

    The forms are never mixed: ClipBERT's train with our held-out part would leak.

    Args:
        folder: Holds the files.
        split: One of SPLITS, or of CLIPBERT_SPLITS.
        task: One of TASKS.
        form: "": the official {Train,Test}_{task}_question.csv; clipbert:
            {task}_{train,val,test}.jsonl, whose val is ClipBERT's part of train.
    """
    if task not in TASKS:
        raise AnnotationError(f"TGIF-QA has no task {task!r}; choose one of: {', '.join(TASKS)}")
    if form == "clipbert":
        check_split(split, CLIPBERT_SPLITS, "TGIF-QA in ClipBERT's form")
        return _clipbert(folder, split, task)
    if form:
        raise AnnotationError(f"TGIF-QA has no form {form!r}; leave it out, or take clipbert")
    check_split(split, SPLITS, "TGIF-QA")
    return _official(folder, split, task)


def _official(folder: Path, split: str, task: str) -> Split:
    builder = Builder(split)
    half = "test" if split == "test" else "train"
    name = f"{half.title()}_{task}_question.csv"
    path = builder.use(find(folder, [name, f"dataset/{name}"], _SOURCE))
    options = [f"a{number}" for number in range(1, 6)] if task != "frameqa" else ["type"]
    # read by the header's names: frameqa has `type` in place of the five options
    columns = ["gif_name", "question", *options, "answer", "vid_id", "key"]
    builder.read(table(path, builder, columns=columns), _choice if task != "frameqa" else _word)
    size, verified = SIZES[task, half]
    builder.official(f"{half} questions", len(builder.items), size, verified=verified)
    if split == "test":
        return builder.split()
    return builder.split(train_part(list(builder.items.values()), split))


def _media(record: dict[str, Any]) -> Media:
    name = stem(text_of(record, "gif_name"))
    return Media(name, name)


def _id(record: dict[str, Any]) -> str:
    """Join `vid_id`, a text (ACTION77), and `key`, a number; neither is surely unique."""
    return f"{text_of(record, 'vid_id')}-{text_of(record, 'key')}"


def _choice(record: dict[str, Any]) -> ChoiceItem:
    # the answer counts from 0, the columns from 1
    choices = tuple(text_of(record, f"a{number}") for number in range(1, 6))
    return ChoiceItem(
        _id(record),
        _media(record),
        text_of(record, "question"),
        choices,
        index_of(record, "answer", 5),
    )


def _word(record: dict[str, Any]) -> QAItem:
    kind = KINDS[str(index_of(record, "type", len(KINDS)))]
    return QAItem(
        _id(record), _media(record), text_of(record, "question"), (text_of(record, "answer"),), kind
    )


def _clipbert(folder: Path, split: str, task: str) -> Split:
    builder = Builder(split)
    path = builder.use(find(folder, [f"{task}_{split}.jsonl"], _SOURCE))
    # This form has no ids: the position in the file serves as one.
    rows = ((where, {**record, "where": where}) for where, record in json_lines(path, builder))
    builder.read(rows, _clipbert_choice if task != "frameqa" else _clipbert_word)
    if split == "test":
        size, verified = SIZES[task, "test"]
        builder.official("test questions", len(builder.items), size, verified=verified)
    labels = folder / "frameqa_trainval_ans2label.json"
    space = numbered_answers(labels) if task == "frameqa" else ()
    if space:
        builder.note(f"{labels.name} holds the answers of train and val")
    return builder.split(answer_space=space)


def _clipbert_choice(record: dict[str, Any]) -> ChoiceItem:
    choices, answer = texts_of(record, "options", 5), index_of(record, "answer", 5)
    return ChoiceItem(record["where"], _media(record), text_of(record, "question"), choices, answer)


def _clipbert_word(record: dict[str, Any]) -> QAItem:
    answers = (text_of(record, "answer"),)
    return QAItem(
        record["where"],
        _media(record),
        text_of(record, "question"),
        answers,
        str(record.get("answer_type", "")),
    )
