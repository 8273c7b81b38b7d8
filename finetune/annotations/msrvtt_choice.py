"""MSR-VTT multiple choice (JSFusion, Yu et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from allinone.finetune.annotations.common import (
    Builder,
    check_split,
    find,
    index_of,
    json_rows,
    place_in_order,
    table,
    text_of,
    texts_of,
    train_part,
)
from allinone.finetune.annotations.msrvtt_retrieval import OWN_SPLITS, load_retrieval
from allinone.finetune.annotations.msrvtt_videos import media_of_video, video_name
from allinone.finetune.annotations.schema import (
    AnnotationError,
    ChoiceItem,
    RetrievalItem,
    Split,
)

CHOICE_TEST = 2_990
"""Questions of the official test."""
OPTIONS = 5
_CHOICE_SOURCE = (
    "MSR_MC_test.csv of JSFusion, or ClipBERT's msrvtt_mc_test.jsonl, or Singularity's"
    " msrvtt_mc_test.json"
)


def load_choice(folder: Path, split: str) -> Split:
    """The official test, or a training split made of captions."""
    check_split(split, OWN_SPLITS, "MSR-VTT multiple choice")
    builder = Builder(split)
    if split != "test":
        # 7k: the questions cover all 2,990 official test videos, and 9k trains on 1,990 of them
        train = load_retrieval(folder, "train-full", "7k")
        builder.files.extend(train.files)
        for note in train.notes:
            builder.note(note)
        for item in _made_choices(
            [item for item in train.items if isinstance(item, RetrievalItem)]
        ):
            builder.add(item, item.id)
        builder.note("made of captions: the benchmark has no training set, only JSFusion's test")
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
    rows: Iterator[tuple[str, dict[str, Any]]]
    # all three forms count the answer from 0
    if path.suffix == ".csv":
        options = [f"a{number}" for number in range(1, OPTIONS + 1)]
        columns = ["vid_key", *options, "answer"]
        rows = table(path, builder, columns=columns, delimiter="\t", quoted=True)
        make = _choice_of(
            "vid_key", lambda record: tuple(text_of(record, option) for option in options)
        )
    else:
        rows = json_rows(path, builder)
        video, field = ("clip_name", "options") if path.suffix == ".jsonl" else ("video", "caption")
        make = _choice_of(video, lambda record: texts_of(record, field, OPTIONS))
    # only ClipBERT's form has a qid: otherwise the place in the file serves as one
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
        media = media_of_video(video_name(text_of(record, video)))
        return ChoiceItem(
            text_of(record, "qid"), media, "", options(record), index_of(record, "answer", OPTIONS)
        )

    return make


def _made_choices(items: Sequence[RetrievalItem]) -> Iterator[ChoiceItem]:
    """One question per caption, with captions of four other videos as wrong options. All choices
    are made by hashes of ids: they are the same in every run and on every machine."""
    if len(items) < OPTIONS:
        raise AnnotationError(
            f"multiple-choice questions need at least {OPTIONS} training videos, found {len(items)}"
        )
    for place, item in enumerate(items):
        for number, caption in enumerate(item.captions):
            key = f"{item.id}@{number}"
            others = _others(key, place, len(items))
            # the media id is not enough as a key: each video has 20 captions
            wrong = [
                items[k].captions[int(place_in_order(f"{key}/{k}") * len(items[k].captions))]
                for k in others
            ]
            # the place of the correct option carries no information
            answer = int(OPTIONS * place_in_order(f"{key} answer"))
            yield ChoiceItem(
                key, item.media, "", (*wrong[:answer], caption, *wrong[answer:]), answer
            )


def _others(key: str, place: int, size: int) -> list[int]:
    """Four different indices below `size` other than `place`."""
    chosen: dict[int, None] = {}
    draw = 0
    # a draw that repeats one is drawn again; with 7,010 videos that is rare
    while len(chosen) < OPTIONS - 1:
        other = int(place_in_order(f"{key}#{draw}") * size)
        draw += 1
        if other != place:
            chosen[other] = None
    return list(chosen)
