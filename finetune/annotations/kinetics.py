"""Kinetics-400: official CSV lists. Classes are numbered by the sorted class names of train.csv."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from allinone.finetune.annotations.common import (
    TRAIN_PARTS,
    Builder,
    RowError,
    check_split,
    find,
    table,
    text_of,
    train_part,
)
from allinone.finetune.annotations.schema import AnnotationError, LabelItem, Media, Split

SPLITS = (*TRAIN_PARTS, "val")
CLASSES = 400
VAL_ROWS = 19_906
_SOURCE = (
    "Kinetics-400's annotation lists (k400 train.csv and val.csv of the CVD Foundation, or"
    " ActivityNet's crawler)"
)
_COLUMNS = ("label", "youtube_id", "time_start", "time_end")


def load(
    folder: Path, split: str, *, class_folders: str = "spaces", videos: Path | None = None
) -> Split:
    """Read train.csv and val.csv, with or without the column is_cc.

    The paper's numbers are on val: it is the test split, and a part of train is held out. The
    official test list has no labels and is not a split here. train.csv is always needed: it numbers
    the classes.

    Args:
        folder: Holds the lists.
        split: One of SPLITS.
        class_folders: "spaces" or "underscores": how the class folders of the videos are named,
            which differs between archives.
        videos: The media folder; if given, `class_folders` is detected there.
    """
    check_split(split, SPLITS, "Kinetics-400")
    if videos is not None:
        underscores = any(next((videos / half).glob("*_*"), None) for half in ("train", "val"))
        class_folders = "underscores" if underscores else "spaces"
    if class_folders not in ("spaces", "underscores"):
        raise AnnotationError(
            f"class_folders is {class_folders!r}; choose one of: spaces, underscores"
        )
    builder = Builder(split)
    half = "val" if split == "val" else "train"
    rows = _rows(folder, "train", builder)
    # train.csv numbers the classes, also for val: a list with fewer classes would renumber them
    classes = tuple(sorted({_label(row) for _, row in rows} - {""}))
    if half == "val":
        builder = Builder(split)  # rows left out of train.csv are not reported for val
        rows = _rows(folder, "val", builder)
    builder.read(rows, _item(classes, half, class_folders))
    builder.official("classes", len(classes), CLASSES)
    if half == "val":
        builder.official("clips", len(builder.items), VAL_ROWS)
        return builder.split(classes=classes)
    builder.note(
        f"clips: {len(builder.items):,}; about 246,000 in the official list (not verified by us),"
        " copies differ by a few thousand"
    )
    return builder.split(train_part(list(builder.items.values()), split), classes=classes)


def _rows(folder: Path, half: str, builder: Builder) -> list[tuple[str, dict[str, str]]]:
    path = builder.use(_list(folder, half))
    return list(table(path, builder, columns=_COLUMNS, delimiter=",", quoted=True))


def _list(folder: Path, half: str) -> Path:
    long = {"train": "train", "val": "validate"}[half]
    names = [
        f"{half}.csv",
        f"{long}.csv",
        f"kinetics_{half}.csv",
        f"kinetics-400_{half}.csv",
        f"annotations/{half}.csv",
    ]
    return find(folder, list(dict.fromkeys(names)), _SOURCE)


def _label(record: dict[str, Any]) -> str:
    """Normalise a label: some copies quote labels of several words twice or use underscores."""
    return str(record["label"]).strip().strip('"').replace("_", " ")


def _item(
    classes: tuple[str, ...], half: str, class_folders: str
) -> Callable[[dict[str, Any]], LabelItem]:
    numbers = {name: number for number, name in enumerate(classes)}

    def make(record: dict[str, Any]) -> LabelItem:
        label, video = _label(record), text_of(record, "youtube_id")
        if label not in numbers:
            raise RowError("the label is not a class of train.csv")
        try:
            start, end = int(float(record["time_start"])), int(float(record["time_end"]))
        except ValueError:
            raise RowError("time_start or time_end is not a number") from None
        # downloaders name files by the annotated span, zero-padded to six digits
        name = f"{video}_{start:06d}_{end:06d}"
        folder = label.replace(" ", "_") if class_folders == "underscores" else label
        return LabelItem(name, Media(video, f"{half}/{folder}/{name}.mp4"), numbers[label])

    return make
