"""COCO captions with Karpathy's splits: dataset_coco.json (Karpathy and Fei-Fei, CVPR 2015) beside
train2014/ and val2014/; dataset_flickr30k.json, of the same shape without filepath, beside
flickr30k-images/.

All of an image's captions are kept (five, for some COCO images six or seven). The four splits stay
apart: train on DIR:train, and on DIR:restval where a recipe wants its 30,504 images too; never on
val or test, whose images also lie in val2014/.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from allinone.common.errors import DataError
from allinone.data.sources.base import Format, ReadOptions, SourceRow, bad, load_json, media_row

NAMES = ("dataset_coco.json", "dataset_flickr30k.json")
FLICKR_FOLDER = "flickr30k-images"


def _files(source: Path) -> list[Path]:
    paths = [source] if source.is_file() else [source / name for name in NAMES]
    return [path for path in paths if path.name in NAMES and path.is_file()][:1]


def images_of(path: Path) -> list[Any]:
    """Records of a Karpathy file; DataError where it has none."""
    content = load_json(path)
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise DataError(
            f"{path} has no list under 'images'; it is no Karpathy file, or a damaged one"
        )
    return images


def _read(source: Path, options: ReadOptions) -> Iterator[SourceRow]:
    base = source.parent if source.is_file() else source
    for path in _files(source):
        default = FLICKR_FOLDER if path.name == NAMES[1] and (base / FLICKR_FOLDER).is_dir() else ""
        for number, image in enumerate(images_of(path)):
            place = f"{path.name}:{number}"
            try:
                split, name = str(image["split"]), str(image.get("cocoid", image["imgid"]))
                captions = tuple(str(sentence["raw"]) for sentence in image["sentences"])
                relative = Path(image.get("filepath", default)) / image["filename"]
            except (KeyError, TypeError, AttributeError) as error:
                yield bad(
                    "train",
                    place,
                    path,
                    place,
                    f"image {number} lacks a field of Karpathy's files: {error}",
                )
                continue
            yield media_row(
                split, name, captions, options.media or base, relative, path, place, "jpg"
            )


FORMAT = Format(
    "coco",
    f"{NAMES[0]} beside train2014/ and val2014/, or {NAMES[1]} beside {FLICKR_FOLDER}/",
    _files,
    _read,
    {
        NAMES[0]: {
            "train": (82_783, True),
            "restval": (30_504, True),
            "val": (5000, True),
            "test": (5000, True),
        },
        NAMES[1]: {"train": (29_000, True), "val": (1014, True), "test": (1000, True)},
    },
)
