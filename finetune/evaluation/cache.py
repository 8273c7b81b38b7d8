"""Cache of evaluated batches on disk, so that an interrupted evaluation continues.

The key is the content of everything that a batch's result depends on.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from allinone.common.atomic_io import atomic_path, content_hash


@dataclass(frozen=True)
class BatchResult:
    """Result of one batch."""

    items: tuple[int, ...]
    """Numbers of the items that could be shown."""
    values: NDArray[np.float32]
    """[items, ...], in the order of `items`."""
    missing: dict[int, str]
    """Number of an item that could not be shown → reason."""
    lost: int
    """Texts whose deciding part was cut."""
    shortened: int
    """Texts of which any part was cut."""


class Cache:
    """A folder of batch results.

    Args:
        folder: The folder.
        scope: Describes the weights and the settings; a batch adds its items and their content.
    """

    def __init__(self, folder: Path, scope: str) -> None:
        self._folder, self._scope = folder, scope

    def _path(self, content: str) -> Path:
        key = content_hash(f"{self._scope}|{content}".encode())
        return self._folder / key[:2] / f"{key}.npz"

    def get(self, content: str) -> BatchResult | None:
        """The result of this content, or None."""
        try:
            with np.load(self._path(content), allow_pickle=False) as file:
                # the file name is a hash: compare the content itself, so that a collision is not a
                # hit
                if str(file["content"]) != f"{self._scope}|{content}":
                    return None
                missing = {
                    int(number): reason
                    for number, reason in json.loads(str(file["missing"])).items()
                }
                return BatchResult(
                    tuple(file["items"].tolist()),
                    file["values"],
                    missing,
                    int(file["lost"]),
                    int(file["shortened"]),
                )
        # a file that a full disk cut off, or of another format, is evaluated again
        except (OSError, ValueError, TypeError, LookupError, AttributeError, zipfile.BadZipFile):
            return None

    def put(self, content: str, result: BatchResult) -> None:
        """Store a result atomically."""
        # ranks share the folder: a reader must never see half a file. A file object, because numpy
        # appends .npz to a path
        with atomic_path(self._path(content)) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                content=np.array(f"{self._scope}|{content}"),
                items=np.array(result.items, np.int64),
                values=result.values,
                missing=np.array(json.dumps(result.missing)),
                lost=np.array(result.lost),
                shortened=np.array(result.shortened),
            )
