"""YouCook2 (Zhou et al. 2018) retrieval: one recipe step is one clip with one sentence.

youcookii_annotations_trainval.json: {"database": {video: {subset, recipe_type, annotations:
[{segment: [start, end], sentence}]}}}, seconds. Videos are <subset>/<recipe type>/<video>.*, as the
official download script stores them.

Papers test on 3,350 of the 3,492 validation clips, those whose videos are not in HowTo100M:
validation_youcook.csv of MIL-NCE, columns end, start, task, text, video_id
(github.com/LuoweiZhou/YouCook2-Leaderboard). Copies of what could be downloaded have fewer, such as
3,179 (huggingface.co/datasets/VLM2Vec/YouCook2) or 3,105
(huggingface.co/datasets/mteb/YouCook2_val): other tests. Sentences repeat, and each is a query of
its own, so that ties in text to video are real.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from allinone.finetune.annotations.common import (
    TRAIN_PARTS,
    Builder,
    RowError,
    check_split,
    find,
    read_json,
    table,
    text_of,
    train_part,
)
from allinone.finetune.annotations.schema import AnnotationError, Media, RetrievalItem, Split

SPLITS = (*TRAIN_PARTS, "val")
PROTOCOLS = ("unseen", "all")
VAL_CLIPS = {"unseen": 3_350, "all": 3_492}
JSON = "youcookii_annotations_trainval.json"
CSV = "validation_youcook.csv"
_SOURCE = "the annotations of YouCook2 (youcook2.eecs.umich.edu)"
_CSV_SOURCE = "csv/ of antoine77340/MIL-NCE_HowTo100M"


def load(
    folder: Path, split: str, *, protocol: str = "unseen", videos: Path | None = None
) -> Split:
    """Read one split.

    Args:
        folder: Holds the annotations.
        split: One of SPLITS.
        protocol: unseen: the 3,350 clips of validation_youcook.csv; all: every validation clip of
            the JSON file. Training is the same.
        videos: The media folder; if it has no folder of the split, videos are looked for in it
            directly.

    Raises:
        AnnotationError: Files are missing or have another format.
    """
    check_split(split, SPLITS, "YouCook2")
    if protocol not in PROTOCOLS:
        raise AnnotationError(
            f"YouCook2 has no protocol {protocol!r}; choose one of: {', '.join(PROTOCOLS)}"
        )
    builder = Builder(split)
    if split == "val" and protocol == "unseen":
        rows = _csv_rows(builder, builder.use(find(folder, [CSV, f"csv/{CSV}"], _CSV_SOURCE)))
    else:
        path = builder.use(find(folder, [JSON, f"annotations/{JSON}"], _SOURCE))
        rows = _json_rows(builder, path, "validation" if split == "val" else "training")
    for where, record in rows:
        with builder.row(where):
            builder.add(_clip(record, videos), where)
    if split == "val":
        builder.official("clips", len(builder.items), VAL_CLIPS[protocol], verified=False)
        return builder.split()
    return builder.split(train_part(list(builder.items.values()), split))


def _csv_rows(builder: Builder, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    columns = ("text", "start", "end", "task", "video_id")
    for where, row in table(path, builder, columns=columns, delimiter=",", quoted=True):
        yield where, {**row, "subset": "validation"}


def _json_rows(builder: Builder, path: Path, subset: str) -> Iterator[tuple[str, dict[str, Any]]]:
    database = read_json(path, dict).get("database")
    if not isinstance(database, dict):
        raise AnnotationError(f"{path} has no object 'database': is it another benchmark's file?")
    for video, entry in database.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("annotations"), list):
            builder.leave_out("the entry has no list 'annotations'", f"{path.name}[{video}]")
            continue
        if entry.get("subset") != subset:
            continue
        for number, step in enumerate(entry["annotations"]):
            where = f"{path.name}[{video}][{number}]"
            segment = step.get("segment") if isinstance(step, dict) else None
            if not isinstance(segment, list) or len(segment) != 2:
                builder.leave_out("'segment' is not [start, end]", where)
                continue
            yield (
                where,
                {
                    "subset": subset,
                    "task": entry.get("recipe_type"),
                    "video_id": video,
                    "start": segment[0],
                    "end": segment[1],
                    "text": step.get("sentence"),
                },
            )


def _clip(record: dict[str, Any], videos: Path | None) -> RetrievalItem:
    video, sentence = text_of(record, "video_id"), text_of(record, "text")
    try:
        start, end = float(text_of(record, "start")), float(text_of(record, "end"))
    except ValueError:
        raise RowError("start or end is not a number") from None
    # not `end <= start`: a comparison with nan is False
    if not (0 <= start < end and math.isfinite(end)):
        raise RowError("the clip does not end after it starts")
    subset = record["subset"]
    flat = videos is not None and not (videos / subset).is_dir()
    path = video if flat else f"{subset}/{text_of(record, 'task')}/{video}"
    return RetrievalItem(f"{video}_{start:g}_{end:g}", Media(video, path, start, end), (sentence,))
