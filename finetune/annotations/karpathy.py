"""Image-text retrieval on COCO and Flickr30k.

Reads Karpathy's dataset_coco.json and dataset_flickr30k.json.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from allinone.finetune.annotations.common import (
    Builder,
    RowError,
    check_split,
    find,
    read_json,
    stem,
    text_of,
)
from allinone.finetune.annotations.schema import AnnotationError, Media, RetrievalItem, Split

SPLITS = ("train", "val", "test")
DATASETS = ("coco", "flickr30k")
IMAGES = {
    "coco": {"train": 113_287, "val": 5_000, "test": 5_000},
    "flickr30k": {"train": 29_000, "val": 1_014, "test": 1_000},
}
RESTVAL = 30_504
_SOURCE = "Karpathy's caption_datasets.zip (cs.stanford.edu/people/karpathy/deepimagesent)"


def load(folder: Path, split: str, *, dataset: str, captions: int | None = None) -> Split:
    """Read one split.

    COCO's train includes `restval`, the part of val2014 that is neither val nor test. Media paths
    are relative to the folder of train2014 and val2014, or to flickr30k-images.

    Args:
        folder: Holds the file.
        split: One of SPLITS.
        dataset: One of DATASETS.
        captions: Captions per image; None: all. Some COCO images have six or seven: 25,010 in test,
            25,000 with five each.
    """
    if dataset not in DATASETS:
        raise AnnotationError(
            f"there is no Karpathy split of {dataset!r}; choose one of: {', '.join(DATASETS)}"
        )
    check_split(split, SPLITS, dataset)
    if captions is not None and captions < 1:
        raise AnnotationError(f"captions is {captions}; it must be at least 1, or None for all")
    builder = Builder(split)
    path = builder.use(
        find(folder, [f"dataset_{dataset}.json", f"{dataset}/dataset.json"], _SOURCE)
    )
    content = read_json(path, dict)
    if content.get("dataset", dataset) != dataset or not isinstance(content.get("images"), list):
        raise AnnotationError(
            f"{path} is not Karpathy's file of {dataset}: its dataset is {content.get('dataset')!r}"
        )
    # COCO: 82,783 + 30,504 images; without restval, results are not comparable
    wanted = ("train", "restval") if split == "train" else (split,)
    rows = [
        (f"{path.name}[{number}]", image)
        for number, image in enumerate(content["images"])
        if image.get("split") in wanted
    ]
    builder.read(rows, _item(captions))
    builder.official("images", len(builder.items), IMAGES[dataset][split], verified=False)
    if dataset == "coco" and split == "train":
        rest = sum(image["split"] == "restval" for _, image in rows)
        builder.official("of them restval", rest, RESTVAL, verified=False)
    found = sum(
        len(item.captions) for item in builder.items.values() if isinstance(item, RetrievalItem)
    )
    builder.note(
        f"captions: {found:,}, {'all' if captions is None else f'the first {captions}'} of each"
        " image"
    )
    return builder.split()


def _item(captions: int | None) -> Callable[[dict[str, Any]], RetrievalItem]:
    def make(image: dict[str, Any]) -> RetrievalItem:
        file = text_of(image, "filename")
        sentences = image.get("sentences")
        if not isinstance(sentences, list) or not sentences:
            raise RowError("the image has no sentences")
        # in file order: with captions=5 the further ones of some images are left out
        texts = tuple(text_of(sentence, "raw") for sentence in sentences)[:captions]
        # Flickr30k has no `filepath`; in COCO, val and test images are in val2014
        folder = image.get("filepath")
        name = stem(file)
        return RetrievalItem(name, Media(name, f"{folder}/{file}" if folder else file), texts)

    return make
