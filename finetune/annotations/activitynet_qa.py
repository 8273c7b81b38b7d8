"""ActivityNet-QA (Yu et al. 2019): open-ended questions on complete videos.

Two JSON arrays per split, joined by `question_id`: {split}_q.json with `video_name` (the YouTube
id, without the v_ of the files), and {split}_a.json with `answer` and `type`, 0 to 8
(github.com/MILVLG/activitynet-qa, dataset/README.md).

The official evaluator compares answers as texts. Results in which a language model judges answers
are another metric: two runs of such a judge on the same predictions gave 35.2 and 43.6
(github.com/mbzuai-oryx/Video-ChatGPT/issues/28).
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
    index_of,
    json_rows,
    text_of,
)
from allinone.finetune.annotations.schema import Media, QAItem, Split

SPLITS = ("train", "val", "test")
QUESTIONS = {"train": 32_000, "val": 18_000, "test": 8_000}
"""As stated by the official README."""
KINDS = (
    "motion",
    "spatial",
    "temporal",
    "free:yes/no",
    "free:color",
    "free:object",
    "free:location",
    "free:number",
    "free:other",
)
"""By the number in `type`: three types of question, and the free questions by type of answer."""
_SOURCE = "the folder dataset/ of MILVLG/activitynet-qa"


def load(folder: Path, split: str) -> Split:
    """Read one split; `folder` holds the two files, or the folder `dataset` with them."""
    check_split(split, SPLITS, "ActivityNet-QA")
    builder = Builder(split)
    questions, answers = (
        builder.use(find(folder, [f"{split}_{kind}.json", f"dataset/{split}_{kind}.json"], _SOURCE))
        for kind in "qa"
    )
    known: dict[str, tuple[str, str]] = {}
    for where, record in json_rows(answers, builder):
        with builder.row(where):
            kind = KINDS[index_of(record, "type", len(KINDS))]
            known.setdefault(text_of(record, "question_id"), (text_of(record, "answer"), kind))
    builder.read(json_rows(questions, builder), _question(known, answers.name))
    builder.official("questions", len(builder.items), QUESTIONS[split], verified=False)
    return builder.split()


def _question(answers: dict[str, tuple[str, str]], file: str) -> Callable[[dict[str, Any]], QAItem]:
    def make(record: dict[str, Any]) -> QAItem:
        number = text_of(record, "question_id")
        if number not in answers:
            raise RowError(f"the question has no usable row in {file}")
        answer, kind = answers[number]
        video = "v_" + text_of(record, "video_name").removeprefix("v_")
        return QAItem(
            number,
            Media(video, video),
            text_of(record, "question"),
            (answer,),
            kind,
        )

    return make
