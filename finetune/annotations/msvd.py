"""MSVD: open-ended QA (Xu et al. 2017) and caption retrieval.

The two use different splits of the same 1,970 clips; do not mix them.
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
    json_rows,
    question_kind,
    read_json,
    read_text,
    text_of,
)
from allinone.finetune.annotations.schema import (
    AnnotationError,
    Media,
    QAItem,
    RetrievalItem,
    Split,
)

SPLITS = ("train", "val", "test")
TASKS = ("qa", "retrieval")
QUESTIONS = {"train": 30_933, "val": 6_415, "test": 13_157}
VIDEOS = {"train": 1_200, "val": 100, "test": 670}
"""Clips of the retrieval split. MSVD-QA has 1,200 / 250 / 520."""
CAPTION_FILES = ("AllVideoDescriptions.txt", "raw-captions.json")
_QA_SOURCE = "MSVD-QA of Xu et al. 2017 (MSVD-QA.zip)"
_RETRIEVAL_SOURCE = "collaborative-experts' or CLIP4Clip's msvd_data"


def load(folder: Path, split: str, *, task: str) -> Split:
    """Read one split of one task.

    Args:
        folder: Holds the files.
        split: One of SPLITS.
        task: qa: {split}_qa.json (or msvd_{split}_qa_encode.json, or JSON lines) with
            youtube_mapping.txt, and msvd_answer_set.txt if available. retrieval: {split}_list.txt
            with AllVideoDescriptions.txt; all captions of a clip are queries, as is common.
    """
    check_split(split, SPLITS, f"MSVD {task}")
    if task not in TASKS:
        raise AnnotationError(f"MSVD has no task {task!r}; choose one of: {', '.join(TASKS)}")
    return _qa(folder, split) if task == "qa" else _retrieval(folder, split)


def _qa(folder: Path, split: str) -> Split:
    builder = Builder(split)
    names = [f"{split}_qa.json", f"msvd_{split}_qa_encode.json", f"msvd_qa_{split}.jsonl"]
    path = builder.use(find(folder, names, _QA_SOURCE))
    clips = _mapping(builder.use(find(folder, ["youtube_mapping.txt"], _QA_SOURCE)))
    builder.read(json_rows(path, builder), _question(clips))
    builder.official("questions", len(builder.items), QUESTIONS[split], verified=split == "test")
    # 1,000 of the 1,852 training answers; the original has a further class, never a target
    answers = folder / "msvd_answer_set.txt"
    space = (
        tuple(line.strip() for line in read_text(answers).splitlines() if line.strip())
        if answers.is_file()
        else ()
    )
    return builder.split(answer_space=space)


def _question(clips: dict[str, str]) -> Callable[[dict[str, Any]], QAItem]:
    def make(record: dict[str, Any]) -> QAItem:
        clip = _clip(clips, text_of(record, "video_id"))
        question = text_of(record, "question")
        return QAItem(
            text_of(record, "id"),
            Media(clip, clip),
            question,
            (text_of(record, "answer"),),
            question_kind(question),
        )

    return make


def _clip(clips: dict[str, str], video: str) -> str:
    """Find a clip by 873 (the official array), vid873 (other forms) or its own name."""
    # the mapping has numbers from 1 to 1,970
    number = video.removeprefix("vid")
    if number in clips:
        return clips[number]
    if video in clips.values():
        return video
    raise RowError("the video is not in youtube_mapping.txt")


def _mapping(path: Path) -> dict[str, str]:
    clips = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        # clip names, <id>_<start>_<end>, contain no space
        if len(fields) != 2 or not fields[1].startswith("vid"):
            raise AnnotationError(
                f"{path}:{number}: expected '<clip name> vid<number>', found {line[:80]!r}"
            )
        clips[fields[1].removeprefix("vid")] = fields[0]
    return clips


def _retrieval(folder: Path, split: str) -> Split:
    builder = Builder(split)
    lists = builder.use(find(folder, [f"{split}_list.txt"], _RETRIEVAL_SOURCE))
    captions = _captions(builder, _caption_file(folder))
    for number, line in enumerate(read_text(lists).splitlines(), 1):
        clip, where = line.strip(), f"{lists.name}:{number}"
        if clip in captions:
            builder.add(RetrievalItem(clip, Media(clip, clip), tuple(captions[clip])), where)
        elif clip:
            builder.leave_out("the clip has no caption", where)
    # counted by clips, not lines: some lists lack the final newline
    builder.official("clips", len(builder.items), VIDEOS[split])
    total = sum(len(captions[clip]) for clip in builder.items)
    builder.note(
        f"captions: {total:,}, all of them queries (about 27,800 in the test split); one or five"
        " per clip is another protocol"
    )
    return builder.split()


def _caption_file(folder: Path) -> Path:
    for name in CAPTION_FILES:
        if (folder / name).is_file():
            return folder / name
    if next(folder.glob("*.pkl"), None):
        raise AnnotationError(
            f"{folder} holds the captions as a pickle file, which can run any program when it is"
            " loaded, and is refused. Add AllVideoDescriptions.txt (MSVD's own release, UT Austin)"
            " to the folder, or raw-captions.json, the same content as JSON"
        )
    if next(folder.glob("MSVD_*.tsv"), None):
        raise AnnotationError(
            f"{folder} holds MSVD_*.tsv: its captions are joined by commas and contain commas, so"
            " they cannot be separated; use AllVideoDescriptions.txt of MSVD's own release (UT"
            " Austin)"
        )
    return find(
        folder,
        CAPTION_FILES,
        "MSVD's own release (UT Austin, videoDescription/AllVideoDescriptions.txt)",
    )


def _captions(builder: Builder, path: Path) -> dict[str, list[str]]:
    """AllVideoDescriptions.txt: `<clip> <caption>` per line after a preamble of lines with #;
    raw-captions.json: {clip: [[token, …], …]}."""
    builder.use(path)
    captions: dict[str, list[str]] = {}
    if path.suffix == ".json":
        # joined by spaces: the tokenizer splits at punctuation, so tokens come out the same
        for clip, sentences in read_json(path, dict).items():
            captions[clip] = [
                " ".join(words) if isinstance(words, list) else str(words) for words in sentences
            ]
        return captions
    for number, line in enumerate(read_text(path).splitlines(), 1):
        # the preamble is marked by #; clip names may start with - or _
        clip, _, caption = line.strip().partition(" ")
        if not clip or clip.startswith("#"):
            continue
        if caption.strip():
            captions.setdefault(clip, []).append(caption.strip())
        else:
            builder.leave_out("the caption is empty", f"{path.name}:{number}")
    return captions
