"""Readers of official formats: one module per data set, and the checks that all of them share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from allinone.common.errors import DataError
from allinone.data.sources import (
    clip_lists,
    conceptual,
    howto100m,
    karpathy,
    openvid,
    own_csv,
    sbu,
    visual_genome,
    webdataset,
    webvid,
    yttemporal,
)
from allinone.data.sources.media import NAME_FIELDS
from allinone.data.sources.schema import (
    LONGEST_CAPTION,
    SPLIT,
    CaptionLine,
    Narration,
    ReadOptions,
    SourceFormat,
    SourceRow,
    clean_text,
    has_text,
)

if TYPE_CHECKING:
    from allinone.data.sources.keys import Keys
    from allinone.data.sources.plain_rows import PlainRows

__all__ = [
    "FORMATS",
    "NAME_FIELDS",
    "NARRATIONS",
    "CaptionLine",
    "Narration",
    "ReadOptions",
    "SourceFormat",
    "SourceRow",
    "detect",
    "excluded_ids",
    "read",
    "read_blocks",
]

CHUNK = 512
"""Rows that are checked at a time. A row of YT-Temporal has 40 kB."""
FORMATS: dict[str, SourceFormat] = {
    known.name: known
    for known in (
        webvid.FORMAT,
        yttemporal.FORMAT,
        conceptual.CC3M_FORMAT,
        conceptual.CC12M_FORMAT,
        sbu.FORMAT,
        karpathy.FORMAT,
        visual_genome.FORMAT,
        webdataset.FORMAT,
        howto100m.FORMAT,
        clip_lists.PANDA_FORMAT,
        clip_lists.INTERNVID_FORMAT,
        openvid.FORMAT,
        own_csv.FORMAT,
    )
}
"""Formats by name, in the order in which `detect` tries them. own_csv is last: it accepts any CSV,
also the official ones."""
NARRATIONS: dict[str, Callable[[Narration], list[CaptionLine]]] = {
    parser.__name__: parser
    for parser in (
        howto100m.csv_lines,
        howto100m.json_lines,
        yttemporal.record_lines,
        clip_lists.clip_lines,
    )
}
"""Parsers of timed captions by name."""


def detect(source: Path) -> str:
    """Name of the source's format; raises DataError if no format matches."""
    if not source.exists():
        raise DataError(
            f"no such source: {source}; give an official list, its folder, a CSV or WebDataset tars"
        )
    for known in FORMATS.values():
        if known.files(source):
            return known.name
    wanted = "; ".join(f"{known.name}: {known.description}" for known in FORMATS.values())
    raise DataError(f"{source}: format not recognised; --format selects one. {wanted}")


def excluded_ids(path: Path | None, source: Path, format_name: str) -> frozenset[str]:
    """Read the ids that --exclude names.

    Args:
        path: A text file with one id per line, in UTF-8 with or without a byte order mark; for
            Visual Genome also a Karpathy file, which excludes the images of its val and test
            splits. None: nothing is excluded.
        source: The source; Visual Genome's image_data.json is looked for there.
        format_name: Name of the source's format.

    Returns:
        Ids as the source's rows have them.

    Raises:
        DataError: The file cannot be used.
    """
    if path is None:
        return frozenset()
    if not path.is_file():
        raise DataError(f"--exclude {path}: no such file")
    if path.suffix == ".json":
        if format_name != "vg":
            raise DataError(
                f"--exclude {path}: a Karpathy file needs --format vg; for {format_name} give a"
                " text file with one id per line"
            )
        held_out = (i for i in karpathy.images_of(path) if i.get("split") in ("val", "test"))
        return visual_genome.coco_overlap(source, {str(image.get("cocoid")) for image in held_out})
    try:
        # not splitlines, which also splits at Unicode line separators inside ids
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(
            f"--exclude {path} is not UTF-8 text ({error}); convert it, for example with iconv"
        ) from error
    ids = frozenset(clean_text(line) for line in lines) - {""}
    if not ids:
        raise DataError(f"--exclude {path} names no ids; give one id per line, or leave it out")
    return ids


def read(source: Path, format_name: str, options: ReadOptions) -> Iterator[SourceRow]:
    """Read a source.

    Args:
        source: A file or folder of that format.
        format_name: A name in FORMATS.
        options: How to read it.

    Yields:
        All rows in the source's order, with clean texts and unique ids; rows that cannot be used
        have a reason.
    """
    from allinone.data.sources.keys import Keys  # imports numpy, which --help must not wait for

    keys = Keys()
    rows = enumerate(FORMATS[format_name].read(source, options))
    while chunk := list(itertools.islice(rows, CHUNK)):
        yield from _checked_chunk(chunk, options.exclude, keys)


def read_blocks(
    source: Path, format_name: str, options: ReadOptions
) -> Iterator[SourceRow | PlainRows]:
    """Read a source, where its format can do so, many rows at a time.

    Args:
        source: A file or folder of that format.
        format_name: A name in FORMATS.
        options: How to read it.

    Yields:
        The rows of `read`, in their order.
    """
    known = FORMATS[format_name]
    if known.read_blocks is None:
        yield from read(source, format_name, options)
        return
    from allinone.data.sources.keys import Keys
    from allinone.data.sources.plain_rows import check_rows

    keys, number = Keys(), 0
    for block in known.read_blocks(source, options):
        if isinstance(block, SourceRow):
            yield from _checked_chunk([(number, block)], options.exclude, keys)
            number += 1
            continue
        first = number

        def checked(
            row: SourceRow, position: int, name: str, key: int, first: int = first
        ) -> SourceRow:
            return _checked(row, first + position, name, options.exclude, keys, key)

        yield check_rows(block, options.exclude, keys, checked)
        number += len(block)


def _checked_chunk(
    chunk: list[tuple[int, SourceRow]], exclude: frozenset[str], keys: Keys
) -> Iterator[SourceRow]:
    from allinone.data.sources.keys import row_key

    splits = [row.split if SPLIT.fullmatch(row.split) else "train" for _, row in chunk]
    names = [clean_text(row.id) for _, row in chunk]
    hashes = [row_key(*key) for key in zip(splits, names, strict=True)]
    keys.expect(hashes)
    for (number, row), name, key in zip(chunk, names, hashes, strict=True):
        yield _checked(row, number, name, exclude, keys, key)


def _checked(
    row: SourceRow, number: int, name: str, exclude: frozenset[str], keys: Keys, key: int
) -> SourceRow:
    """Apply the checks that all formats share.

    Args:
        row: A row as its format's reader yields it.
        number: Its number in the source, from 0.
        name: Its id, cleaned.
        exclude: Ids to leave out.
        keys: Those of earlier rows; this row's is added.
        key: Hash of this row's.

    Returns:
        The row with clean texts and a unique key.
    """
    captions = tuple(text for text in map(clean_text, row.captions) if has_text(text))
    split, reason, detail = row.split, row.reason, row.detail
    if captions and reason is None and (longest := max(map(len, captions))) > LONGEST_CAPTION:
        reason = "bad_row"
        detail = f"a caption has {longest:,} characters, more than {LONGEST_CAPTION:,}"
    if not SPLIT.fullmatch(split):
        reason = "bad_row"
        detail = f"split {clean_text(split)!r} may only contain letters, digits, - and _"
        split = "train"
    if reason is None and not name:
        reason, detail = "bad_row", "the id is empty"
    if reason is None and name in exclude:
        reason, detail = "excluded", "named in --exclude"
    taken, duplicate = keys.add(key, name, row.id)
    if duplicate and reason is None:
        reason, detail = "duplicate", f"id {name} occurs twice in split {split}"
    if taken:
        from allinone.data.sources.keys import row_key

        name = f"{name}~{number}"  # keys stay unique
        keys.add_renamed(row_key(split, name))
    if reason is None and row.narration is None and not captions:
        reason, detail = "no_caption", "the caption is missing or empty"
    source = clean_text(row.source)
    detail = clean_text(detail) if detail else detail
    if (split, name, captions, source, reason, detail) == (
        row.split, row.id, row.captions, row.source, row.reason, row.detail
    ):  # fmt: skip
        return row  # replacing takes as long as all checks
    return replace(
        row,
        split=split,
        id=name,
        captions=captions,
        source=source,
        reason=reason,
        detail=detail,
    )
