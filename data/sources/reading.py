"""Parsers of CSV, TSV, JSON and Parquet: a damaged row is reported, a damaged file raises
DataError."""

from __future__ import annotations

import csv
import gzip
import json
import logging
import re
from collections import deque
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path, PurePath
from typing import IO, Any, NamedTuple, TextIO

from allinone.common.errors import DataError
from allinone.common.json_text import integer, parse_json
from allinone.data.sources.schema import clean_text

log = logging.getLogger(__name__)

CAPTION_COLUMNS = ("name", "caption", "text")
"""Names of the caption's column in CSV lists; "name" is WebVid's."""
_INVALID = re.compile("[\udc80-\udcff]")
NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")
TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
"""Suffixes of the files that `table_records` reads."""
LONGEST_LINE = 1 << 20
"""Characters of a line; a longer one is a bad row."""
LONGEST_ROW = 100
"""Lines that a quoted field may have; a quote that is still open then is a typing error."""
CHUNK = 1 << 20
"""Characters read at a time from a JSON file that is too large for memory."""
LARGEST_VALUE = 1 << 28
"""Characters of one value of such a file; real ones have some million."""
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


def listed_files(source: Path, names: Collection[str]) -> list[Path]:
    """The official files with these names: `source` itself, or those in the folder `source`."""
    paths = [source] if source.is_file() else [source / name for name in names]
    return [path for path in paths if path.name in names and path.is_file()]


def csv_header(path: Path) -> list[str]:
    """Column names of a CSV or TSV file."""
    with open_csv(path) as file:
        header = next(csv_rows(file, _delimiter(path), path.suffix != ".tsv"), None)
    return header.fields if header is not None else []


def open_csv(path: Path) -> TextIO:
    """Open a CSV or TSV file as `csv_rows` needs it."""
    # utf-8-sig: spreadsheets write a byte order mark, which would be part of the first name;
    # newline="": a quoted caption keeps its line ends
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def csv_records(
    path: Path, needed: list[tuple[str, ...]]
) -> Iterator[tuple[int, dict[str, str] | str]]:
    """Read a CSV or TSV file with a header.

    A TSV has no quoting: a line is a row. In a CSV, a quote that is never closed, or that closes
    only after lines that are rows by themselves, makes its own line a bad row, not those after it.

    Args:
        path: The file.
        needed: Columns that must exist, each with its alternative names. The first one identifies a
            row.

    Yields:
        (line number, fields by column name), or (line number, what is wrong with the row).

    Raises:
        DataError: A needed column is missing.
    """
    with open_csv(path) as file:
        header = read_header(file, path, needed)
        counts = LineCounts(header.lines)
        yield from records_below(file, path, header, counts, header.lines)
    counts.log(path)


class CsvHeader(NamedTuple):
    """The header of a CSV or TSV file."""

    columns: list[str]
    key: int
    """Position of the column that identifies a row."""
    lines: int
    """Lines down to the header's end."""


def read_header(file: TextIO, path: Path, needed: list[tuple[str, ...]]) -> CsvHeader:
    """Read the header of an opened CSV or TSV file; arguments and errors of `csv_records`."""
    row = next(csv_rows(file, _delimiter(path), path.suffix != ".tsv"), None)
    columns = row.fields if row is not None else []
    missing = ["/".join(names) for names in needed if not set(names) & set(columns)]
    if missing or row is None:
        found = clean_text(", ".join(columns))[:200] or "an empty file"
        raise DataError(
            f"{path}: column {', '.join(missing)} is missing; found: {found}. --format"
            " selects another format"
        )
    key = min(columns.index(name) for name in needed[0] if name in columns)
    return CsvHeader(columns, key, row.line + row.lines - 1)


class LineCounts:
    """The lines of a list that are no rows of their own.

    Args:
        number: Lines of the header.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        """Lines so far."""
        self.blank = self.spanning = 0

    def add(self, row: CsvRow) -> None:
        """Count the lines of a row, and the blank ones before it."""
        self.add_plain(1, row.line)
        self.spanning += row.lines > 1
        self.number += row.lines - 1

    def add_plain(self, rows: int, last: int) -> None:
        """Count rows of one line each, of which the last has this number, and blank ones."""
        self.blank += last - self.number - rows
        self.number = last

    def log(self, path: Path) -> None:
        """Say why the file has more lines than rows, if it does."""
        if self.blank or self.spanning:
            log.info(
                "%s: %s lines: %s blank, %s rows with a quoted line break",
                path,
                f"{self.number:,}",
                f"{self.blank:,}",
                f"{self.spanning:,}",
            )


def records_below(
    file: TextIO, path: Path, header: CsvHeader, counts: LineCounts, before: int
) -> Iterator[tuple[int, dict[str, str] | str]]:
    """Read the rows of a file from the line on that it is at.

    Args:
        file: The opened file.
        path: Its path, which decides on the delimiter.
        header: The file's header.
        counts: Counts the rows.
        before: Lines before that line.

    Yields:
        As `csv_records`.
    """
    delimiter, quoted = _delimiter(path), path.suffix != ".tsv"
    for row in csv_rows(file, delimiter, quoted, header.key, len(header.columns), before):
        counts.add(row)
        yield row.line, row_record(row, header.columns)


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix == ".tsv" else ","


class CsvRow(NamedTuple):
    """A row of a CSV or TSV file."""

    line: int
    """Number of its first line, from 1."""
    lines: int
    fields: list[str]
    problem: str = ""
    """What is wrong with the row."""


def csv_rows(
    file: TextIO, delimiter: str, quoted: bool, key: int = 0, columns: int = 0, before: int = 0
) -> Iterator[CsvRow]:
    """Read the rows of a CSV or TSV file; blank lines are skipped.

    Args:
        file: The file, opened with newline="".
        delimiter: Between fields.
        quoted: Double quotes enclose fields, as in RFC 4180; otherwise they are characters.
        key: Position of the field that identifies a row.
        columns: Fields of the header; 0: this is the header.
        before: Lines that were already read.
    """
    waiting: deque[str] = deque()
    number = before
    limit = csv.field_size_limit()
    while line := waiting.popleft() if waiting else file.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE and line[-1] not in "\r\n":
            while (rest := file.readline(LONGEST_LINE)) and rest[-1] not in "\r\n":
                pass
            problem = f"line {number} has more than {LONGEST_LINE:,} characters"
            yield CsvRow(number, 1, [], problem)
        elif not quoted or '"' not in line:
            fields = line.rstrip("\r\n").split(delimiter)
            long = len(line) > limit and any(len(field) > limit for field in fields)
            problem = f"line {number} has a field of more than {limit:,} characters"
            if fields != [""]:
                yield CsvRow(number, 1, fields, problem if long else "")
        else:
            row, used = _quoted(line, number, partial(_next_line, waiting, file), delimiter)
            found = _swallowed(row, used, key, columns, delimiter)
            if found:
                problem = (
                    f"a quote in line {number} is closed in line {number + row.lines - 1} only;"
                    f" line {number + found} is a row of its own"
                )
                row = CsvRow(number, 1, [], problem)
            if row.problem:
                waiting.extendleft(reversed(used[1:]))
            number += row.lines - 1
            yield row


def _next_line(waiting: deque[str], file: TextIO) -> str:
    return waiting.popleft() if waiting else file.readline(LONGEST_LINE)


def _quoted(
    line: str, number: int, following: Callable[[], str], delimiter: str
) -> tuple[CsvRow, list[str]]:
    """Parse a row with quotes.

    Args:
        line: Its first line.
        number: Number of that line.
        following: Returns the next line, or an empty text at the end.
        delimiter: Between fields.

    Returns:
        (the row, the lines that were read for it); a bad row has one line.
    """
    used = [line]

    def lines() -> Iterator[str]:
        yield line
        while len(used) < LONGEST_ROW and (more := following()):
            used.append(more)
            yield more

    try:
        return CsvRow(
            number, 1, next(csv.reader(lines(), delimiter=delimiter, strict=True))
        )._replace(lines=len(used)), used
    except csv.Error as error:
        problem = f"line {number} has a quote that is not closed, or not doubled ({error})"
        return CsvRow(number, 1, [], problem), used


def _swallowed(row: CsvRow, used: list[str], key: int, columns: int, delimiter: str) -> int:
    """Which line of a row is a row of its own, counted from its first line; 0 if none is.

    Args:
        row: The row.
        used: Its lines.
        key: Position of the field that identifies a row.
        columns: Fields of the header.
        delimiter: Between fields.
    """
    if len(used) == 1 or row.problem or len(row.fields) != columns:
        return 0
    for number, line in enumerate(used[1:], start=1):
        fields = next(csv.reader([line], delimiter=delimiter), [])
        if len(fields) == columns and _alike(row.fields[key], fields[key]):
            return number
    return 0


def _alike(name: str, other: str) -> bool:
    """Whether two texts look like the names of two rows: paths, numbers, or ids of one length."""
    if f"{name} {other}".split() != [name, other]:
        return False
    suffixes = PurePath(name).suffix.lower(), PurePath(other).suffix.lower()
    if NUMBER.fullmatch(name) or NUMBER.fullmatch(other):
        return bool(NUMBER.fullmatch(name) and NUMBER.fullmatch(other))
    return suffixes[0] == suffixes[1] and (suffixes[0] != "" or len(name) == len(other) > 5)


def column_of(record: dict[str, str], names: tuple[str, ...]) -> str:
    """The field of the first of these columns that the file has."""
    return next(record[name] for name in names if name in record)


def row_record(row: CsvRow, columns: list[str]) -> dict[str, str] | str:
    """The fields of a row by column name, or what is wrong with the row."""
    if row.problem:
        return row.problem
    if len(row.fields) != len(columns):
        return f"line {row.line} does not have the header's {len(columns)} fields"
    # errors="surrogateescape" reads invalid bytes as these code points
    joined = "".join(row.fields)
    if not joined.isascii() and _INVALID.search(joined):
        return f"line {row.line} is not UTF-8 text; convert the file, for example with iconv"
    return dict(zip(columns, row.fields, strict=True))


def table_records(
    path: Path, needed: list[tuple[str, ...]]
) -> Iterator[tuple[int, dict[str, str] | str]]:
    """Read a list of a user's own: CSV, TSV, JSON lines or Parquet, by the file's suffix.

    Numbers become text (3.0 becomes "3", as pandas stores integers with gaps as floats); null, NaN
    and a key that a JSON object lacks become "".

    Args:
        path: The file.
        needed: As for `csv_records`.

    Yields:
        (line or row number, from 1; fields by column name), or (number, what is wrong with it).

    Raises:
        DataError: A needed column is missing, or the file has another format.
    """
    suffix = path.suffix.lower()
    if suffix not in TABLES:
        raise DataError(f"{path}: cannot tell its format; its name must end in {', '.join(TABLES)}")
    if suffix in (".csv", ".tsv"):
        yield from csv_records(path, needed)
        return
    objects = _json_objects(path) if suffix == ".jsonl" else _parquet_rows(path)
    found: set[str] = set()
    good = False
    for number, record in objects:
        row = record if isinstance(record, str) else _as_texts(record, number)
        if not isinstance(row, str):
            found |= row.keys()
            absent = [names[0] for names in needed if not set(names) & row.keys()]
            good = good or not absent
            if absent:
                row = f"line {number} has no {', '.join(absent)}"
        yield number, row
    if not good:
        names = ", ".join("/".join(names) for names in needed)
        shown = clean_text(", ".join(sorted(found)))[:200] or "none"
        raise DataError(f"{path}: no row has all of the columns {names}; columns found: {shown}")


def _json_objects(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    # bytes, and at most LONGEST_LINE of them at a time: see `tsv_records` and `_rows`
    with path.open("rb") as file:
        for number, line in bounded_lines(file, LONGEST_LINE):
            if line is None:
                yield number, f"line {number} has more than {LONGEST_LINE:,} bytes"
                continue
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                record = json.loads(text) if text.strip() else None
            except UnicodeDecodeError as error:
                yield number, f"line {number} is not UTF-8 text ({error.reason})"
            except (ValueError, RecursionError):
                yield number, f"line {number} is not JSON"
            else:
                if isinstance(record, dict):
                    yield number, record
                elif text.strip():
                    yield number, f"line {number} is not a JSON object"


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except pa.ArrowException as error:
        raise DataError(f"{path} is not a Parquet file, or is damaged: {error}") from error


def _as_texts(record: dict[str, Any], number: int) -> dict[str, str] | str:
    """The fields as texts; for a field that is none, what is wrong with the row."""
    texts = {}
    for name, value in record.items():
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is None or value != value:  # null or NaN
            value = ""
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            return f"line {number}: {clean_text(str(name))[:40]!r} is not a text or a number"
        texts[str(name)] = str(value)
    return texts


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
        for number, raw in bounded_lines(file, LONGEST_LINE):
            if raw is None:
                yield number, f"line {number} has more than {LONGEST_LINE:,} bytes"
                continue
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


def bounded_lines(
    file: IO[bytes] | gzip.GzipFile, longest: int
) -> Iterator[tuple[int, bytes | None]]:
    """Yield (number from 1, line) of a file; None for a line of more than `longest` bytes.

    A few megabytes of a compressed file may stand for a line of gigabytes.
    """
    number = 0
    while line := file.readline(longest):
        number += 1
        if len(line) < longest or line.endswith(b"\n"):
            yield number, line
            continue
        while (rest := file.readline(CHUNK)) and not rest.endswith(b"\n"):
            pass
        yield number, None


def load_json(path: Path) -> Any:
    """Load a JSON file that fits in memory; raises DataError if it is damaged."""
    try:
        # as bytes: json then recognises the encoding and a byte order mark
        return parse_json(path.read_bytes())
    except ValueError as error:
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
                found, end = self._decode()
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
            if len(self._text) > LARGEST_VALUE:
                raise self.fault(f"a value has more than {LARGEST_VALUE:,} characters")
            self._text = self._text[self._position :] + more
            self._position = 0
            wanted *= 2  # doubling bounds how often the start of a long value is parsed again

    def _decode(self) -> tuple[Any, int]:
        """(value, its end); raises json.JSONDecodeError if it is damaged or incomplete."""
        try:
            return self._decoder.raw_decode(self._text, self._position)
        except json.JSONDecodeError:
            raise
        except ValueError:  # a number of more than 4,300 digits spoils its own record only
            return json.JSONDecoder(parse_int=integer).raw_decode(self._text, self._position)
        except RecursionError:
            return None, self._nested_end()

    def _nested_end(self) -> int:
        """Where a value ends that is nested too deeply to be parsed."""
        depth = 0
        for match in _BRACKETS.finditer(self._text, self._position):
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match[0], 0)
            if depth == 0:
                return match.end()
        raise json.JSONDecodeError("it ends early", "", 0)
