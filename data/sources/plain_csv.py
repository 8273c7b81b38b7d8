"""A CSV read by Arrow where its lines are plain, and row by row where they are not.

A line is plain if it has the header's number of fields, no control characters, and quotes only
around complete fields (a quote inside is doubled). Arrow and `reading.csv_rows` read such lines
alike. Every other line goes to `csv_rows`, together with the lines that it may take into a field.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv

from allinone.data.sources.reading import (
    LONGEST_LINE,
    LONGEST_ROW,
    CsvHeader,
    LineCounts,
    csv_rows,
    open_csv,
    read_header,
    records_below,
    row_record,
)

CHUNK = 1 << 20
"""Bytes read at a time, 5,000 lines of WebVid. Four times as many save a tenth of the time and take
40 MiB more."""
LONGEST_PLAIN = 1 << 16
"""Bytes of a plain line; far below the longest caption and the longest field of Python's csv."""
MOST_COLUMNS = 50
MOST_ODD = 0.05
"""Share of lines of a chunk that are not plain; above it, one by one they take longer than all
lines row by row."""
_ANY, _ASCII = '[^\\x00-\\x1f\\x7f",]', "[ !#-+\\--~]"
"""Characters of a field without quotes, in a chunk of valid UTF-8 and in one that is not."""
_ANY_QUOTED, _ASCII_QUOTED = '(?:[^\\x00-\\x1f\\x7f"]|"")', '(?:[ !#-~]|"")'


@dataclass(frozen=True)
class CsvBlock:
    """Consecutive plain rows."""

    lines: NDArray[np.int64]
    """Line number of each row."""
    columns: dict[str, pa.StringArray]


Record = tuple[int, dict[str, str] | str]


def csv_blocks(
    path: Path, needed: list[tuple[str, ...]], wanted: Collection[str]
) -> Iterator[CsvBlock | Record]:
    """Read a CSV file with a header; the rows and their order are those of `csv_records`.

    Args:
        path: The file.
        needed: Columns that must exist, as for `csv_records`.
        wanted: Columns to return of plain rows, where the file has them.

    Yields:
        Blocks of plain rows; other rows as `csv_records` yields them.

    Raises:
        DataError: A needed column is missing.
    """
    with open_csv(path) as text:
        header = read_header(text, path, needed)
    counts = LineCounts(header.lines)
    with path.open("rb") as file:
        yield from _Reader(file, path, header, counts, wanted).rows()
    counts.log(path)


class _Reader:
    """Reads one file; arguments as of `csv_blocks`."""

    def __init__(
        self,
        file: BinaryIO,
        path: Path,
        header: CsvHeader,
        counts: LineCounts,
        wanted: Collection[str],
    ) -> None:
        self._file, self._path = file, path
        self._header, self._counts = header, counts
        self._before = header.lines  # of the next chunk
        names = header.columns
        self._fields = {name: names.index(name) for name in wanted if name in names}
        self._names = [str(number) for number in range(len(names))]

    def rows(self) -> Iterator[CsvBlock | Record]:
        """All rows below the header."""
        names = self._header.columns
        first = self._file.readline(LONGEST_LINE)
        simple = first.endswith(b"\n") and first.count(b"\r") == first.endswith(b"\r\n")
        if self._header.lines > 1 or not simple:
            with open_csv(self._path) as text:
                read_header(text, self._path, [(names[self._header.key],)])
                yield from records_below(
                    text, self._path, self._header, self._counts, self._header.lines
                )
            return
        position, data = len(first), b""
        if not 1 < len(names) <= MOST_COLUMNS or len(set(names)) < len(names):
            yield from self._rest(position)
            return
        while True:
            more = self._file.read(CHUNK)
            data += more
            if not more and data and not data.endswith(b"\n"):
                data += b"\n"  # of the last line
            lines = _Lines.of(data)
            if not lines.readable or len(data) - lines.offsets[-1] > LONGEST_LINE:
                yield from self._rest(position)
                return
            plain = self._plain(lines)
            odd = np.flatnonzero(~plain & ~lines.blank)
            if len(odd) > MOST_ODD * len(plain) + 10:
                yield from self._rest(position)
                return
            used = yield from self._chunk(lines, plain, odd, at_end=not more)
            position, data = position + used, data[used:]
            if not more:
                return

    def _rest(self, position: int) -> Iterator[Record]:
        """All rows from a byte on, row by row."""
        self._file.seek(position)
        text = io.TextIOWrapper(self._file, "utf-8", errors="surrogateescape", newline="")
        yield from records_below(text, self._path, self._header, self._counts, self._before)

    def _plain(self, lines: _Lines) -> NDArray[np.bool_]:
        """Which lines are plain."""
        try:
            lines.texts.validate(full=True)
            field = f'(?:{_ANY}*|"{_ANY_QUOTED}*")'
        except pa.ArrowInvalid:  # a line is not UTF-8: those that are no ASCII are read one by one
            field = f'(?:{_ASCII}*|"{_ASCII_QUOTED}*")'
        pattern = rf"\A(?:{field},){{{len(self._names) - 1}}}{field}\r?\n\z"
        matching = pc.match_substring_regex(lines.texts, pattern)
        found: NDArray[np.bool_] = matching.to_numpy(zero_copy_only=False)
        return found & (lines.lengths <= LONGEST_PLAIN)

    def _chunk(
        self, lines: _Lines, plain: NDArray[np.bool_], odd: NDArray[np.int64], at_end: bool
    ) -> Generator[CsvBlock | Record, None, int]:
        """Yield the rows of a chunk.

        Args:
            lines: Its lines.
            plain: Which of them are plain.
            odd: Numbers of those that are neither plain nor blank.
            at_end: The file ends with this chunk.

        Returns:
            Bytes of the rows; a row that the next lines may belong to is left over.
        """
        following, count, columns = 0, len(plain), self._header.columns
        for line in odd.tolist():
            if line < following:  # inside a quoted field
                continue
            if line + LONGEST_ROW > count and not at_end:
                count = line
                break
            yield from self._block(lines, plain, following, line)
            window = io.BytesIO(lines.bytes(line, min(line + LONGEST_ROW, count)))
            text = io.TextIOWrapper(window, "utf-8", errors="surrogateescape", newline="")
            number = self._before + line
            row = next(csv_rows(text, ",", True, self._header.key, len(columns), number))
            self._counts.add(row)
            yield row.line, row_record(row, columns)
            following = line + row.lines
        yield from self._block(lines, plain, following, count)
        self._before += count
        return int(lines.offsets[count])

    def _block(
        self, lines: _Lines, plain: NDArray[np.bool_], first: int, last: int
    ) -> Iterator[CsvBlock]:
        """The plain rows from a line of a chunk to another; other lines in between are blank.

        Args:
            lines: The chunk's lines.
            plain: Which of them are plain.
            first: Number of the first line in the chunk.
            last: Number after the last line.
        """
        chosen = first + np.flatnonzero(plain[first:last])
        if not len(chosen):
            return
        if len(chosen) == last - first:
            data = lines.bytes(first, last)
        else:
            data = b"".join(lines.bytes(line, line + 1) for line in chosen.tolist())
        numbers = self._before + 1 + chosen
        self._counts.add_plain(len(numbers), int(numbers[-1]))
        kinds = {str(position): pa.string() for position in self._fields.values()}
        table = csv.read_csv(
            pa.BufferReader(data),
            csv.ReadOptions(use_threads=False, block_size=len(data) + 1, column_names=self._names),
            convert_options=csv.ConvertOptions(include_columns=list(kinds), column_types=kinds),
        )
        if table.num_rows != len(chosen):
            raise AssertionError(f"{self._path}: Arrow reads other rows than lines")
        columns = {
            name: table[str(position)].combine_chunks() for name, position in self._fields.items()
        }
        yield CsvBlock(numbers, columns)


class _Lines(NamedTuple):
    """The complete lines of a piece of a file."""

    data: bytes
    offsets: NDArray[np.int32]
    """Where each line begins, and where the last one ends."""
    texts: pa.StringArray
    lengths: NDArray[np.int32]
    """Bytes, the line end included."""
    blank: NDArray[np.bool_]
    readable: bool
    """The lines are those that Python's text files have, and none is too long."""

    @classmethod
    def of(cls, data: bytes) -> _Lines:
        """Find the lines of `data`."""
        content = np.frombuffer(data, np.uint8)
        ends = np.flatnonzero(content == ord("\n")).astype(np.int32) + 1
        offsets = np.concatenate([np.zeros(1, np.int32), ends])
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
        texts = pa.StringArray.from_buffers(len(ends), *buffers[1:])
        lengths = np.diff(offsets)
        blank = lengths == 1
        returns = np.flatnonzero(content[: offsets[-1]] == ord("\r"))
        if len(returns):
            blank |= (lengths == 2) & (content[offsets[:-1]] == ord("\r"))
        readable = (content[returns + 1] == ord("\n")).all() and (lengths < LONGEST_LINE).all()
        return cls(data, offsets, texts, lengths, blank, bool(readable))

    def bytes(self, first: int, last: int) -> bytes:
        """The bytes of some lines."""
        return self.data[self.offsets[first] : self.offsets[last]]
