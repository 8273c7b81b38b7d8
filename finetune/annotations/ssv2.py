"""Something-Something v2 (Goyal et al. 2017): classes by template, and retrieval.

train.json and validation.json are arrays of {id, label, template, placeholders}; `template` has
brackets ("Putting [something] on [something]"), the keys of labels.json have none
("Putting something on something": "103"). The copies of 2018 are called
something-something-v2-train.json and so on. Videos are <id>.webm.

The test split has no labels: numbers of papers are on validation
(github.com/OpenGVLab/InternVideo/issues/132). Classes such as "from left to right" depend on the
direction, so clips are never flipped.

Retrieval (Lei et al. 2023, Singularity): 12 validation videos of each of the 174 templates, 2,088
in all, listed by ssv2_ret_template_val_small.json and ssv2_ret_label_val_small.json, arrays of
{caption, video}. A caption with several videos is one query, and each of them is relevant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from allinone.finetune.annotations.common import (
    TRAIN_PARTS,
    Builder,
    RowError,
    check_split,
    find,
    index_of,
    json_rows,
    read_json,
    stem,
    text_of,
    train_part,
)
from allinone.finetune.annotations.schema import (
    AnnotationError,
    LabelItem,
    Media,
    RetrievalItem,
    Split,
)

SPLITS = (*TRAIN_PARTS, "val")
TEXTS = ("template", "label")
"""What a retrieval query is: the class, or the class with the names of the objects."""
CLASSES = 174
VIDEOS = {"train": 168_913, "val": 24_777}
RETRIEVAL_VIDEOS = 2_088
"""Videos of Singularity's test, which its paper calls validation."""
_PREFIX = "something-something-v2-"
_SOURCE = "the labels of Something-Something v2 (Qualcomm's download page)"
_RETRIEVAL_SOURCE = "the annotations of jayleicn/singularity (anno_downstream)"


def load(folder: Path, split: str) -> Split:
    """Read one split for classification; `folder` holds the lists, or the folder `labels`."""
    check_split(split, SPLITS, "Something-Something v2")
    builder = Builder(split)
    names = _files("labels.json")
    listed = builder.use(find(folder, names, _SOURCE))
    numbers = read_json(listed, dict)
    classes = _classes(listed, numbers)
    half = "val" if split == "val" else "train"
    builder.read(_rows(folder, half, builder), _labelled(numbers, len(classes)))
    builder.official("classes", len(classes), CLASSES, verified=False)
    builder.official("videos", len(builder.items), VIDEOS[half], verified=False)
    if half == "val":
        return builder.split(classes=classes)
    return builder.split(train_part(list(builder.items.values()), split), classes=classes)


def load_retrieval(folder: Path, split: str, *, text: str) -> Split:
    """Read one split for retrieval.

    Args:
        folder: Holds the lists.
        split: One of TRAIN_PARTS, from the official list, or val, from Singularity's.
        text: One of TEXTS.

    Raises:
        AnnotationError: Files are missing or have another format.
    """
    check_split(split, SPLITS, "Something-Something v2 retrieval")
    if text not in TEXTS:
        raise AnnotationError(f"no queries {text!r}; choose one of: {', '.join(TEXTS)}")
    builder = Builder(split)
    if split != "val":
        builder.read(
            _rows(folder, "train", builder),
            lambda record: _captioned(text_of(record, "id"), text_of(record, text)),
        )
        builder.official("videos", len(builder.items), VIDEOS["train"], verified=False)
        items = train_part(list(builder.items.values()), split)
        return builder.split(items, shared_captions=True)
    path = builder.use(find(folder, [f"ssv2_ret_{text}_val_small.json"], _RETRIEVAL_SOURCE))
    for where, record in json_rows(path, builder):
        with builder.row(where):
            caption = text_of(record, "caption")
            for video in _videos(record):
                builder.add(_captioned(video, caption), where)
    builder.official("videos", len(builder.items), RETRIEVAL_VIDEOS, verified=False)
    return builder.split(shared_captions=True)


def _files(name: str) -> list[str]:
    return [name, f"labels/{name}", f"{_PREFIX}{name}"]


def _rows(folder: Path, half: str, builder: Builder) -> Iterator[tuple[str, dict[str, Any]]]:
    name = {"train": "train.json", "val": "validation.json"}[half]
    return json_rows(builder.use(find(folder, _files(name), _SOURCE)), builder)


def _classes(path: Path, numbers: dict[str, Any]) -> tuple[str, ...]:
    """Names of the classes in the order of their numbers, which are texts in the file."""
    by_number: dict[int, str] = {}
    for name in numbers:
        try:
            by_number[index_of(numbers, name, len(numbers))] = name
        except RowError as error:
            raise AnnotationError(f"{path}: class {error}") from error
    if len(by_number) != len(numbers):
        raise AnnotationError(f"{path}: two classes have the same number")
    return tuple(by_number[number] for number in sorted(by_number))


def _plain(template: str) -> str:
    """A template without brackets: the brackets are in the lists, but not in labels.json."""
    return template.replace("[", "").replace("]", "")


def _labelled(numbers: dict[str, Any], classes: int) -> Callable[[dict[str, Any]], LabelItem]:
    def make(record: dict[str, Any]) -> LabelItem:
        video, label = text_of(record, "id"), _plain(text_of(record, "template"))
        if label not in numbers:
            raise RowError("'template' is not a class of labels.json")
        return LabelItem(video, Media(video, video), index_of(numbers, label, classes))

    return make


def _captioned(video: str, caption: str) -> RetrievalItem:
    name = stem(video)
    return RetrievalItem(name, Media(name, name), (_plain(caption),))


def _videos(record: dict[str, Any]) -> list[str]:
    """The videos of a caption: one name, or a list."""
    value = record.get("video")
    if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
        return value
    return [text_of(record, "video")]
