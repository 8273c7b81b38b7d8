"""NExT-QA, multiple choice (Xiao et al. 2021): why, how and when, five options per question.

{split}.csv with the columns video, frame_count, width, height, question, answer (0 to 4), qid,
type, a0 … a4. `qid` counts inside a video only, so video and qid together name a question
(github.com/doc-doc/NExT-QA/issues/11). Videos are VidOR's; map_vid_vidorID.json gives their paths.

NExT-GQA's train.csv has the same columns, but the text of the answer instead of its number: its
rows are left out, and counted. Its val.csv and test.csv are subsets of these.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from allinone.finetune.annotations.common import (
    TRAIN_PARTS,
    Builder,
    RowError,
    check_split,
    find,
    index_of,
    read_json,
    table,
    text_of,
    train_part,
)
from allinone.finetune.annotations.schema import ChoiceItem, Media, Split

SPLITS = (*TRAIN_PARTS, "val", "test")
QUESTIONS = {"train": 34_132, "val": 4_996, "test": 8_564}
OPTIONS = 5
KINDS = {
    "CW": "causal:why",
    "CH": "causal:how",
    "TN": "temporal:before/after",
    "TP": "temporal:before/after",
    "TC": "temporal:when",
    "DC": "descriptive:count",
    "DL": "descriptive:location",
    "DO": "descriptive:other",
}
"""The official evaluator (eval_mc.py) also counts previous (TP) and next (TN) as one type."""
MAP = "map_vid_vidorID.json"
_SOURCE = "dataset/nextqa of doc-doc/NExT-QA"


def load(folder: Path, split: str) -> Split:
    """Read one split.

    Args:
        folder: Holds {split}.csv, and map_vid_vidorID.json unless all videos are in one folder.
        split: One of SPLITS.
    """
    check_split(split, SPLITS, "NExT-QA")
    half = split if split in QUESTIONS else "train"
    builder = Builder(split)
    path = builder.use(find(folder, [f"{half}.csv", f"nextqa/{half}.csv"], _SOURCE))
    options = [f"a{number}" for number in range(OPTIONS)]
    columns = ["video", "question", "answer", "qid", "type", *options]
    rows = table(path, builder, columns=columns, delimiter=",", quoted=True)
    builder.read(rows, _question(_paths(path.with_name(MAP), builder), options))
    builder.official("questions", len(builder.items), QUESTIONS[half], verified=False)
    if half == "train":
        return builder.split(train_part(list(builder.items.values()), split))
    return builder.split()


def _paths(path: Path, builder: Builder) -> dict[str, str]:
    """Video → its path, such as 1150/6233408665; empty if there is no such file."""
    if not path.is_file():
        builder.note(f"{MAP} is not there: videos are looked for as <video>.mp4 in one folder")
        return {}
    return {str(video): str(name) for video, name in read_json(builder.use(path), dict).items()}


def _question(paths: dict[str, str], options: list[str]) -> Callable[[dict[str, Any]], ChoiceItem]:
    def make(record: dict[str, Any]) -> ChoiceItem:
        video = text_of(record, "video")
        if paths and video not in paths:
            raise RowError(f"the video is not in {MAP}")
        kind = text_of(record, "type")
        if kind not in KINDS:
            raise RowError(f"'type' is not one of {', '.join(KINDS)}")
        return ChoiceItem(
            f"{video}_{text_of(record, 'qid')}",
            Media(video, paths.get(video, video)),
            text_of(record, "question"),
            tuple(text_of(record, option) for option in options),
            index_of(record, "answer", OPTIONS),
            kind=KINDS[kind],
        )

    return make
