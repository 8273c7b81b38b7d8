"""One prediction for each of many videos, for `tools/predict.py`: a table in, a table out.

Rows are appended to `.OUT.part` as they are made, one JSON line each, below a line that identifies
the command. OUT is written from it in one piece at the end.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from PIL import Image
from tqdm import tqdm

from allinone.common.atomic_io import atomic_path, content_hash, write_atomic
from allinone.common.errors import InputError
from allinone.tools.inspection.media_inputs import media_files
from allinone.tools.inspection.predictor import Predictor

FORMATS = (".csv", ".jsonl", ".parquet", ".html")
COLUMNS = (
    "path",
    "question",
    "text",
    "choices",
    "prediction",
    "score",
    "results",
    "notes",
    "error",
)
_THUMBNAIL = 128
"""Side of a thumbnail, pixels."""

Ask = Callable[[Path, Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Request:
    """One row of the input."""

    path: Path
    values: Mapping[str, Any]
    """question, text, choices, regions and given_answer, where the row has them."""


def read_requests(video: Path | None, videos: Path | None) -> list[Request]:
    """The videos of the options.

    Args:
        video: One file.
        videos: A folder, or a table with the column path.

    Raises:
        InputError: There is no video, or the table cannot be read.
    """
    if video is not None:
        return [Request(video, {})]
    assert videos is not None
    if videos.is_dir():
        return [Request(path, {}) for path in media_files(videos)]
    rows = _read_table(videos)
    if not rows:
        raise InputError(f"--videos {videos} has no rows")
    if "path" not in rows[0]:
        raise InputError(
            f"--videos {videos} has no column path; its columns are {', '.join(map(str, rows[0]))}"
        )
    return [_request(row, videos, number) for number, row in enumerate(rows, start=1)]


def _request(row: Mapping[str, Any], table: Path, number: int) -> Request:
    if not row.get("path"):
        raise InputError(f"--videos {table}: row {number} has no path")
    # option_2 before option_10
    names = sorted(
        (name for name in row if str(name).startswith("option_")),
        key=lambda name: (len(name), name),
    )
    choices = [str(row[name]) for name in names if row[name] not in (None, "")]
    values: dict[str, Any] = {
        name: str(row[name])
        for name in ("question", "text", "given_answer", "regions")
        if row.get(name) not in (None, "")
    }
    if "regions" in values:
        values["regions"] = [text for text in values["regions"].split(";") if text.strip()]
    return Request(
        table.parent / str(row["path"]), values | ({"choices": choices} if choices else {})
    )


def _read_table(path: Path) -> list[dict[str, Any]]:
    suffix = path.suffix.lower()
    try:
        if suffix in (".csv", ".tsv"):
            with path.open(encoding="utf-8-sig", newline="") as file:
                return list(csv.DictReader(file, delimiter="\t" if suffix == ".tsv" else ","))
        if suffix in (".jsonl", ".json"):
            lines = path.read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines if line.strip()]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("each line must be an object")
            return rows
        if suffix == ".parquet":
            return _parquet().read_table(path).to_pylist()
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"--videos {path} cannot be read: {error}") from error
    raise InputError(f"--videos {path}: give a folder, or a .csv, .tsv, .jsonl or .parquet file")


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputError("Parquet needs pyarrow: pip install pyarrow, or use .csv") from error
    return pyarrow.parquet


def predict_many(
    requests: Sequence[Request],
    ask: Ask,
    out: Path | None,
    predictor: Predictor,
    command: Mapping[str, str],
) -> Iterator[str]:
    """Predict for all requests.

    Args:
        requests: The videos.
        ask: (video, values of the row) → result.
        out: The table to write, by its suffix; None: rows are lines of JSON.
        predictor: Reads the frames for thumbnails.
        command: What identifies the command, for the continuation of an interrupted one.

    Yields:
        Lines to print.

    Raises:
        InputError: `out` exists or has another suffix; or no video can be used.
    """
    if out is None:
        for request in requests:
            yield json.dumps(_row(request, ask), ensure_ascii=False)
        return
    if out.suffix.lower() not in FORMATS:
        raise InputError(f"--out {out}: give a name that ends in {', '.join(FORMATS)}")
    if out.exists():
        raise InputError(f"--out {out} exists; give another name, or remove it")
    if out.suffix.lower() == ".parquet":
        _parquet()  # before hours of predictions
    out.parent.mkdir(parents=True, exist_ok=True)
    source = predictor.loaded.source
    key = content_hash(
        json.dumps(
            [source.sha256 if source else "", dict(command), [_state(r) for r in requests]]
        ).encode()
    )
    part = out.with_name(f".{out.name}.part")
    with part.open("a+", encoding="utf-8") as file:
        rows = _continue(file, part, key)
        if rows:
            yield f"{len(rows):,} of {len(requests):,} rows were done before"
        thumbnails = out.suffix.lower() == ".html"
        for request in tqdm(requests[len(rows) :], unit="video", disable=None):
            row = _row(request, ask)
            if thumbnails and not row["error"]:
                row["thumbnail"] = _thumbnail(request.path, predictor)
            rows.append(row)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
        failed = [row for row in rows if row["error"]]
        if len(failed) == len(rows):
            raise InputError(f"none of the {len(rows):,} rows has a result: {failed[0]['error']}")
        what = predictor.loaded.what
        _write(out, rows, f"{command['task']}: {len(rows):,} videos", what)
        part.unlink()
    cut = sum(bool(row["notes"]) for row in rows)
    yield f"{out}: {len(rows):,} rows, by {what}"
    if failed:
        yield f"{len(failed):,} rows have an error, first: {failed[0]['error']}"
    if cut:
        noted = next(row["notes"][0] for row in rows if row["notes"])
        yield f"{cut:,} rows have notes, first: {noted}"


def _state(request: Request) -> list[Any]:
    try:
        facts = request.path.stat()
        return [str(request.path), facts.st_size, facts.st_mtime_ns, dict(request.values)]
    except OSError:
        return [str(request.path), -1, -1, dict(request.values)]


def _continue(file: TextIO, part: Path, key: str) -> list[dict[str, Any]]:
    """Lock the partial file and return its complete rows; begin it if it is empty."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise InputError(f"{part} is being written by another process") from error
    file.seek(0)
    # the last line of a killed process may be torn
    lines = file.read().split("\n")[:-1]
    if lines and json.loads(lines[0]).get("command") != key:
        raise InputError(
            f"{part} holds rows of another command, other weights or other videos; remove it to"
            " begin again, or give another --out"
        )
    if not lines:
        lines = [json.dumps({"command": key})]
    file.seek(0)
    file.truncate()
    file.write("".join(f"{line}\n" for line in lines))
    file.flush()
    return [json.loads(line) for line in lines[1:]]


def _row(request: Request, ask: Ask) -> dict[str, Any]:
    values = request.values
    row: dict[str, Any] = {
        "path": str(request.path),
        "question": values.get("question", ""),
        "text": values.get("text", ""),
        "choices": list(values.get("choices", ())),
        "prediction": None,
        "score": None,
        "results": [],
        "notes": [],
        "error": "",
    }
    try:
        found = ask(request.path, values)
    except InputError as error:
        return {**row, "error": str(error)}
    if "gaps" in found:
        best = [gap[0] for gap in found["gaps"]]
        prediction: Any = " | ".join(guess["word"] for guess in best)
        score, results = min(guess["probability"] for guess in best), found["gaps"]
    else:
        results = found["results"]
        prediction, score = results[0]["name"], results[0]["score"]
    return {
        **row,
        "prediction": prediction,
        "score": score,
        "results": results,
        "notes": found["notes"],
    }


def _thumbnail(path: Path, predictor: Predictor) -> str:
    from allinone.common.html import data_uri

    pictures = predictor.read_clip(path).pictures
    picture = Image.fromarray(pictures[len(pictures) // 2]).resize((_THUMBNAIL, _THUMBNAIL))
    content = io.BytesIO()
    picture.save(content, "WEBP", quality=70)
    return data_uri(content.getvalue(), "webp")


def _write(out: Path, rows: Sequence[Mapping[str, Any]], title: str, source: str) -> None:
    suffix = out.suffix.lower()
    if suffix == ".jsonl":
        write_atomic(out, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    elif suffix == ".html":
        write_atomic(out, _page(rows, title, source))
    else:
        flat = [
            {
                name: json.dumps(row[name], ensure_ascii=False)
                if isinstance(row[name], list)
                else row[name]
                for name in COLUMNS
            }
            for row in rows
        ]
        if suffix == ".parquet":
            import pyarrow

            with atomic_path(out) as temporary:
                _parquet().write_table(pyarrow.Table.from_pylist(flat), temporary)
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
        write_atomic(out, text.getvalue())


def _page(rows: Sequence[Mapping[str, Any]], title: str, source: str) -> str:
    from allinone.common.html import render

    shown = [
        {
            "thumbnail": row.get("thumbnail", ""),
            "path": row["path"],
            "asked": " ".join(filter(None, [row["question"] or row["text"], *row["choices"]])),
            "lines": _lines(row["results"]),
            "notes": row["notes"],
            "error": row["error"],
        }
        for row in rows
    ]
    return render(
        "tools/inspection/templates/predictions.html.j2", title=title, source=source, rows=shown
    )


def _lines(results: Sequence[Any]) -> list[str]:
    """Results as text: `0.93 a name`; of several [MASK], the words of each in one line."""
    if results and isinstance(results[0], list):
        return [", ".join(f"{g['word']} {g['probability']:.2f}" for g in gap) for gap in results]
    return [f"{row['score']:.3f} {row['name']}" for row in results]
