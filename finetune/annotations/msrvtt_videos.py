"""MSR-VTT's videos and their captions, in all forms that the community distributes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from allinone.finetune.annotations.common import Builder, RowError, find, json_records, text_of
from allinone.finetune.annotations.schema import Media

FIRST_VIDEO = {"train": 0, "val": 6_513, "test": 7_010}
"""First video of each official split."""
ALL_VIDEOS = 10_000
_FOLDERS = ("", "annotation/", "high-quality/structured-symlinks/")
_CAPTIONS_SOURCE = (
    "train_val_annotation.zip and test_videodatainfo.json.zip of MSR-VTT, or CLIP4Clip's"
    " msrvtt_data.zip (MSRVTT_data.json)"
)


def video_name(text: str) -> str:
    """`video12` from 12, video12, video12.mp4 or JSFusion's msr12. RowError from anything else."""
    # MSR-VTT-QA has numbers, ClipBERT video12, Singularity video12.mp4, JSFusion msr12
    match = re.fullmatch(r"(?:video|msr)?(\d+)(?:\.mp4)?", text.strip())
    if match is None:
        raise RowError("the video is neither a number nor video<number>")
    return f"video{int(match[1])}"


def video_number(video: str) -> int:
    """12 from video12."""
    return int(video.removeprefix("video"))


def official_split(video: str) -> str:
    """train, val or test, by the video's number."""
    return [name for name, first in FIRST_VIDEO.items() if video_number(video) >= first][-1]


def media_of_video(video: str) -> Media:
    """The media item of a video."""
    return Media(video, video)


@dataclass
class Captions:
    """Contents of the caption files."""

    of: dict[str, list[str]] = field(default_factory=dict)
    """Video → captions in file order."""
    splits: dict[str, str] = field(default_factory=dict)
    """Video → official split, if the file names it."""

    def videos(self, *splits: str) -> list[str]:
        """The videos of official splits, sorted by number."""
        chosen = [
            video for video in self.of if self.splits.get(video, official_split(video)) in splits
        ]
        return sorted(chosen, key=video_number)


def read_captions(folder: Path, builder: Builder, *, with_test: bool) -> Captions:
    """Read whichever of the caption files is available.

    Args:
        folder: Holds the files.
        builder: Records files and rows left out.
        with_test: Captions of the official test videos are needed.
    """
    captions = Captions()
    halves = ["train_val_videodatainfo.json", *(["test_videodatainfo.json"] if with_test else [])]
    merged = find_caption_file(folder, "MSRVTT_data.json")
    official = find_caption_file(folder, halves[0])
    frozen = find_caption_file(folder, "MSR_VTT.json")
    # CLIP4Clip's file first: it alone holds all 10,000 videos
    if merged:
        _read_official(builder.use(merged), builder, captions)
    elif official:
        for name in halves:
            path = find_caption_file(folder, name) or find(folder, [name], _CAPTIONS_SOURCE)
            _read_official(builder.use(path), builder, captions)
    elif frozen:
        _read_frozen(builder.use(frozen), builder, captions)
    else:
        find(folder, ["MSRVTT_data.json", halves[0], "MSR_VTT.json"], _CAPTIONS_SOURCE)
    return captions


def find_caption_file(folder: Path, name: str) -> Path | None:
    """The file in one of the folders that releases use; None if there is none."""
    return next(
        (folder / f"{part}{name}" for part in _FOLDERS if (folder / f"{part}{name}").is_file()),
        None,
    )


def _rows(path: Path, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, record in enumerate(json_records(path, key)):
        yield f"{path.name}:{key}[{number}]", record


def _read_official(path: Path, builder: Builder, captions: Captions) -> None:
    for where, record in _rows(path, "videos"):
        with builder.row(where):
            split = text_of(record, "split")
            # the official files call the split `validate`
            captions.splits[video_name(text_of(record, "video_id"))] = {"validate": "val"}.get(
                split, split
            )
    seen: set[str] = set()
    for where, record in _rows(path, "sentences"):
        with builder.row(where):
            sentence = text_of(record, "sen_id") if "sen_id" in record else where
            video, caption = video_name(text_of(record, "video_id")), text_of(record, "caption")
            # a repeated row would weigh a caption twice in training
            if sentence in seen:
                raise RowError("sen_id is repeated, the first is kept")
            seen.add(sentence)
            captions.of.setdefault(video, []).append(caption)


def _read_frozen(path: Path, builder: Builder, captions: Captions) -> None:
    # COCO-like keys: the video is called image_id, and there are no splits
    for where, record in _rows(path, "annotations"):
        with builder.row(where):
            captions.of.setdefault(video_name(text_of(record, "image_id")), []).append(
                text_of(record, "caption")
            )
