"""MSR-VTT: caption retrieval, open-ended QA (Xu et al. 2017) and multiple choice (JSFusion).

The media folder holds video0.mp4 … video9999.mp4. Videos are numbered by official split: 0-6512
train, 6513-7009 validation, 7010-9999 test. Files write them either as a number or as
`video<number>`; both are read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from allinone.finetune.annotations.common import (
    Builder,
    check_split,
    find,
    json_rows,
    numbered_answers,
    question_kind,
    text_of,
)
from allinone.finetune.annotations.msrvtt_choice import load_choice
from allinone.finetune.annotations.msrvtt_retrieval import (
    OFFICIAL_SPLITS,
    PROTOCOLS,
    load_clipbert_retrieval,
    load_retrieval,
)
from allinone.finetune.annotations.msrvtt_videos import FIRST_VIDEO, media_of_video, video_name
from allinone.finetune.annotations.schema import AnnotationError, QAItem, Split

__all__ = ["FIRST_VIDEO", "PROTOCOLS", "load", "video_name"]

TASKS = ("retrieval", "qa", "choice")
QUESTIONS = {"train": 158_581, "val": 12_278, "test": 72_821}
_QA_SOURCE = "MSRVTT-QA.zip of Xu et al. 2017, or ClipBERT's msrvtt_qa annotations"


def load(folder: Path, split: str, *, task: str, protocol: str = "9k") -> Split:
    """Read one split of one task.

    retrieval: captions from MSRVTT_data.json (CLIP4Clip), train_val_videodatainfo.json with
    test_videodatainfo.json (MSR-VTT itself) or MSR_VTT.json (frozen-in-time);
    MSRVTT_JSFUSION_test.csv for the 1k-A test. Lists of training videos are used if available, and
    otherwise derived from the definition of the protocol. 7k-clipbert reads {train,val,test}.jsonl
    only.

    qa: {split}_qa.json or ClipBERT's JSON lines, with train_ans2label.json as the answer space if
    available.

    choice: the 2,990 official test videos. There is no training set: training splits are made of
    the captions of the 7,010 videos that are not in the test, each with captions of four other
    videos.

    Args:
        folder: Holds the annotation files.
        split: Name of the split; which names are valid depends on task and protocol.
        task: retrieval, qa or choice.
        protocol: One of PROTOCOLS; for retrieval.

    Raises:
        AnnotationError: A name is unknown, or files are missing or have another format.
    """
    if task not in TASKS:
        raise AnnotationError(f"MSR-VTT has no task {task!r}; choose one of: {', '.join(TASKS)}")
    if protocol not in PROTOCOLS:
        raise AnnotationError(
            f"MSR-VTT retrieval has no protocol {protocol!r}; choose one of: {', '.join(PROTOCOLS)}"
        )
    if task == "qa":
        return _qa(folder, split)
    if task == "choice":
        return load_choice(folder, split)
    return (
        load_clipbert_retrieval(folder, split)
        if protocol == "7k-clipbert"
        else load_retrieval(folder, split, protocol)
    )


def _qa(folder: Path, split: str) -> Split:
    check_split(split, OFFICIAL_SPLITS, "MSR-VTT-QA")
    # validation has its own file here; the original validates on the test file
    builder = Builder(split)
    path = builder.use(
        find(folder, [f"{split}_qa.json", f"msrvtt_qa_{split}.jsonl", f"{split}.jsonl"], _QA_SOURCE)
    )
    # JSON lines have no ids: the position in the file serves as one.
    rows = ((where, {"id": where, **record}) for where, record in json_rows(path, builder))
    builder.read(rows, _question)
    builder.official("questions", len(builder.items), QUESTIONS[split], verified=False)
    # ClipBERT's list: the 1,500 most frequent answers of train
    return builder.split(answer_space=numbered_answers(folder / "train_ans2label.json"))


def _question(record: dict[str, Any]) -> QAItem:
    video, question = video_name(text_of(record, "video_id")), text_of(record, "question")
    kind = str(record.get("answer_type") or question_kind(question))
    return QAItem(
        text_of(record, "id"), media_of_video(video), question, (text_of(record, "answer"),), kind
    )
