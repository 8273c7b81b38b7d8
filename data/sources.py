"""Official formats → rows: WebVid's CSV and folders, a user's own CSV, WebDataset tars of video2dataset and img2dataset."""

from __future__ import annotations

import csv
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data.errors import DataError
from data.media import IMAGES, VIDEOS

CAPTION_COLUMNS, PATH_COLUMNS = ("name", "caption", "text"), ("path", "video", "file")


@dataclass(frozen=True)
class Row:
    """One clip of a source."""

    split: str
    id: str
    captions: tuple[str, ...]
    path: Path
    source: str
    """Shown to people: the path inside the source."""
    offset: int = 0
    size: int | None = None
    """None: the whole file."""
    extension: str = "mp4"
    reason: str | None = None
    detail: str | None = None


def detect(source: Path) -> str:
    """webvid, csv or webdataset; DataError tells what was looked for."""
    if not source.exists():
        raise DataError(f"no such source: {source}")
    if (source.is_file() and source.suffix == ".tar") or (source.is_dir() and next(source.glob("*.tar"), None)):
        return "webdataset"
    if source.is_dir() and next(source.glob("results_*.csv"), None):
        return "webvid"
    if source.is_file() and source.suffix in (".csv", ".tsv"):
        columns = _header(source)
        return "webvid" if "videoid" in columns else "csv"
    raise DataError(
        f"{source}: format not recognised. webvid: a folder with results_*_<split>.csv and videos/, or one such CSV; csv: a file with the columns "
        f"{'/'.join(PATH_COLUMNS)} and {'/'.join(CAPTION_COLUMNS)}; webdataset: a .tar, or a folder of them"
    )


def read(source: Path, kind: str, videos: Path | None = None) -> Iterator[Row]:
    """All rows, duplicates and rows without a caption marked with a reason."""
    seen: set[tuple[str, str]] = set()
    for row in {"webvid": _webvid, "csv": _own_csv, "webdataset": _webdataset}[kind](source, videos):
        reason, detail = row.reason, row.detail
        if reason is None and (row.split, row.id) in seen:
            reason, detail = "duplicate", f"id {row.id} stands twice in split {row.split}"
        elif reason is None and not any(caption.strip() for caption in row.captions):
            reason, detail = "no_caption", "the caption is missing or empty"
        if reason == "duplicate":
            row = Row(**{**vars(row), "id": f"{row.id}~{len(seen)}"})
        seen.add((row.split, row.id))
        yield Row(**{**vars(row), "reason": reason, "detail": detail})


def _header(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return next(csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ","), [])


def _records(path: Path, needed: list[tuple[str, ...]]) -> Iterator[tuple[int, dict[str, str] | None]]:
    """(line, fields by column name, or None for a row that does not fit the header)."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            columns = reader.fieldnames or []
            missing = ["/".join(names) for names in needed if not set(names) & set(columns)]
            if missing:
                raise DataError(f"{path}: column {', '.join(missing)} is missing; found: {', '.join(columns) or 'an empty file'}")
            for record in reader:
                broken = None in record or any(value is None for value in record.values())
                yield reader.line_num, None if broken else record
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}); convert it, for example with iconv") from error
    except csv.Error as error:
        raise DataError(f"{path} cannot be read as CSV: {error}") from error


def _bad_row(path: Path, line: int, split: str, columns: int) -> Row:
    return Row(
        split,
        f"line-{line}",
        (),
        path,
        f"{path.name}:{line}",
        reason="bad_row",
        detail=f"line {line} does not have the header's {columns} fields",
    )


def _webvid(source: Path, videos: Path | None) -> Iterator[Row]:
    files = [source] if source.is_file() else sorted(source.glob("results_*.csv"))
    root = videos or (source.parent if source.is_file() else source) / "videos"
    for path in files:
        match = re.fullmatch(r"results_[^_]+_(\w+)", path.stem)
        split = match[1] if match else path.stem
        for line, record in _records(path, [("videoid",), CAPTION_COLUMNS]):
            if record is None:
                yield _bad_row(path, line, split, len(_header(path)))
                continue
            name = f"{record['videoid']}.mp4"
            relative = Path(record.get("page_dir") or "") / name
            caption = next(record[column] for column in CAPTION_COLUMNS if column in record)
            if _unsafe(relative):
                yield Row(
                    split, f"line-{line}", (), path, str(relative), reason="bad_row", detail="the path leaves the videos folder"
                )
                continue
            yield Row(split, record["videoid"], (caption,), root / relative, str(relative))


def _own_csv(source: Path, videos: Path | None) -> Iterator[Row]:
    root = videos or source.parent
    for line, record in _records(source, [PATH_COLUMNS, CAPTION_COLUMNS]):
        if record is None:
            yield _bad_row(source, line, "train", len(_header(source)))
            continue
        relative = Path(next(record[column] for column in PATH_COLUMNS if column in record))
        caption = next(record[column] for column in CAPTION_COLUMNS if column in record)
        split = record.get("split") or "train"
        if _unsafe(relative):
            yield Row(
                split, f"line-{line}", (), source, str(relative), reason="bad_row", detail="the path leaves the videos folder"
            )
            continue
        yield Row(
            split,
            relative.as_posix(),
            (caption,),
            root / relative,
            str(relative),
            extension=relative.suffix[1:].lower() or "mp4",
        )


def _unsafe(relative: Path) -> bool:
    return relative.is_absolute() or ".." in relative.parts


def _webdataset(source: Path, videos: Path | None) -> Iterator[Row]:
    """Members are read by offset inside the tar; their names serve as keys only and never become paths."""
    for path in [source] if source.is_file() else sorted(source.glob("*.tar")):
        samples: dict[str, dict[str, tarfile.TarInfo]] = {}
        try:
            with tarfile.open(path) as archive:
                for member in archive:
                    if member.isfile():
                        key, _, extension = member.name.rpartition("/")[2].partition(".")
                        samples.setdefault(key, {})[extension.lower()] = member
        except tarfile.TarError as error:
            raise DataError(f"{path} is no readable tar ({error}); delete or repair it") from error
        for key, members in samples.items():
            yield _wds_row(path, key, members)


def _wds_row(path: Path, key: str, members: dict[str, tarfile.TarInfo]) -> Row:
    def text(extension: str) -> str:
        member = members[extension]
        with path.open("rb") as file:
            file.seek(member.offset_data)
            return file.read(member.size).decode("utf-8", errors="replace")

    caption, name = "", f"{path.stem}/{key}"
    if "txt" in members:
        caption = text("txt")
    elif "json" in members:
        try:
            caption = str(json.loads(text("json")).get("caption") or "")
        except (json.JSONDecodeError, AttributeError):
            caption = ""
    media = next((extension for extension in members if extension in VIDEOS | IMAGES), None)
    if media is None:
        return Row("train", name, (caption,), path, name, reason="missing", detail="the sample has no media file")
    return Row("train", name, (caption,), path, name, members[media].offset_data, members[media].size, media)
