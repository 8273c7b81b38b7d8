"""UCF101: three official folds; the result is their mean."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from allinone.finetune.annotations.common import (
    Builder,
    RowError,
    check_fold,
    find,
    read_text,
    train_part,
)
from allinone.finetune.annotations.schema import AnnotationError, LabelItem, Media, Split

CLASSES = 101
SIZES = {1: (9_537, 3_783), 2: (9_586, 3_734), 3: (9_624, 3_696)}
"""(train, test) clips per fold."""
_SOURCE = "UCF101TrainTestSplits-RecognitionTask.zip of UCF's site (crcv.ucf.edu)"


def load(folder: Path, split: str, *, fold: int) -> Split:
    """Read classInd.txt, trainlist0{fold}.txt and testlist0{fold}.txt.

    Labels of train start at 1; test has none, the class is the folder. Clips of a group are cut
    from one video, so complete groups are held out.

    Args:
        folder: Holds the files.
        split: One of FOLD_SPLITS.
        fold: 1, 2 or 3.
    """
    check_fold(split, fold, "UCF101")
    wanted = "test" if split == "test" else "train"
    builder = Builder(split)
    classes = _classes(builder.use(_file(folder, "classInd.txt")))
    path = builder.use(_file(folder, f"{wanted}list0{fold}.txt"))
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            where = f"{path.name}:{number}"
            with builder.row(where):
                builder.add(_item(line, classes), where)
    builder.official("classes", len(classes), CLASSES)
    builder.official("clips", len(builder.items), SIZES[fold][wanted == "test"], verified=False)
    if wanted == "test":
        return builder.split(classes=classes)
    return builder.split(
        train_part(
            list(builder.items.values()), split, group=lambda item: item.id.rpartition("_c")[0]
        ),
        classes=classes,
    )


def _file(folder: Path, name: str) -> Path:
    return find(folder, [name, f"ucfTrainTestlist/{name}"], _SOURCE)


def _classes(path: Path) -> tuple[str, ...]:
    names = []
    for number, line in enumerate(filter(str.strip, read_text(path).splitlines()), 1):
        match = re.fullmatch(r"(\d+)\s+(\w+)", line.strip())
        if match is None or int(match[1]) != number:
            raise AnnotationError(
                f"{path}: line {number} should be '{number} <class>', found {line[:80]!r}"
            )
        names.append(match[2])
    return tuple(names)


def _item(line: str, classes: tuple[str, ...]) -> LabelItem:
    """Read `Archery/v_Archery_g08_c01.avi 3`, or the same without the number."""
    file, *rest = line.split()
    path = PurePosixPath(file)
    # class folders differ in case between releases (HandstandPushups)
    label = {name.lower(): number for number, name in enumerate(classes)}.get(
        path.parent.name.lower()
    )
    if label is None:
        raise RowError("the folder is not a class of classInd.txt")
    # listed labels start at 1
    if rest and rest != [str(label + 1)]:
        raise RowError("the label is not the number of the folder's class")
    return LabelItem(path.stem, Media(path.stem, file), label)
