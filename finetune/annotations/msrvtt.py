"""MSR-VTT: caption retrieval in four protocols, open-ended QA (Xu et al. 2017) and multiple choice
(JSFusion, Yu et al. 2018).

The media folder holds video0.mp4 … video9999.mp4 side by side. Videos are numbered by official
split: 0–6512 train, 6513–7009 validation, 7010–9999 test. All files write them either as a number
or as `video<number>`; both are read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from allinone.finetune.annotations.common import (
    TRAIN_PARTS,
    Builder,
    RowError,
    check_split,
    find,
    index_of,
    json_lines,
    json_rows,
    place_in_order,
    question_kind,
    read_json,
    read_text,
    table,
    text_of,
    texts_of,
    train_part,
)
from allinone.finetune.annotations.schema import (
    AnnotationError,
    ChoiceItem,
    Media,
    QAItem,
    RetrievalItem,
    Split,
)

TASKS = ("retrieval", "qa", "choice")
PROTOCOLS = ("9k", "7k", "full", "1k-b", "7k-clipbert")
"""9k, 7k: JSFusion's 1k-A test with 9,000 or 7,010 training videos; full: the official split; 1k-b:
Miech's lists, never with a 1k-A result; 7k-clipbert: ClipBERT's own files of the 7k protocol, with
a validation set of theirs."""
OFFICIAL_SPLITS = ("train", "val", "test")
OWN_SPLITS = (*TRAIN_PARTS, "test")
FIRST_VIDEO = {"train": 0, "val": 6_513, "test": 7_010}
ALL_VIDEOS = 10_000
VIDEOS = {
    ("9k", "train"): 9_000,
    ("9k", "test"): 1_000,
    ("7k", "train"): 7_010,
    ("7k", "test"): 1_000,
    ("full", "train"): 6_513,
    ("full", "val"): 497,
    ("full", "test"): 2_990,
    ("1k-b", "train"): 6_656,
    ("1k-b", "test"): 1_000,
}
QUESTIONS = {"train": 158_581, "val": 12_278, "test": 72_821}
CHOICE_TEST = 2_990
OPTIONS = 5
TEST_CSV = "MSRVTT_JSFUSION_test.csv"
CAPTION_INDEX = "jsfusion_val_caption_idx.pkl"
_TRAIN_LISTS = {
    "9k": ("MSRVTT_train.9k.csv", "train_list_jsfusion.txt"),
    "7k": ("MSRVTT_train.7k.csv",),
    "1k-b": ("train_list_miech.txt",),
}
_FOLDERS = ("", "annotation/", "high-quality/structured-symlinks/")
_CAPTIONS_SOURCE = (
    "train_val_annotation.zip and test_videodatainfo.json.zip of MSR-VTT, or CLIP4Clip's"
    " msrvtt_data.zip (MSRVTT_data.json)"
)
_LISTS_SOURCE = (
    "CLIP4Clip's msrvtt_data.zip for the CSV lists, frozen-in-time's MSRVTT.zip for the lists"
    " of ids"
)
_QA_SOURCE = "MSRVTT-QA.zip of Xu et al. 2017, or ClipBERT's msrvtt_qa annotations"
_CHOICE_SOURCE = (
    "MSR_MC_test.csv of JSFusion, or ClipBERT's msrvtt_mc_test.jsonl, or Singularity's"
    " msrvtt_mc_test.json"
)


def load(folder: Path, split: str, *, task: str, protocol: str = "9k") -> Split:
    """`task` retrieval | qa | choice; `protocol` is retrieval's.

    retrieval: captions from MSRVTT_data.json (CLIP4Clip), train_val_videodatainfo.json with
    test_videodatainfo.json (MSR-VTT itself) or MSR_VTT.json (frozen-in-time);
    MSRVTT_JSFUSION_test.csv for the 1k-A test. The lists of training videos are used if they are
    there, and else derived from the definition of the protocol. 7k-clipbert:
    {train,val,test}.jsonl, nothing of the other files.

    qa: {split}_qa.json or ClipBERT's JSON lines, with train_ans2label.json as the answer space if
    it is there.

    choice: the 2,990 official test videos. There is no training set: the training splits are made
    of the captions of the 7,010 videos that are not in the test, each with four captions of other
    videos.
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
        return _choice(folder, split)
    return (
        _clipbert(folder, split)
        if protocol == "7k-clipbert"
        else _retrieval(folder, split, protocol)
    )


def video_name(text: str) -> str:
    """`video12` from 12, video12, video12.mp4 or JSFusion's msr12. RowError from anything else."""
    match = re.fullmatch(r"(?:video|msr)?(\d+)(?:\.mp4)?", text.strip())
    if match is None:
        raise RowError("the video is neither a number nor video<number>")
    return f"video{int(match[1])}"


def _number(video: str) -> int:
    return int(video.removeprefix("video"))


def _official_split(video: str) -> str:
    return [name for name, first in FIRST_VIDEO.items() if _number(video) >= first][-1]


def _media(video: str) -> Media:
    return Media(video, video)


# -- captions --------------------------------------------------------------------------------------


@dataclass
class _Captions:
    """What the caption files say: texts in file order, and the official split of each video."""

    of: dict[str, list[str]] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)

    def videos(self, *splits: str) -> list[str]:
        """The videos of official splits, by number."""
        chosen = [
            video for video in self.of if self.splits.get(video, _official_split(video)) in splits
        ]
        return sorted(chosen, key=_number)


def _captions(folder: Path, builder: Builder, *, with_test: bool) -> _Captions:
    captions = _Captions()
    halves = ["train_val_videodatainfo.json", *(["test_videodatainfo.json"] if with_test else [])]
    merged = _first(folder, "MSRVTT_data.json")
    official = _first(folder, halves[0])
    frozen = _first(folder, "MSR_VTT.json")
    if merged:
        _read_official(builder.use(merged), builder, captions)
    elif official:
        for name in halves:
            path = _first(folder, name) or find(folder, [name], _CAPTIONS_SOURCE)
            _read_official(builder.use(path), builder, captions)
    elif frozen:
        _read_frozen(builder.use(frozen), builder, captions)
    else:
        find(folder, ["MSRVTT_data.json", halves[0], "MSR_VTT.json"], _CAPTIONS_SOURCE)
    return captions


def _first(folder: Path, name: str) -> Path | None:
    return next(
        (folder / f"{part}{name}" for part in _FOLDERS if (folder / f"{part}{name}").is_file()),
        None,
    )


def _rows(path: Path, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    records = read_json(path, dict).get(key)
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise AnnotationError(
            f"{path} has no list {key!r} of objects: is it another benchmark's file?"
        )
    for number, record in enumerate(records):
        yield f"{path.name}:{key}[{number}]", record


def _read_official(path: Path, builder: Builder, captions: _Captions) -> None:
    for where, record in _rows(path, "videos"):
        with builder.row(where):
            split = text_of(record, "split")
            captions.splits[video_name(text_of(record, "video_id"))] = {"validate": "val"}.get(
                split, split
            )
    seen: set[str] = set()
    for where, record in _rows(path, "sentences"):
        with builder.row(where):
            sentence = text_of(record, "sen_id") if "sen_id" in record else where
            video, caption = video_name(text_of(record, "video_id")), text_of(record, "caption")
            if sentence in seen:
                raise RowError("sen_id stands twice, the first is kept")
            seen.add(sentence)
            captions.of.setdefault(video, []).append(caption)


def _read_frozen(path: Path, builder: Builder, captions: _Captions) -> None:
    for where, record in _rows(path, "annotations"):
        with builder.row(where):
            captions.of.setdefault(video_name(text_of(record, "image_id")), []).append(
                text_of(record, "caption")
            )


# -- retrieval -------------------------------------------------------------------------------------


def _retrieval(folder: Path, split: str, protocol: str) -> Split:
    check_split(
        split,
        OFFICIAL_SPLITS if protocol == "full" else OWN_SPLITS,
        f"MSR-VTT retrieval {protocol}",
    )
    builder = Builder(split)
    half = split if split in ("val", "test") else "train"
    if half == "test" and protocol in ("9k", "7k"):
        for item in _test_1k_a(folder, builder):
            builder.add(item, item.id)
    else:
        captions = _captions(
            folder, builder, with_test=half == "test" or protocol in ("9k", "1k-b")
        )
        for video in _videos(folder, protocol, half, captions, builder):
            texts = captions.of.get(video, [])
            if protocol == "1k-b" and half == "test":
                texts = texts[:1]
            if texts:
                builder.add(RetrievalItem(video, _media(video), tuple(texts)), video)
            else:
                builder.leave_out("the video has no caption", video)
    builder.official("videos", len(builder.items), VIDEOS[protocol, half])
    if protocol == "1k-b" and half == "test":
        builder.note(
            "the query of a video is its first caption, as in Miech et al.'s protocol; not"
            " comparable with 1k-A"
        )
    if protocol == "full" or half == "test":
        return builder.split()
    return builder.split(
        train_part(
            [item for item in builder.items.values() if isinstance(item, RetrievalItem)], split
        )
    )


def _videos(
    folder: Path, protocol: str, half: str, captions: _Captions, builder: Builder
) -> Sequence[str]:
    """The videos of a list, or by the protocol's definition where there is no list. AnnotationError
    where training videos are in the test."""
    if protocol == "full":
        return captions.videos(half)
    if protocol == "1k-b":
        train, test = (
            _list(folder, name, builder) for name in ("train_list_miech.txt", "test_list_miech.txt")
        )
        _refuse_leak(train, test, "train_list_miech.txt", "test_list_miech.txt")
        return train if half == "train" else test
    if protocol == "9k":
        tests, test_name = {item.id for item in _test_1k_a(folder, builder)}, TEST_CSV
    else:
        tests, test_name = (
            {f"video{number}" for number in range(FIRST_VIDEO["test"], ALL_VIDEOS)},
            "the official test",
        )
    name = next((name for name in _TRAIN_LISTS[protocol] if _first(folder, name)), None)
    if name:
        train = _list(folder, name, builder)
        _refuse_leak(train, tests, name, test_name)
        return train
    splits = ("train", "val", "test") if protocol == "9k" else ("train", "val")
    chosen = [video for video in captions.videos(*splits) if video not in tests]
    builder.note(
        f"there is no {' or '.join(_TRAIN_LISTS[protocol])}: the training videos are those of the"
        " official "
        + (
            "splits that are not in the 1k-A test"
            if protocol == "9k"
            else "train and validation splits, which is what the list holds"
        )
    )
    return chosen


def _refuse_leak(
    train: Collection[str], test: Collection[str], list_name: str, test_name: str
) -> None:
    if shared := sorted(set(test).intersection(train), key=_number):
        raise AnnotationError(
            f"{list_name} names {len(shared)} videos of {test_name}, for example"
            f" {', '.join(shared[:3])}: a result would be leaked. (Miech's list, called 7K in some"
            f" code, has 453 videos of the 1k-A test.) Use the lists of: {_LISTS_SOURCE}"
        )


def _list(folder: Path, name: str, builder: Builder) -> list[str]:
    """Ids of a CSV with the header video_id, or of a text file with one id per line."""
    path = builder.use(_first(folder, name) or find(folder, [name], _LISTS_SOURCE))
    if path.suffix == ".csv":
        rows = [
            (where, row["video_id"])
            for where, row in table(path, builder, columns=["video_id"], delimiter=",", quoted=True)
        ]
    else:
        rows = [
            (f"{name}:{number}", line)
            for number, line in enumerate(read_text(path).splitlines(), 1)
            if line.strip()
        ]
    videos: dict[str, None] = {}
    for where, text in rows:
        with builder.row(where):
            video = video_name(text)
            if video in videos:
                raise RowError("the video stands twice in the list")
            videos[video] = None
    return list(videos)


def _test_1k_a(folder: Path, builder: Builder) -> list[RetrievalItem]:
    """Exactly one caption per video: 1,000 x 1,000. A video that stands twice would make another
    protocol of it, so that is an error, not a note."""
    path = _first(folder, TEST_CSV)
    if path is None and _first(folder, CAPTION_INDEX):
        raise AnnotationError(
            f"{folder} has {CAPTION_INDEX}, which says which caption of MSR_VTT.json each test"
            " video takes. It is a pickle, which can run any program when it is read, and is"
            f" refused. Put {TEST_CSV} beside it: the same 1,000 captions as text (CLIP4Clip's"
            " msrvtt_data.zip)"
        )
    path = builder.use(
        path or find(folder, [TEST_CSV], "CLIP4Clip's msrvtt_data.zip, or JSFusion's repository")
    )
    items: dict[str, RetrievalItem] = {}
    for where, row in table(
        path, builder, columns=["video_id", "sentence"], delimiter=",", quoted=True
    ):
        with builder.row(where):
            video = video_name(text_of(row, "video_id"))
            if video in items:
                raise AnnotationError(
                    f"{path}: {video} stands twice ({where}); the 1k-A test has exactly one caption"
                    " per video, all 20 of them give another number"
                )
            items[video] = RetrievalItem(video, _media(video), (text_of(row, "sentence"),))
    return list(items.values())


def _clipbert(folder: Path, split: str) -> Split:
    check_split(split, OFFICIAL_SPLITS, "MSR-VTT retrieval in ClipBERT's form")
    builder = Builder(split)
    path = builder.use(
        find(
            folder,
            [f"msrvtt_retrieval_{split}.jsonl", f"{split}.jsonl"],
            "ClipBERT's msrvtt_retrieval annotations",
        )
    )
    captions: dict[str, list[str]] = {}
    for where, record in json_lines(path, builder):
        with builder.row(where):
            captions.setdefault(video_name(text_of(record, "clip_name")), []).append(
                text_of(record, "caption")
            )
    several = sorted((video for video, texts in captions.items() if len(texts) > 1), key=_number)
    if split == "test" and several:
        raise AnnotationError(
            f"{path}: {several[0]} stands twice; the 1k-A test has exactly one caption per video"
        )
    for video, texts in captions.items():
        builder.add(RetrievalItem(video, _media(video), tuple(texts)), video)
    if split == "test":
        builder.official("videos", len(builder.items), VIDEOS["7k", "test"])
    return builder.split()


# -- questions -------------------------------------------------------------------------------------


def _qa(folder: Path, split: str) -> Split:
    check_split(split, OFFICIAL_SPLITS, "MSR-VTT-QA")
    builder = Builder(split)
    path = builder.use(
        find(folder, [f"{split}_qa.json", f"msrvtt_qa_{split}.jsonl", f"{split}.jsonl"], _QA_SOURCE)
    )
    # JSON lines have no ids: the place in the file serves as one.
    rows = ((where, {"id": where, **record}) for where, record in json_rows(path, builder))
    builder.read(rows, _question)
    builder.official("questions", len(builder.items), QUESTIONS[split], verified=False)
    labels = folder / "train_ans2label.json"
    space: tuple[str, ...] = ()
    if labels.is_file():
        numbered = read_json(labels, dict)
        space = tuple(sorted(numbered, key=lambda answer: int(numbered[answer])))
    return builder.split(answer_space=space)


def _question(record: dict[str, Any]) -> QAItem:
    video, question = video_name(text_of(record, "video_id")), text_of(record, "question")
    kind = str(record.get("answer_type") or question_kind(question))
    return QAItem(
        text_of(record, "id"), _media(video), question, (text_of(record, "answer"),), kind
    )


# -- multiple choice -------------------------------------------------------------------------------


def _choice(folder: Path, split: str) -> Split:
    check_split(split, OWN_SPLITS, "MSR-VTT multiple choice")
    builder = Builder(split)
    if split != "test":
        train = _retrieval(folder, "train-full", "7k")
        builder.files.extend(train.files)
        for note in train.notes:
            builder.note(note)
        for item in _made_choices(
            [item for item in train.items if isinstance(item, RetrievalItem)]
        ):
            builder.add(item, item.id)
        builder.note("made from captions: the benchmark has no training set, only JSFusion's test")
        return builder.split(
            train_part(
                [item for item in builder.items.values() if isinstance(item, ChoiceItem)], split
            )
        )
    path = builder.use(
        find(
            folder,
            ["MSR_MC_test.csv", "msrvtt_mc_test.jsonl", "msrvtt_mc_test.json"],
            _CHOICE_SOURCE,
        )
    )
    if path.suffix == ".csv":
        options = [f"a{number}" for number in range(1, OPTIONS + 1)]
        rows: Iterator[tuple[str, dict[str, Any]]] = table(
            path, builder, columns=["vid_key", *options, "answer"], delimiter="\t", quoted=True
        )
        make = _choice_of(
            "vid_key", lambda record: tuple(text_of(record, option) for option in options)
        )
    elif path.suffix == ".jsonl":
        rows, make = (
            json_rows(path, builder),
            _choice_of("clip_name", lambda record: texts_of(record, "options", OPTIONS)),
        )
    else:
        rows, make = (
            json_rows(path, builder),
            _choice_of("video", lambda record: texts_of(record, "caption", OPTIONS)),
        )
    builder.read(((where, {"qid": where, **record}) for where, record in rows), make)
    builder.official("questions", len(builder.items), CHOICE_TEST)
    builder.note(
        "a checkpoint that was trained with the 9k protocol has seen 1,990 of the 2,990 test videos"
    )
    return builder.split()


def _choice_of(
    video: str, options: Callable[[dict[str, Any]], tuple[str, ...]]
) -> Callable[[dict[str, Any]], ChoiceItem]:
    def make(record: dict[str, Any]) -> ChoiceItem:
        media = _media(video_name(text_of(record, video)))
        return ChoiceItem(
            text_of(record, "qid"), media, "", options(record), index_of(record, "answer", OPTIONS)
        )

    return make


def _made_choices(items: Sequence[RetrievalItem]) -> Iterator[ChoiceItem]:
    """One question per caption; four other videos lend the wrong options. All by hashes of ids: the
    same in every run and on every machine."""
    if len(items) < OPTIONS:
        raise AnnotationError(
            f"multiple-choice questions need at least {OPTIONS} training videos, found {len(items)}"
        )
    for place, item in enumerate(items):
        for number, caption in enumerate(item.captions):
            key = f"{item.id}@{number}"
            others = _others(key, place, len(items))
            wrong = [
                items[k].captions[int(place_in_order(f"{key}/{k}") * len(items[k].captions))]
                for k in others
            ]
            answer = int(OPTIONS * place_in_order(f"{key} answer"))
            yield ChoiceItem(
                key, item.media, "", (*wrong[:answer], caption, *wrong[answer:]), answer
            )


def _others(key: str, place: int, size: int) -> list[int]:
    """Four different places below `size` that are not `place`."""
    chosen: dict[int, None] = {}
    draw = 0
    while len(chosen) < OPTIONS - 1:
        other = int(place_in_order(f"{key}#{draw}") * size)
        draw += 1
        if other != place:
            chosen[other] = None
    return list(chosen)
