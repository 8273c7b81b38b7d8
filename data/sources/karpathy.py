"""COCO and Flickr30k captions with Karpathy's splits (Karpathy and Fei-Fei, CVPR 2015).

dataset_coco.json with train2014/ and val2014/ in the same folder; dataset_flickr30k.json, of the
same structure without filepath, with flickr30k-images/.

All captions of an image are kept (five, for some COCO images six or seven). The four splits stay
separate: train on DIR:train, and on DIR:restval if a recipe wants its 30,504 images too; never on
val or test, whose images are also in val2014/.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from allinone.common.errors import DataError
from allinone.data.sources.media import media_folder, media_row
from allinone.data.sources.reading import listed_files, load_json
from allinone.data.sources.schema import ReadOptions, SourceFormat, SourceRow, bad_row

COCO, FLICKR = "dataset_coco.json", "dataset_flickr30k.json"
FLICKR_FOLDER = "flickr30k-images"


def _files(source: Path) -> list[Path]:
    return listed_files(source, (COCO, FLICKR))[:1]


def images_of(path: Path) -> list[Any]:
    """Records of a Karpathy file; raises DataError if it has none."""
    content = load_json(path)
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise DataError(f"{path} has no list 'images'; it is damaged or not a Karpathy file")
    return images


def _read(source: Path, options: ReadOptions) -> Iterator[SourceRow]:
    base = media_folder(source, None)
    root = options.media or base
    for path in _files(source):
        folder = FLICKR_FOLDER if path.name == FLICKR and (base / FLICKR_FOLDER).is_dir() else ""
        for number, image in enumerate(images_of(path)):
            place = f"{path.name}:{number}"
            try:
                split = str(image["split"])
                # dataset_flickr30k.json has no cocoid
                name = str(image.get("cocoid", image["imgid"]))
                captions = tuple(str(sentence["raw"]) for sentence in image["sentences"])
                relative = Path(image.get("filepath", folder)) / image["filename"]
            except (KeyError, TypeError, AttributeError) as error:
                detail = f"image {number} lacks a field of Karpathy's files: {error}"
                yield bad_row("train", place, path, place, detail)
                continue
            yield media_row(split, name, captions, root, relative, path, place, "jpg")


FORMAT = SourceFormat(
    "coco",
    f"a folder with {COCO}, train2014/ and val2014/, or with {FLICKR} and {FLICKR_FOLDER}/",
    _files,
    _read,
    {
        COCO: {
            "train": (82_783, True),
            "restval": (30_504, True),
            "val": (5000, True),
            "test": (5000, True),
        },
        FLICKR: {"train": (29_000, True), "val": (1014, True), "test": (1000, True)},
    },
)
