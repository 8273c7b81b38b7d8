"""Parsers of CSV, TSV and JSON: a damaged row is reported, a damaged file raises DataError."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TextIO

from allinone.common.errors import DataError
from allinone.data.sources.schema import clean_text

CAPTION_COLUMNS = ("name", "caption", "text")
"""Names of the caption's column in CSV lists; "name" is WebVid's."""
CHUNK = 1 << 20
"""Characters read at a time from a JSON file that is too large for memory."""


def listed_files(source: Path, names: Collection[str]) -> list[Path]:
    """The official files with these names: `source` itself, or those in the folder `source`."""
    paths = [source] if source.is_file() else [source / name for name in names]
    return [path for path in paths if path.name in names and path.is_file()]


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix == ".tsv" else ","


def csv_header(path: Path) -> list[str]:
    """Column names of a CSV or TSV file."""
    # utf-8-sig: spreadsheets write a byte order mark, which would be part of the first name
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        return next(csv.reader(file, delimiter=_delimiter(path)), [])


def csv_records(
    path: Path, needed: list[tuple[str, ...]]
) -> Iterator[tuple[int, dict[str, str] | str]]:
    """Read a CSV or TSV file with a header.

    Args:
        path: The file.
        needed: Columns that must exist, each with its alternative names.

    Yields:
        (line number, fields by column name), or (line number, what is wrong with the row).

    Raises:
        DataError: A needed column is missing, or the file is not CSV.
    """
    try:
        # newline="": csv distinguishes line ends inside quoted captions from ends of records
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file, delimiter=_delimiter(path))
            columns = reader.fieldnames or []
            missing = ["/".join(names) for names in needed if not set(names) & set(columns)]
            if missing:
                found = clean_text(", ".join(columns))[:200] or "an empty file"
                raise DataError(
                    f"{path}: column {', '.join(missing)} is missing; found: {found}. --format"
                    " selects another format"
                )
            for record in reader:
                yield reader.line_num, _problem(record, reader.line_num, len(columns)) or record
    except csv.Error as error:
        raise DataError(
            f"{path} cannot be read as CSV: {error}; repair or download it again"
        ) from error


def column_of(record: dict[str, str], names: tuple[str, ...]) -> str:
    """The field of the first of these columns that the file has."""
    return next(record[name] for name in names if name in record)


def _problem(record: dict[str, str], line: int, columns: int) -> str | None:
    """What is wrong with a row of csv.DictReader, which uses None for extra and absent fields.

    Args:
        record: The row.
        line: Its line number.
        columns: Fields of the header.
    """
    values: list[Any] = list(record.values())
    if None in record or None in values:
        return f"line {line} does not have the header's {columns} fields"
    # errors="surrogateescape" reads invalid bytes as these code points
    if any(not text.isascii() and any("\udc80" <= c <= "\udcff" for c in text) for text in values):
        return f"line {line} is not UTF-8 text; convert the file, for example with iconv"
    return None


def tsv_records(path: Path, fields: int) -> Iterator[tuple[int, list[str] | str]]:
    """Read a tab-separated file without header or quoting.

    Args:
        path: The file.
        fields: Number of fields of every line.

    Yields:
        (line number, fields), or (line number, what is wrong with the line).
    """
    # bytes: a line that is not UTF-8 is then one bad row, not the end of reading
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                yield number, f"line {number} is not UTF-8 text ({error.reason})"
                continue
            values = text.rstrip("\r\n").split("\t")
            if len(values) == fields:
                yield number, values
            else:
                yield number, f"line {number} has {len(values)} fields, not {fields}"


def load_json(path: Path) -> Any:
    """Load a JSON file that fits in memory; raises DataError if it is damaged."""
    try:
        # as bytes: json then recognises the encoding and a byte order mark
        return json.loads(path.read_bytes())
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid JSON ({error}); download it again") from error


def stream_json(path: Path) -> Iterator[tuple[str, Any]]:
    """Read a JSON file that may be larger than memory, one value at a time.

    Yields:
        (key, value) of a top-level object, or (number as text, item) of a top-level array.

    Raises:
        DataError: The file is damaged or cut short.
    """
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        scanner = _JsonScanner(path, file)
        closing = {"{": "}", "[": "]"}.get(scanner.peek())
        if closing is None:
            raise scanner.fault("neither an object nor an array")
        scanner.skip()
        number = 0
        while scanner.peek() != closing:
            if number:
                scanner.expect(",", "a comma is missing")
            name = str(number)
            if closing == "}":
                name = str(scanner.value())
                scanner.expect(":", "a colon is missing")
            yield name, scanner.value()
            number += 1


class _JsonScanner:
    """Reads JSON values from a text file in chunks."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self._path = path
        self._file = file
        self._decoder = json.JSONDecoder()
        self._text = file.read(CHUNK)
        self._position = 0

    def fault(self, why: str) -> DataError:
        """The error to raise at this place of the file."""
        return DataError(
            f"{self._path} is damaged or cut short near character {self._file.tell():,} ({why});"
            " download it again"
        )

    def peek(self) -> str:
        """The next character that is not white space."""
        while True:
            while self._position < len(self._text) and self._text[self._position] in " \t\r\n":
                self._position += 1
            if self._position < len(self._text):
                return self._text[self._position]
            self._text = self._file.read(CHUNK)
            self._position = 0
            if not self._text:
                raise self.fault("it ends early")

    def skip(self) -> None:
        """Step over the character that `peek` returned."""
        self._position += 1

    def expect(self, character: str, otherwise: str) -> None:
        """Step over one character; raises DataError if the next one is different."""
        if self.peek() != character:
            raise self.fault(otherwise)
        self.skip()

    def value(self) -> Any:
        """The next complete value."""
        self.peek()
        wanted = CHUNK
        while True:
            try:
                found, end = self._decoder.raw_decode(self._text, self._position)
                if end < len(self._text):  # at the end of the chunk, a number may continue
                    self._position = end
                    return found
                error = "it ends early"
            except json.JSONDecodeError as problem:
                error = problem.msg
            # The value may only be incomplete: it is damaged if it still fails at the file's end.
            more = self._file.read(wanted)
            if not more:
                raise self.fault(error)
            self._text = self._text[self._position :] + more
            self._position = 0
            wanted *= 2  # doubling bounds how often the start of a long value is parsed again
