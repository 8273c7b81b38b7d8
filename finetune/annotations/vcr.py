"""VCR (Zellers et al. 2019): questions on movie stills whose texts refer to detected objects.

Names and sentences are in `vcr_text`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from allinone.finetune.annotations.common import (
    TRAIN_PARTS,
    Builder,
    RowError,
    check_split,
    find,
    index_of,
    json_lines,
    read_json,
    text_of,
    train_part,
)
from allinone.finetune.annotations.schema import (
    AnnotationError,
    ImageRegion,
    Item,
    Media,
    Split,
    VCRItem,
)

SPLITS = (*TRAIN_PARTS, "val", "test")
SIZES = {"train": (212_923, False), "val": (26_534, True), "test": (25_263, False)}
_SOURCE = "vcr1annots.zip of visualcommonsense.com"
_IMAGES_SOURCE = "vcr1images.zip of visualcommonsense.com"

Tokens = tuple[str | tuple[int, ...], ...]
Polygon = tuple[tuple[float, float], ...]


def load(folder: Path, split: str, *, images: Path | None = None) -> Split:
    """Read {train,val,test}.jsonl of vcr1annots, and boxes from the JSON file next to each image.

    The labels of test are hidden (server). The held-out part consists of complete movies, because
    stills of one scene look alike.

    Args:
        folder: vcr1annots, or the folder that contains it.
        split: One of SPLITS.
        images: vcr1images; by default next to vcr1annots.
    """
    check_split(split, SPLITS, "VCR")
    half = split if split in SIZES else "train"
    builder = Builder(split)
    path = builder.use(find(folder, [f"{half}.jsonl", f"vcr1annots/{half}.jsonl"], _SOURCE))
    root = images or path.parent.parent / "vcr1images"
    if not root.is_dir():
        raise AnnotationError(
            f"{root} is not a folder. Source: {_IMAGES_SOURCE}. Its .json files contain the boxes;"
            " give it with --media"
        )
    builder.files.append(str(root))
    movies: dict[str, str] = {}
    builder.read(json_lines(path, builder), _item(root, movies, labelled=half != "test"))
    size, verified = SIZES[half]
    builder.official("questions", len(builder.items), size, verified=verified)
    if half == "train":
        return builder.split(
            train_part(list(builder.items.values()), split, group=lambda item: movies[item.id])
        )
    return builder.split()


def _item(
    root: Path, movies: dict[str, str], *, labelled: bool
) -> Callable[[dict[str, Any]], Item]:
    # several questions share a still
    @lru_cache(maxsize=4096)
    def regions(metadata: str, names: tuple[str, ...]) -> tuple[ImageRegion, ...]:
        return _regions(root, metadata, names)

    def make(record: dict[str, Any]) -> VCRItem:
        image, metadata = text_of(record, "img_fn"), text_of(record, "metadata_fn")
        names = record.get("objects")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise RowError("'objects' is not a list of class names")
        # test rows lack both labels
        item = VCRItem(
            text_of(record, "annot_id"),
            Media(str(PurePosixPath(image).with_suffix("")), image),
            regions(metadata, tuple(names)),
            tokens_of(record.get("question"), len(names)),
            _choices(record, "answer_choices", len(names)),
            _choices(record, "rationale_choices", len(names)),
            index_of(record, "answer_label", 4) if labelled else None,
            index_of(record, "rationale_label", 4) if labelled else None,
            metadata,
        )
        movies.setdefault(item.id, str(record.get("movie") or PurePosixPath(image).parent))
        return item

    return make


def _choices(record: dict[str, Any], name: str, objects: int) -> tuple[Tokens, ...]:
    choices = record.get(name)
    if not isinstance(choices, list) or len(choices) != 4:
        raise RowError(f"{name!r} does not have 4 entries")
    return tuple(tokens_of(choice, objects) for choice in choices)


def tokens_of(tokens: Any, objects: int) -> Tokens:
    """Check an official token list: texts, and lists of 0-based detection indices.

    Raises:
        RowError: It is something else, or an index is not below `objects`.
    """
    if not isinstance(tokens, list) or not tokens:
        raise RowError("a text is not a list of tokens")
    read: list[str | tuple[int, ...]] = []
    for token in tokens:
        if isinstance(token, str):
            read.append(token)
        # type(), not isinstance: True would be detection 1
        elif isinstance(token, list) and token and all(type(index) is int for index in token):
            if not all(0 <= index < objects for index in token):
                raise RowError("a text refers to an object that is not listed")
            read.append(tuple(token))
        else:
            raise RowError("a token is neither text nor a list of object indices")
    return tuple(read)


def _metadata(root: Path, name: str) -> dict[str, Any]:
    relative = PurePosixPath(name)
    # the name comes from a file: it must not lead out of the image folder
    if relative.is_absolute() or ".." in relative.parts:
        raise RowError("'metadata_fn' is outside the image folder")
    path = root / relative
    if not path.is_file():
        raise RowError("the metadata file of the image is missing")
    content: dict[str, Any] = read_json(path, dict)
    return content


def _regions(root: Path, metadata: str, names: Sequence[str]) -> tuple[ImageRegion, ...]:
    """Boxes are [x1, y1, x2, y2, score] in pixels, in the order of `objects`."""
    boxes = _metadata(root, metadata).get("boxes")
    if not isinstance(boxes, list) or len(boxes) != len(names):
        raise RowError("the metadata file and 'objects' have different numbers of entries")
    regions = []
    for name, box in zip(names, boxes, strict=True):
        if (
            not isinstance(box, list)
            or len(box) not in (4, 5)
            or not all(isinstance(value, int | float) for value in box)
        ):
            raise RowError("a box is not [x1, y1, x2, y2, score]")
        # the fifth number, the detector's score, is not used
        x1, y1, x2, y2 = (float(value) for value in box[:4])
        regions.append(ImageRegion(name, (x1, y1, x2, y2)))
    return tuple(regions)


def outlines(images: Path, item: VCRItem) -> tuple[tuple[Polygon, ...], ...]:
    """Read the polygons of each region in pixels, for MERLOT's masks; a region may have none.

    Raises:
        AnnotationError: The metadata file does not fit the item.
    """
    try:
        segments = _metadata(images, item.metadata).get("segms")
        if not isinstance(segments, list) or len(segments) != len(item.regions):
            raise RowError("'segms' does not have one entry per object")
        return tuple(
            tuple(tuple((float(x), float(y)) for x, y in polygon) for polygon in polygons)
            for polygons in segments
        )
    except (RowError, TypeError, ValueError) as error:
        raise AnnotationError(f"{images / item.metadata}: {error}") from error
