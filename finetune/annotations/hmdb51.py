"""HMDB51: three official folds; the result is their mean."""

from __future__ import annotations

import re
from pathlib import Path

from allinone.finetune.annotations.common import (
    Builder,
    check_fold,
    read_text,
    train_part,
)
from allinone.finetune.annotations.schema import AnnotationError, LabelItem, Media, Split

CLASSES, TRAIN, TEST = 51, 3_570, 1_530
_MARKS = {"0": "unused", "1": "train", "2": "test"}
_SOURCE = "test_train_splits.rar of HMDB51's site (serre-lab.clps.brown.edu)"


def load(folder: Path, split: str, *, fold: int) -> Split:
    """Read `<class>_test_split{1,2,3}.txt`, with `<file>.avi <0|1|2>` per line.

    1 is train, 2 test, 0 unused. Held-out clips come from other films than the remaining training
    clips.

    Args:
        folder: Holds the lists, or the folder of the archive.
        split: One of FOLD_SPLITS.
        fold: 1, 2 or 3.
    """
    check_fold(split, fold, "HMDB51")
    wanted = "test" if split == "test" else "train"
    builder = Builder(split)
    root = next(
        (
            path
            for path in (folder / "testTrainMulti_7030_splits", folder)
            if any(path.glob(f"*_test_split{fold}.txt"))
        ),
        None,
    )
    if root is None:
        raise AnnotationError(
            f"{folder} lacks <class>_test_split{fold}.txt. Source: {_SOURCE}. Give the folder that"
            " contains them"
        )
    lists = {
        path.stem.removesuffix(f"_test_split{fold}"): path
        for path in sorted(root.glob(f"*_test_split{fold}.txt"))
    }
    # classes are numbered by their sorted names: a missing list would shift the numbers
    known = {path.name.rpartition("_test_split")[0] for path in root.glob("*_test_split[123].txt")}
    if missing := sorted(known - set(lists)):
        names = ", ".join(f"{name}_test_split{fold}.txt" for name in missing[:3])
        raise AnnotationError(
            f"{root} lacks {names}, which would renumber the classes. Source: {_SOURCE}. Unpack the"
            " archive again"
        )
    classes = tuple(sorted(lists))
    sources: dict[str, str] = {}
    for label, name in enumerate(classes):
        for where, file, mark in _lines(builder.use(lists[name]), builder):
            # 1,666 of the 6,766 clips have the mark 0 in every fold and are in neither split
            if _MARKS[mark] == wanted:
                sources[file] = _source(file, name)
                builder.add(LabelItem(file, Media(file, f"{name}/{file}"), label), where)
    builder.official("classes", len(classes), CLASSES)
    builder.official("clips", len(builder.items), TRAIN if wanted == "train" else TEST)
    if wanted == "test":
        return builder.split(classes=classes)
    return builder.split(
        train_part(list(builder.items.values()), split, group=lambda item: sources[item.id]),
        classes=classes,
    )


def _lines(path: Path, builder: Builder) -> list[tuple[str, str, str]]:
    """Read (where, file, mark) of each line."""
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        # from the right: file names contain # ; & ! and parentheses
        file, _, mark = line.strip().rpartition(" ")
        if mark in _MARKS and file.strip():
            rows.append((f"{path.name}:{number}", file.strip(), mark))
        elif line.strip():
            builder.leave_out("the line is not <file> <0|1|2>", f"{path.name}:{number}")
    return rows


def _source(file: str, action: str) -> str:
    """The film: `April_09_brush_hair_u_nm_np1_ba_goo_0.avi` → April_09."""
    # clips of one film share people and background
    match = re.match(rf"(.+?)_{re.escape(action)}_", file)
    return match[1] if match else file
