"""Options of preparing a data set, and what follows from them alone. Imports nothing heavy."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from tyro.conf import Positional, arg
from tyro.constructors import PrimitiveConstructorSpec

from allinone.common.errors import DataError, InputError
from allinone.common.validation import COUNT, MAX_PIXELS, NOT_NEGATIVE, POSITIVE, Bounds, require
from allinone.data.prepare.encode import Codec, Encoding
from allinone.data.sources import (
    FORMATS,
    ReadOptions,
    SourceRow,
    detect,
    excluded_ids,
    read,
    read_blocks,
)
from allinone.data.sources.schema import key_hash

if TYPE_CHECKING:
    from allinone.data.sources.plain_rows import PlainRows

FormatName = Literal[
    "auto",
    "webvid",
    "yttemporal",
    "cc3m",
    "cc12m",
    "sbu",
    "coco",
    "vg",
    "webdataset",
    "howto100m",
    "panda70m",
    "internvid",
    "openvid",
    "csv",
]
EXTERNAL_REASONS = ("missing", "timeout", "killed", "decoder_crashed", "unreadable", "changed")
"""Reasons whose cause may be outside the file."""
RETRY_REASONS = (
    *EXTERNAL_REASONS,
    "undecodable",
    "truncated",
    "corrupt",
    "empty_file",
    "not_a_video",
    "not_an_image",
    "no_video_track",
    "too_few_frames",
)
"""Reasons of --retry: the external ones, and those that another download may fix."""
NOT_IN_FINGERPRINT = ("out", "workers", "timeout_s", "part", "merge", "retry")
"""Options that do not change the result."""


def _parse_part(arguments: list[str]) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", arguments[0])
    if match is None:
        raise ValueError(f"{arguments[0]!r} is not i/n, for example 3/16")
    return int(match[1]), int(match[2])


_PART = PrimitiveConstructorSpec[tuple[int, int] | None](
    nargs=1,
    metavar="i/n",
    instance_from_str=_parse_part,
    is_instance=lambda value: value is None or isinstance(value, tuple),
    str_from_instance=lambda value: ["None" if value is None else f"{value[0]}/{value[1]}"],
)
_REASONS = PrimitiveConstructorSpec[tuple[str, ...]](
    nargs=1,
    metavar="REASON,…",
    instance_from_str=lambda arguments: tuple(arguments[0].split(",")),
    is_instance=lambda value: isinstance(value, tuple),
    str_from_instance=lambda value: [",".join(value)],
)


@dataclass(frozen=True)
class PrepareOptions:
    """What to prepare, and how.

    None stands for the default of the source's format: short clips, or videos of minutes to hours.
    """

    source: Positional[Annotated[Path, arg(metavar="SOURCE")]]
    """The official list, the folder that holds it, your own CSV, or WebDataset tars."""
    out: Path
    """Folder of the prepared data, here or in object storage (s3://, gs://, hf://)."""
    format: FormatName = "auto"
    """Format of SOURCE; auto recognises it by its files."""
    videos: Path | None = None
    """Folder of the list's videos or images; None: the official place, relative to the list."""
    names: str | None = None
    """Template of an image's path below that folder, for lists that hold URLs only; fields:
    {split}, {number} (line, from 0), {crc32}, {md5}, {basename}."""
    val_share: float = 0.0
    """Share of the files of the split train that becomes the split val, chosen by their names, so
    that more rows move no file; at least one file, unless it is 0."""
    caption_fields: tuple[str, ...] = ()
    """Tars: fields of a sample's .json that hold captions, or txt for its .txt, for example txt
    re_caption: each becomes a caption, and training draws one of them. Without it, the .txt, or the
    .json's caption."""
    exclude: Path | None = None
    """Ids to leave out, one per line; for vg also dataset_coco.json: its val and test images."""
    shard_clips: int | None = None
    """Files per shard; None: 1000, for long videos 100."""
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """Decoding processes; by default one per core."""
    min_frames: int = 2
    """Fewest frames of a video; shorter ones are bad clips."""
    max_duration_s: float | None = None
    """Longest video, seconds; None: 3600, for long videos 36000."""
    max_pixels: int = MAX_PIXELS
    """Most pixels of a frame or image; larger ones are bad clips. 0: any number, of images up to
    Pillow's limit of 179 million."""
    timeout_s: float | None = None
    """Time limit for decoding one file, seconds; None: 60, for long videos 1800."""
    codec: Codec | None = None
    """Re-encode to this codec; None copies the stream, unless --short-side or --gop is given (then
    h264)."""
    short_side: int | None = None
    """Scale to this shorter side, pixels; never enlarges. Images are scaled too."""
    gop: int | None = None
    """Frames from keyframe to keyframe of re-encoded videos; None: 25."""
    part: Annotated[tuple[int, int] | None, _PART] = None
    """Prepare only part i of n, i from 1, and no index."""
    merge: bool = False
    """Make only the index, when all parts are done, or to replace a damaged one."""
    retry: Annotated[tuple[str, ...], _REASONS] = ()
    """Rebuild shards with files that failed for one of these reasons; files that are still missing
    are skipped. Reasons: missing, timeout, killed, decoder_crashed, unreadable, changed,
    undecodable, truncated, corrupt, empty_file, not_a_video, not_an_image, no_video_track,
    too_few_frames."""

    def resolved(self) -> PrepareOptions:
        """Return the options with the format recognised and its defaults filled in.

        Raises:
            DataError: A value is out of range, or the source does not exist.
        """
        name = detect(self.source) if self.format == "auto" else self.format
        if not self.source.exists():
            raise DataError(f"no such source: {self.source}; give the official list or its folder")
        if self.caption_fields and name != "webdataset":
            raise DataError(
                f"--caption-fields {' '.join(self.caption_fields)}: {self.source} is a list of the"
                f" format {name}; the option chooses among the fields of a tar's samples"
            )
        if self.part is not None and not 1 <= self.part[0] <= self.part[1]:
            raise DataError(f"--part {self.part[0]}/{self.part[1]}: i must be from 1 to n")
        unknown = [reason for reason in self.retry if reason not in RETRY_REASONS]
        if unknown:
            raise DataError(
                f"--retry {','.join(self.retry)}: {unknown[0]!r} is none of"
                f" {', '.join(RETRY_REASONS)}"
            )
        try:
            require(self, COUNT, ("workers", "shard_clips", "min_frames", "gop"))
            require(self, Bounds(16), ("short_side",))
            require(self, NOT_NEGATIVE, ("max_pixels",))
            require(self, POSITIVE, ("max_duration_s", "timeout_s"))
            require(self, Bounds(0, 1, below=True), ("val_share",))
        except InputError as error:
            raise DataError(str(error)) from error
        long = FORMATS[name].narrated
        return replace(
            self,
            format=cast(FormatName, name),
            shard_clips=self.shard_clips or (100 if long else 1000),
            max_duration_s=self.max_duration_s or (36_000.0 if long else 3600.0),
            timeout_s=self.timeout_s or (1800.0 if long else 60.0),
        )

    @property
    def encoding(self) -> Encoding | None:
        """How files are re-encoded; None if they are copied."""
        if (self.codec, self.short_side, self.gop) == (None, None, None):
            return None
        return Encoding(self.codec or "h264", self.short_side, self.gop or Encoding.gop)

    def fingerprint(self) -> dict[str, Any]:
        """The options that determine the result, as prepare.json and dataset.json store them."""
        from allinone.data.index import LAYOUT  # imports pyarrow, which --help must not wait for

        values: dict[str, Any] = {"layout": LAYOUT}
        for entry in fields(PrepareOptions):
            value = getattr(self, entry.name)
            # options that earlier versions did not have
            absent = entry.name in ("val_share", "caption_fields") and not value
            if entry.name not in NOT_IN_FINGERPRINT and not absent:
                # prepared folders call the format "kind"
                key = "kind" if entry.name == "format" else entry.name
                # as JSON gives it back: a tuple would differ from the stored list
                value = list(value) if isinstance(value, tuple) else value
                values[key] = str(value) if isinstance(value, Path) else value
        return values


def rows_of(options: PrepareOptions) -> Iterator[SourceRow]:
    """All rows that the source lists; `options` are resolved."""
    given = _read_options(options)
    if not options.val_share:
        return read(options.source, options.format, given)
    return _with_val(options, given)


def blocks_of(options: PrepareOptions) -> Iterator[SourceRow | PlainRows]:
    """The rows of `rows_of`, in blocks where the format can be read so."""
    if options.val_share:
        return rows_of(options)
    return read_blocks(options.source, options.format, _read_options(options))


def _read_options(options: PrepareOptions) -> ReadOptions:
    exclude = excluded_ids(options.exclude, options.source, options.format)
    return ReadOptions(options.videos, options.names, exclude, options.caption_fields)


def _with_val(options: PrepareOptions, given: ReadOptions) -> Iterator[SourceRow]:
    """The rows, those of the chosen files in the split val."""

    def rows() -> Iterator[tuple[float, SourceRow]]:
        for row in read(options.source, options.format, given):
            if row.split == "val":
                raise DataError(
                    f"--val-share {options.val_share:g}: {options.source} has a split val already;"
                    " leave the option or the column split out"
                )
            place = key_hash("val", row.id) / 2**64
            yield (place if row.split == "train" and row.reason is None else 1.0), row

    # a small set may have no file below the share: then the lowest one is held out
    lowest = min((place for place, _ in rows()), default=1.0)
    for place, row in rows():
        held = place < options.val_share or place == lowest < 1.0
        yield replace(row, split="val") if held else row


def shard_names(options: PrepareOptions, counts: dict[str, int]) -> list[str]:
    """Names of all shards of a source with these rows per split."""
    clips = options.shard_clips or 1
    return [
        f"{split}-{number:05d}"
        for split, rows in counts.items()
        for number in range(-(-rows // clips))
    ]
