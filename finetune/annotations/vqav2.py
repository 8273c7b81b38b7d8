"""VQAv2: questions on COCO images with ten answers each.

Normalisation and scores are in `vqav2_text`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from allinone.finetune.annotations.common import (
    Builder,
    RowError,
    check_split,
    find,
    held_out,
    json_records,
    text_of,
)
from allinone.finetune.annotations.schema import AnnotationError, Media, QAItem, Split
from allinone.finetune.annotations.vqav2_text import (
    ANNOTATORS,
    ANSWERS,
    answer_space,
    reference_order,
)

SPLITS = ("train", "val", "train+val", "held-out", "test-dev", "test")
QUESTIONS = {"train2014": 443_757, "val2014": 214_354, "test2015": 447_793}
_PARTS = {
    "train": ("train2014",),
    "val": ("val2014",),
    "train+val": ("train2014", "val2014"),
    "held-out": ("val2014",),
    "test-dev": ("test-dev2015",),
    "test": ("test2015",),
}
HELD_OUT_SHARE = 1_000 / 40_504
"""ViLT holds out 1,000 of val's 40,504 images, drawn again on each machine; here the hash of the
image decides, so the number is about 1,000."""
_SOURCE = "visualqa.org/download.html"


def load(folder: Path, split: str, *, with_answer_space: bool = True) -> Split:
    """Read one split.

    The paper's protocol trains on `train+val` (train2014 and the part of val2014 that is not held
    out), validates on `held-out` and tests on a server.

    Args:
        folder: Holds the files.
        split: One of SPLITS.
        with_answer_space: Collect the 3,129 answers of train2014 and val2014, which needs both
            annotation files.
    """
    check_split(split, SPLITS, "VQAv2")
    builder = Builder(split)
    annotated: dict[str, dict[str, dict[str, Any]]] = {}
    for part in _PARTS[split]:
        before = len(builder.items)
        if not part.startswith("test"):
            annotated[part] = _answers(builder.use(_file(folder, "annotations", part)))
        builder.read(
            _questions(builder.use(_file(folder, "questions", part))),
            _item(part, annotated.get(part, {})),
        )
        # of test-dev2015 no official count is known to us
        if part in QUESTIONS:
            builder.official(f"questions of {part}", len(builder.items) - before, QUESTIONS[part])
    space: tuple[str, ...] = ()
    reference: tuple[str, ...] = ()
    if with_answer_space:
        # that of train and val together, whichever split is read, and in this order
        chosen = [
            text_of(record, "multiple_choice_answer")
            for part in ("train2014", "val2014")
            for record in (
                annotated.get(part) or _answers(_file(folder, "annotations", part))
            ).values()
        ]
        space, reference = answer_space(chosen), reference_order(chosen)
        builder.official("answers in the answer space", len(space), ANSWERS)
    kept = _without_held_out(builder, split) if split in ("train+val", "held-out") else None
    return builder.split(kept, answer_space=space, reference_answers=reference)


def _without_held_out(builder: Builder, split: str) -> list[Any]:
    """Hold out images of val2014 with all their questions; train2014 is unchanged."""
    val = [
        item
        for item in builder.items.values()
        if isinstance(item, QAItem) and item.media.path.startswith("val2014/")
    ]
    held = held_out({item.media.id for item in val}, HELD_OUT_SHARE)
    return [
        item
        for item in builder.items.values()
        if isinstance(item, QAItem) and (item.media.id in held) == (split == "held-out")
    ]


def _file(folder: Path, kind: str, part: str) -> Path:
    name = (
        f"v2_OpenEnded_mscoco_{part}_questions.json"
        if kind == "questions"
        else f"v2_mscoco_{part}_annotations.json"
    )
    return find(folder, [name, f"{kind.title()}/{name}"], _SOURCE)


def _questions(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, record in enumerate(json_records(path, "questions")):
        yield f"{path.name}[{number}]", record


def _answers(path: Path) -> dict[str, dict[str, Any]]:
    """Read annotations by question id.

    A broken annotation is an error, because leaving it out would silently change the answer space.
    """
    annotations: dict[str, dict[str, Any]] = {}
    for number, record in enumerate(json_records(path, "annotations")):
        try:
            text_of(record, "multiple_choice_answer")
            annotations[text_of(record, "question_id")] = record
        except RowError as error:
            raise AnnotationError(f"{path}, annotation {number}: {error}") from error
    return annotations


def _item(part: str, answers: dict[str, dict[str, Any]]) -> Callable[[dict[str, Any]], QAItem]:
    # test-dev is a part of test: its images are in test2015
    folder = part.replace("test-dev", "test")

    def make(record: dict[str, Any]) -> QAItem:
        number, image = text_of(record, "question_id"), text_of(record, "image_id")
        if not image.isdecimal():
            raise RowError("'image_id' is not an integer")
        # COCO 2014 pads the image number in file names to twelve digits
        media = Media(image, f"{folder}/COCO_{folder}_{int(image):012d}.jpg")
        if folder == "test2015":
            return QAItem(number, media, text_of(record, "question"))
        if number not in answers:
            raise RowError("the question has no annotation")
        annotation = answers[number]
        # all ten are needed: the accuracy leaves out one after another
        given = annotation.get("answers")
        if not isinstance(given, list) or len(given) != ANNOTATORS:
            raise RowError(f"'answers' does not have {ANNOTATORS} entries")
        texts = tuple(str(answer.get("answer", "")) for answer in given)
        return QAItem(
            number,
            media,
            text_of(record, "question"),
            texts,
            str(annotation.get("answer_type", "")),
        )

    return make
