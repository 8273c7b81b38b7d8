"""What `data.prepare` is asked to do, and what follows from it alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from allinone.common.errors import DataError
from allinone.common.validation import COUNT, POSITIVE, Bounds, require
from allinone.data.loading.index import LAYOUT
from allinone.data.prepare.encode import Encoding
from allinone.data.sources import FORMATS, ReadOptions, SourceRow, detect, excluded_ids, read

OUTSIDE = ("missing", "timeout", "killed", "decoder_crashed", "unreadable")
"""Reasons that may lie outside the file."""
RETRIED = (
    *OUTSIDE,
    "undecodable",
    "truncated",
    "corrupt",
    "empty_file",
    "not_a_video",
    "not_an_image",
    "no_video_track",
    "too_few_frames",
)
"""Reasons that another download may do away with, too."""


@dataclass(frozen=True)
class PrepareOptions:
    """What to prepare and how. None stands for the format's own default: short clips, or videos of
    minutes to hours."""

    source: Path
    out: Path
    kind: str = "auto"
    videos: Path | None = None
    names: str | None = None
    exclude: Path | None = None
    shard_clips: int | None = None
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    min_frames: int = 2
    max_duration_s: float | None = None
    timeout_s: float | None = None
    codec: str | None = None
    """Encode anew (data.encode.CODECS); None copies the stream, unless short_side or gop is
    given."""
    short_side: int | None = None
    gop: int | None = None
    part: tuple[int, int] | None = None
    """(i, n): make the i-th of n shares of the shards, i from 1, and no index."""
    merge: bool = False
    """Make the index only, anew where it stands."""
    retry: tuple[str, ...] = ()
    """Make those shards anew that hold files which are bad for one of these reasons."""

    def resolved(self) -> PrepareOptions:
        """With the format named, and its defaults. DataError for values that cannot be."""
        kind = detect(self.source) if self.kind == "auto" else self.kind
        if not self.source.exists():
            raise DataError(f"no such source: {self.source}")
        if self.part is not None and not 1 <= self.part[0] <= self.part[1]:
            raise DataError(f"--part {self.part[0]}/{self.part[1]}: i must be from 1 to n")
        unknown = [reason for reason in self.retry if reason not in RETRIED]
        if unknown:
            raise DataError(
                f"--retry {','.join(self.retry)}: {unknown[0]!r} is none of {', '.join(RETRIED)}"
            )
        try:
            require(self, COUNT, ("workers", "shard_clips", "min_frames", "gop"))
            require(self, Bounds(16), ("short_side",))
            require(self, POSITIVE, ("max_duration_s", "timeout_s"))
        except ValueError as error:
            raise DataError(str(error)) from error
        long = FORMATS[kind].narrated
        return replace(
            self,
            kind=kind,
            shard_clips=self.shard_clips or (100 if long else 1000),
            max_duration_s=self.max_duration_s or (36_000.0 if long else 3600.0),
            timeout_s=self.timeout_s or (1800.0 if long else 60.0),
        )

    @property
    def encoding(self) -> Encoding | None:
        """How files are encoded anew, None where they are copied."""
        if (self.codec, self.short_side, self.gop) == (None, None, None):
            return None
        return Encoding(self.codec or "h264", self.short_side, self.gop or Encoding.gop)

    def fingerprint(self) -> dict[str, Any]:
        """The options that change the result."""
        values = {
            key: str(value) if isinstance(value, Path) else value
            for key, value in asdict(self).items()
        }
        ignored = ("out", "workers", "timeout_s", "part", "merge", "retry")
        return {
            "layout": LAYOUT,
            **{key: value for key, value in values.items() if key not in ignored},
        }


def rows_of(options: PrepareOptions) -> Iterator[SourceRow]:
    """What the source lists."""
    exclude = excluded_ids(options.exclude, options.source, options.kind)
    return read(options.source, options.kind, ReadOptions(options.videos, options.names, exclude))


def shard_names(options: PrepareOptions, counts: dict[str, int]) -> list[str]:
    """Of the rows per split."""
    clips = options.shard_clips or 1
    return [
        f"{split}-{number:05d}"
        for split, rows in counts.items()
        for number in range(-(-rows // clips))
    ]
