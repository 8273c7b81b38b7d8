"""Visual Genome's region descriptions (Krishna et al., IJCV 2017).

region_descriptions.json with VG_100K/ and VG_100K_2/ in the same folder. One row per image with all
its phrases as captions: an epoch shows each image once, with another phrase each time, and the
index holds 108 thousand rows instead of 5.4 million. Boxes are not used, as in All-in-one.

About half the images are also in COCO, in all of its splits: --exclude dataset_coco.json leaves out
those of Karpathy's val and test splits (image_data.json maps them to COCO ids).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from allinone.common.errors import DataError
from allinone.data.sources.media import media_folder, media_row
from allinone.data.sources.reading import listed_files, load_json, stream_json
from allinone.data.sources.schema import ReadOptions, SourceFormat, SourceRow, bad_row

NAME = "region_descriptions.json"
FOLDERS = ("VG_100K", "VG_100K_2")


def _files(source: Path) -> list[Path]:
    return listed_files(source, (NAME,))


def coco_overlap(source: Path, coco_ids: set[str]) -> frozenset[str]:
    """Visual Genome's ids of the images with these COCO ids.

    Args:
        source: region_descriptions.json or its folder, which must also hold image_data.json.
        coco_ids: Ids of COCO images.

    Raises:
        DataError: image_data.json is missing or damaged.
    """
    path = media_folder(source, None, "image_data.json")
    if not path.is_file():
        raise DataError(
            f"{path} is needed to know which images are COCO's; download it, or give --exclude a"
            " text file of ids"
        )
    images = load_json(path)
    if not isinstance(images, list) or not all(
        isinstance(image, dict) and "image_id" in image for image in images
    ):
        raise DataError(f"{path} is not a list of images with image_id; download it again")
    return frozenset(
        str(image["image_id"]) for image in images if str(image.get("coco_id")) in coco_ids
    )


def _read(source: Path, options: ReadOptions) -> Iterator[SourceRow]:
    root = media_folder(source, options.media)
    for path in _files(source):
        for number, image in stream_json(path):
            place = f"{path.name}:{number}"
            try:
                name = str(image["id"] if "id" in image else image["regions"][0]["image_id"])
                # two regions may have the same phrase: keep the first of each, in the file's order
                phrases = tuple(dict.fromkeys(str(region["phrase"]) for region in image["regions"]))
            except (KeyError, IndexError, TypeError, AttributeError) as error:
                detail = f"image {number} lacks a field of region_descriptions.json: {error!r}"
                yield bad_row("train", place, path, place, detail)
                continue
            # the list does not say in which of the two folders an image is
            first, second = (Path(folder) / f"{name}.jpg" for folder in FOLDERS)
            row = media_row("train", name, phrases, root, first, path, place, "jpg")
            yield row if row.reason else replace(row, alternatives=(root / second,))


FORMAT = SourceFormat(
    "vg",
    f"a folder with {NAME}, {FOLDERS[0]}/ and {FOLDERS[1]}/",
    _files,
    _read,
    {NAME: {"train": (108_077, True)}},
)
