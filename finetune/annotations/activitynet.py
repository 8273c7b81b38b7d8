"""ActivityNet Captions as paragraph-to-video retrieval.

All sentences of a video form one caption; the input is the complete video.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from allinone.finetune.annotations.common import (
    TRAIN_PARTS,
    Builder,
    RowError,
    check_split,
    find,
    json_lines,
    read_json,
    stem,
    text_of,
    texts_of,
    train_part,
)
from allinone.finetune.annotations.schema import Media, RetrievalItem, Split

SPLITS = (*TRAIN_PARTS, "val_1", "val_2")
VIDEOS = {"train": 10_009, "val_1": 4_917, "val_2": 4_885}
_SOURCE = (
    "captions.zip of ActivityNet Captions (Krishna et al. 2017), or ClipBERT's"
    " train/val1/val2.jsonl"
)


def load(folder: Path, split: str) -> Split:
    """Read one split.

    The common test is val_1, 4,917 x 4,917. val_2 has other captions of some of the same videos:
    never tune on it for a result on val_1.
    """
    check_split(split, SPLITS, "ActivityNet Captions")
    half = split if split in VIDEOS else "train"
    builder = Builder(split)
    path = builder.use(
        find(
            folder,
            [f"{half}.json", f"captions/{half}.json", f"{half.replace('_', '')}.jsonl"],
            _SOURCE,
        )
    )
    if path.suffix == ".jsonl":
        builder.read(
            json_lines(path, builder),
            lambda row: _item(text_of(row, "clip_name"), text_of(row, "caption")),
        )
    else:
        rows = (
            (f"{path.name}[{name}]", {"name": name, "entry": entry})
            for name, entry in read_json(path, dict).items()
        )
        builder.read(rows, _paragraph)
    # many links are dead, and papers differ in how many of the 4,917 test videos they had
    builder.official("videos", len(builder.items), VIDEOS[half])
    # val_1 is the test, and val_2 shows part of the same videos: validation comes from train
    if half == "train":
        return builder.split(train_part(list(builder.items.values()), split))
    return builder.split()


def _item(name: str, caption: str) -> RetrievalItem:
    """Make an item; its media is v_<id>, as the files are named."""
    # ids are written with and without v_, and some forms add a suffix
    video = "v_" + stem(name).removeprefix("v_")
    return RetrievalItem(video, Media(video, video), (caption,))


def _paragraph(record: dict[str, Any]) -> RetrievalItem:
    if not isinstance(record["entry"], dict):
        raise RowError("the entry is not a JSON object")
    # official sentences start with spaces, which `texts_of` removes
    paragraph = " ".join(
        sentence for sentence in texts_of(record["entry"], "sentences") if sentence
    )
    if not paragraph:
        raise RowError("'sentences' is empty")
    return _item(record["name"], paragraph)
