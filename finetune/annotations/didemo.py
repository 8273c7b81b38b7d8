"""DiDeMo as paragraph-to-video retrieval.

All descriptions of a video form one caption; the input is its first 30 s.
"""

from __future__ import annotations

from pathlib import Path

from allinone.finetune.annotations.common import (
    Builder,
    check_split,
    find,
    json_rows,
    read_text,
    stem,
    text_of,
)
from allinone.finetune.annotations.schema import Media, RetrievalItem, Split

SPLITS = ("train", "val", "test")
VIDEOS = {"train": (8_392, 8_395), "val": (1_065,), "test": (1_004,)}
"""The original paper counts 8,395 training videos, the lists contain 8,392."""
SECONDS = 30.0
"""Longer videos were cut to 30 s for the annotators."""
_SOURCE = "LisaAnne/LocalizingMoments, data/{train,val,test}_data.json"


def load(folder: Path, split: str) -> Split:
    """Read {split}_data.json, restricted to the videos of {split}_list.txt if available.

    The same video is written with several suffixes or with none. Files are matched by stem;
    otherwise 71 (val) and 89 (test) descriptions would be lost.
    """
    check_split(split, SPLITS, "DiDeMo")
    builder = Builder(split)
    path = builder.use(find(folder, [f"{split}_data.json", f"data/{split}_data.json"], _SOURCE))
    descriptions: dict[str, list[str]] = {}
    spellings: set[str] = set()
    seen: set[str] = set()
    listed = _listed(folder, split, builder)
    for where, record in json_rows(path, builder):
        with builder.row(where):
            name, text = text_of(record, "video"), text_of(record, "description")
            if str(record.get("annotation_id", where)) in seen:
                builder.leave_out("annotation_id is repeated, the first is kept", where)
                continue
            seen.add(str(record.get("annotation_id", where)))
            if listed is not None and stem(name) not in listed:
                builder.leave_out(f"the video is not in {split}_list.txt", where)
                continue
            spellings.add(name)
            # a paragraph has 3 to 5 descriptions, in file order: 28 words in the median, 81 at most
            descriptions.setdefault(stem(name), []).append(text)
    # by stem: the annotated suffix may differ from that of the file, or be missing
    for video, texts in descriptions.items():
        builder.add(
            RetrievalItem(video, Media(video, video, 0.0, SECONDS), (" ".join(texts),)), video
        )
    # some works test on 1,003 videos because one is missing: the count is reported
    expected = VIDEOS[split]
    builder.official(
        "videos",
        len(builder.items),
        len(builder.items) if len(builder.items) in expected else expected[0],
    )
    builder.note(f"{len(spellings):,} spellings of {len(descriptions):,} videos, joined by stem")
    if listed is not None and (silent := sorted(listed - set(descriptions))):
        builder.note(
            f"videos of {split}_list.txt without a description: {len(silent):,}"
            f" ({', '.join(silent[:5])})"
        )
    return builder.split()


def _listed(folder: Path, split: str, builder: Builder) -> set[str] | None:
    path = folder / f"{split}_list.txt"
    if not path.is_file():
        return None
    return {
        stem(line.strip()) for line in read_text(builder.use(path)).splitlines() if line.strip()
    }
