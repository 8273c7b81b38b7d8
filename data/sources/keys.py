"""The keys of a list of any length, in little memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LATEST = 1 << 15
"""Keys in a set, before they become an array of 8 bytes each."""
LARGEST = 1 << 21
"""Keys of an array, 16 MiB; merging larger ones would need more memory than it saves time."""


def row_key(split: str, name: str) -> int:
    """Hash a row's split and id to 64 bits; the same in one process only.

    The interpreter's own hash of texts (SipHash, 64 bits) takes a tenth of the time of BLAKE2.
    """
    return hash(f"{split}/{name}") & (1 << 64) - 1


def row_keys(split: str, names: list[str]) -> NDArray[np.uint64]:
    """`row_key` of many rows."""
    keys = [f"{split}/{name}" for name in names]
    return np.fromiter(map(hash, keys), np.int64, len(keys)).view(np.uint64)


class Keys:
    """The keys of all rows so far, as hashes: 8 bytes each, plus a set of the latest ones.

    A set of ten million integers would take 900 MB.
    """

    def __init__(self) -> None:
        self._latest: set[int] = set()
        self._sorted: list[NDArray[np.uint64]] = []
        self._expected: set[int] = set()
        self._spellings: dict[int, set[str]] = {}
        """Hash of a key that stands for several ids, which differ in white space → those ids."""

    def expect(self, hashes: list[int]) -> None:
        """Prepare for rows with these keys.

        Looking up many at a time takes 1 µs each, a single one 10 µs.
        """
        self._flush()
        wanted = np.sort(np.array(hashes, np.uint64))
        self._expected = set(wanted[self._stored(wanted)].tolist())

    def known(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of these keys earlier rows have."""
        self._flush()
        order = np.argsort(hashes)
        found = np.empty(len(hashes), np.bool_)
        found[order] = self._stored(hashes[order])
        latest = map(self._latest.__contains__, hashes.tolist())
        return found | np.fromiter(latest, np.bool_, len(hashes))

    def add_all(self, hashes: NDArray[np.uint64]) -> None:
        """Add rows whose ids need no cleaning and whose keys are new."""
        self._latest.update(hashes.tolist())

    def _flush(self) -> None:
        if len(self._latest) <= LATEST:
            return
        newest = np.fromiter(self._latest, np.uint64, len(self._latest))
        self._latest.clear()
        # arrays of like size are merged: ten million keys are in about ten arrays, not in 80
        while self._sorted and len(self._sorted[-1]) <= len(newest) <= LARGEST // 2:
            newest = np.concatenate([self._sorted.pop(), newest])
        newest.sort()
        self._sorted.append(newest)

    def _stored(self, wanted: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of these sorted keys are in the arrays."""
        found = np.zeros(len(wanted), np.bool_)
        for known in self._sorted:
            places = np.searchsorted(known, wanted)
            found |= known[np.minimum(places, len(known) - 1)] == wanted
        return found

    def add(self, key: int, name: str, raw: str) -> tuple[bool, bool]:
        """Add a row.

        Args:
            key: Hash of the row's key, which `expect` was given.
            name: The id as the key has it.
            raw: The id as the source has it.

        Returns:
            (whether an earlier row has the same key, whether it has the same id).
        """
        if key not in self._latest and key not in self._expected:
            self._latest.add(key)
            if raw != name:
                self._spellings[key] = {raw}
            return False, False
        if raw == name and key not in self._spellings:
            return True, True
        known = self._spellings.setdefault(key, {name})
        same = raw in known
        known.add(raw)
        return True, same

    def add_renamed(self, key: int) -> None:
        """Add the key that a row got because its own was taken; no id of the source."""
        self._latest.add(key)
        self._spellings[key] = set()
