"""Official formats → rows. One module per data set; this is the registry, and what holds for all of
them."""

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
from allinone.data.sources.base import (
    NAME_FIELDS,
    SPLIT,
    Format,
    Line,
    Narration,
    ReadOptions,
    SourceRow,
    clean,
    key_hash,
)

__all__ = [
    "FORMATS",
    "NAME_FIELDS",
    "Format",
    "Line",
    "Narration",
    "ReadOptions",
    "Row",
    "detect",
    "excluded_ids",
    "read",
]

FORMATS: dict[str, Format] = {
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
"""By name, in the order in which a source is tried."""


def detect(source: Path) -> str:
    """Name of the source's format; DataError tells what was looked for."""
    if not source.exists():
        raise DataError(f"no such source: {source}")
    for known in FORMATS.values():
        if known.files(source):
            return known.name
    wanted = "; ".join(f"{known.name}: {known.wanted}" for known in FORMATS.values())
    raise DataError(f"{source}: format not recognised; --format names one. {wanted}")


def excluded_ids(path: Path | None, source: Path, kind: str) -> frozenset[str]:
    """Ids of a text file, one a line; for Visual Genome also a Karpathy file, whose val and test
    images are meant. DataError where it cannot be read."""
    if path is None:
        return frozenset()
    if not path.is_file():
        raise DataError(f"--exclude {path}: no such file")
    if path.suffix == ".json":
        if kind != "vg":
            raise DataError(
                f"--exclude {path}: a Karpathy file goes with --format vg; for {kind} give a text"
                " file with an id a line"
            )
        images = karpathy.images_of(path)
        return visual_genome.coco_overlap(
            source, {str(i.get("cocoid")) for i in images if i.get("split") in ("val", "test")}
        )
    try:
        return frozenset(
            line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
        )
    except UnicodeDecodeError as error:
        raise DataError(f"--exclude {path} is not UTF-8 text ({error})") from error


def read(source: Path, kind: str, options: ReadOptions) -> Iterator[SourceRow]:
    """All rows in the source's order, texts made clean; what cannot be used is marked with a
    reason."""
    seen: set[int] = set()
    for number, row in enumerate(FORMATS[kind].read(source, options)):
        yield _checked(row, number, options.exclude, seen)


def _checked(row: SourceRow, number: int, exclude: frozenset[str], seen: set[int]) -> SourceRow:
    captions = tuple(text for text in map(clean, row.captions) if text)
    name, split, reason, detail = clean(row.id), row.split, row.reason, row.detail
    if not SPLIT.fullmatch(split):
        reason, detail, split = (
            "bad_row",
            f"split {clean(split)!r} is no word of letters, digits, - and _",
            "train",
        )
    if reason is None and not name:
        reason, detail = "bad_row", "the id is empty"
    if reason is None and name in exclude:
        reason, detail = "excluded", "named in --exclude"
    if key_hash(split, name) in seen:
        if reason is None:
            reason, detail = "duplicate", f"id {name} stands twice in split {split}"
        name = f"{name}~{number}"  # keys stay unique
    elif reason is None and row.narration is None and not captions:
        reason, detail = "no_caption", "the caption is missing or empty"
    seen.add(key_hash(split, name))
    detail = clean(detail) if detail else detail
    return replace(
        row,
        split=split,
        id=name,
        captions=captions,
        source=clean(row.source),
        reason=reason,
        detail=detail,
    )
