"""Many rows at once: rows of a list that need no cleaning, as columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from allinone.data.sources.keys import Keys, row_keys
from allinone.data.sources.media import PLAIN
from allinone.data.sources.schema import SourceRow, clean_text

PLAIN_ID = r"\A[0-9A-Za-z_%+=,@-][0-9A-Za-z_%+=,@.-]*\z"
"""A component of PLAIN without "~", which renamed ids have: such an id is its own clean text."""
_CHARACTER = r"[!-\~\x{a1}-\x{ac}\x{ae}-\x{24f}\x{2010}-\x{2027}\x{2030}-\x{205e}]"
"""Printable ASCII, Latin letters, and the punctuation of word processors; no space."""
PLAIN_TEXT = rf"\A{_CHARACTER}+(?: {_CHARACTER}+)*\z"
"""Words with single spaces: `clean_text` leaves them as they are, and `has_text` is true."""
_PLAIN_PATH = rf"\A(?:{PLAIN.pattern})\z"


@dataclass(frozen=True)
class PlainRows:
    """Consecutive rows of one list."""

    split: str
    root: Path
    """Folder of the media."""
    extension: str
    """Of all files, lower case."""
    ids: pa.StringArray
    captions: pa.StringArray
    """One for each row."""
    sources: pa.StringArray
    """Paths below `root`."""
    row: Callable[[int], SourceRow]
    """Builds the row at a position as the row-by-row reader yields it."""
    others: Mapping[int, SourceRow] = field(default_factory=dict)
    """Checked rows by position, which count instead of the columns."""

    def __len__(self) -> int:
        return len(self.ids)


def check_rows(
    rows: PlainRows,
    exclude: frozenset[str],
    keys: Keys,
    checked: Callable[[SourceRow, int, str, int], SourceRow],
) -> PlainRows:
    """Apply the checks that all formats share; the result is that of row by row.

    Args:
        rows: Unchecked rows of a valid split.
        exclude: Ids to leave out.
        keys: Those of earlier rows; these rows' are added.
        checked: Checks one row: (row, position, its cleaned id, hash of its key).

    Returns:
        The rows; `others` are all that cannot be used as they are.
    """
    names = rows.ids.to_pylist()
    odd = ~(
        _matches(rows.ids, PLAIN_ID)
        & _matches(rows.captions, PLAIN_TEXT)
        & _matches(rows.sources, _PLAIN_PATH)
    )
    if exclude:
        odd |= np.fromiter(map(exclude.__contains__, names), np.bool_, len(names))
    others = {position: rows.row(position) for position in np.flatnonzero(odd).tolist()}
    for position, row in others.items():
        names[position] = clean_text(row.id)
    hashes = row_keys(rows.split, names)
    # Of rows with the same key the first one counts: all of them are checked in their order. A key
    # that a renamed row gets has a "~" and is none of the other rows'.
    shared = keys.known(hashes) | _repeated(hashes)
    for position in np.flatnonzero(shared & ~odd).tolist():
        others[position] = rows.row(position)
    positions = sorted(others)
    keys.expect([int(hashes[position]) for position in positions])
    for position in positions:
        others[position] = checked(
            others[position], position, names[position], int(hashes[position])
        )
    keys.add_all(hashes[~(odd | shared)])
    return replace(rows, others=dict(sorted(others.items())))


def _matches(texts: pa.StringArray, pattern: str) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = pc.match_substring_regex(texts, pattern).to_numpy(
        zero_copy_only=False
    )
    return found


def _repeated(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    repeated: NDArray[np.bool_] = counts[inverse] > 1
    return repeated
