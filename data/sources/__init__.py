"""Readers of official formats: one module per data set, and the checks that all of them share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from allinone.common.errors import DataError
from allinone.data.sources import (
    conceptual,
    howto100m,
    karpathy,
    own_csv,
    sbu,
    visual_genome,
    webdataset,
    webvid,
    yttemporal,
)
from allinone.data.sources.media import NAME_FIELDS
from allinone.data.sources.schema import (
    SPLIT,
    CaptionLine,
    Narration,
    ReadOptions,
    SourceFormat,
    SourceRow,
    clean_text,
    key_hash,
)

__all__ = [
    "FORMATS",
    "NAME_FIELDS",
    "CaptionLine",
    "Narration",
    "ReadOptions",
    "SourceFormat",
    "SourceRow",
    "detect",
    "excluded_ids",
    "read",
]

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
        own_csv.FORMAT,
    )
}
"""Formats by name, in the order in which `detect` tries them. own_csv is last: it accepts any CSV,
also the official ones."""


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
    seen: set[int] = set()
    for number, row in enumerate(FORMATS[format_name].read(source, options)):
        yield _checked(row, number, options.exclude, seen)


def _checked(row: SourceRow, number: int, exclude: frozenset[str], seen: set[int]) -> SourceRow:
    """Apply the checks that all formats share.

    Args:
        row: A row as its format's reader yields it.
        number: Its number in the source, from 0.
        exclude: Ids to leave out.
        seen: Hashes of the keys of earlier rows; this row's is added.

    Returns:
        The row with clean texts and a unique key.
    """
    captions = tuple(text for text in map(clean_text, row.captions) if text)
    name = clean_text(row.id)
    split, reason, detail = row.split, row.reason, row.detail
    if not SPLIT.fullmatch(split):
        reason = "bad_row"
        detail = f"split {clean_text(split)!r} may only contain letters, digits, - and _"
        split = "train"
    if reason is None and not name:
        reason, detail = "bad_row", "the id is empty"
    if reason is None and name in exclude:
        reason, detail = "excluded", "named in --exclude"
    if key_hash(split, name) in seen:
        if reason is None:
            reason, detail = "duplicate", f"id {name} occurs twice in split {split}"
        name = f"{name}~{number}"  # keys stay unique
    elif reason is None and row.narration is None and not captions:
        reason, detail = "no_caption", "the caption is missing or empty"
    seen.add(key_hash(split, name))
    return replace(
        row,
        split=split,
        id=name,
        captions=captions,
        source=clean_text(row.source),
        reason=reason,
        detail=clean_text(detail) if detail else detail,
    )
