"""The keys of a list of any length, in little memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LATEST = 1 << 17
"""Keys in a set, before they become an array of 8 bytes each."""


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
        if len(self._latest) > LATEST:
            self._sorted.append(np.sort(np.fromiter(self._latest, np.uint64, len(self._latest))))
            self._latest.clear()
        wanted = np.sort(np.array(hashes, np.uint64))
        self._expected.clear()
        for known in self._sorted:
            places = np.searchsorted(known, wanted)
            found = wanted[known[np.minimum(places, len(known) - 1)] == wanted]
            self._expected.update(found.tolist())

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
        """Add the key that a row got because its own was taken."""
        self._latest.add(key)
