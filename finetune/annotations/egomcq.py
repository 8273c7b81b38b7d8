"""EgoMCQ (Lin et al. 2022, EgoVLP): one narration, five clips.

The clips come from other videos (inter) or from the same one (intra).
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
    read_json,
    text_of,
)
from allinone.finetune.annotations.ego4d import without_tags
from allinone.finetune.annotations.schema import AnnotationError, ClipChoiceItem, Media, Split

SPLITS = ("test",)
OPTIONS = 5
KINDS = {"1": "inter", "2": "intra"}
"""By the field `types`. EgoVLP's released metric prints the two under each other's name
(EgoVLP#19); the higher figure is inter."""
QUESTIONS = 39_000
_SOURCE = "egomcq.json of showlab/EgoVLP"


def load(folder: Path, split: str, *, chunk_s: float | None = None, tags: str = "keep") -> Split:
    """Read egomcq.json.

    Args:
        folder: Holds the file.
        split: One of SPLITS.
        chunk_s: Seconds of the chunks that videos are cut into, `<uid>/<number>.mp4` (EgoVLP: 600);
            None: complete videos, `<uid>`. A clip that crosses the end of a chunk is cut there; a
            note counts such clips.
        tags: keep or drop, see `ego4d.without_tags`.
    """
    check_split(split, SPLITS, "EgoMCQ")
    if tags not in ("keep", "drop"):
        raise AnnotationError(f"tags is {tags!r}; choose one of: keep, drop")
    if chunk_s is not None and chunk_s <= 0:
        raise AnnotationError(
            f"chunk_s is {chunk_s}; it must be above 0 seconds, or None for complete videos"
        )
    builder = Builder(split)
    path = builder.use(find(folder, ["egomcq.json"], _SOURCE))
    cut: list[str] = []
    rows = (
        (f"{path.name}[{number}]", {"id": number, "entry": entry})
        for number, entry in read_json(path, dict).items()
    )
    builder.read(rows, _item(chunk_s, tags, cut))
    builder.note(
        f"questions: {len(builder.items):,}; about {QUESTIONS:,} in the official file (not verified"
        " by us)"
    )
    if cut:
        builder.note(f"clips cut at the end of a chunk: {len(cut):,}")
    return builder.split()


def _item(
    chunk_s: float | None, tags: str, cut: list[str]
) -> Callable[[dict[str, Any]], ClipChoiceItem]:
    def make(record: dict[str, Any]) -> ClipChoiceItem:
        entry = record["entry"]
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("query"), dict)
            or not isinstance(entry.get("choices"), dict)
        ):
            raise RowError("the entry does not have 'query' and 'choices'")
        choices = entry["choices"]
        # an object with the keys "0" to "4", not a list
        if set(choices) != {str(number) for number in range(OPTIONS)}:
            raise RowError(f"'choices' is not numbered 0 to {OPTIONS - 1}")
        kind = text_of(entry, "types")
        if kind not in KINDS:
            raise RowError("'types' is neither 1 (inter) nor 2 (intra)")
        text = text_of(entry["query"], "clip_text")
        clips = tuple(_clip(choices[str(number)], chunk_s, cut) for number in range(OPTIONS))
        return ClipChoiceItem(
            record["id"],
            without_tags(text) if tags == "drop" else text,
            clips,
            index_of(entry, "answer", OPTIONS),
            KINDS[kind],
        )

    return make


def _clip(choice: Any, chunk_s: float | None, cut: list[str]) -> Media:
    """Media of one choice; the same clip has the same id in every question."""
    if not isinstance(choice, dict):
        raise RowError("a choice is not a JSON object")
    uid = text_of(choice, "video_uid")
    try:
        start = max(0.0, float(text_of(choice, "clip_start")))
        end = max(0.0, float(text_of(choice, "clip_end")))
    except ValueError:
        raise RowError("clip_start or clip_end is not a number") from None
    if not start <= end:
        raise RowError("a clip ends before it starts")
    # the span is part of the id: several clips come from one video
    name = f"{uid}@{start:g}-{end:g}"
    if chunk_s is None:
        return Media(name, uid, start, end)
    chunk = int(start // chunk_s)
    # each chunk is a file of its own: one decoder cannot read across its end
    if end > (chunk + 1) * chunk_s:
        cut.append(name)
    # times in the file count from the start of the video, not of the chunk
    offset = chunk * chunk_s
    return Media(name, f"{uid}/{chunk}.mp4", start - offset, min(end - offset, chunk_s))
