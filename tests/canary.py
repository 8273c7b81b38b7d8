"""A payload that shows whether a reader ran it, and ways to put it in place of a file."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch


class Canary:
    """Creates a folder where it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def as_pickle(path: Path, canary: Canary) -> None:
    """A plain pickle."""
    path.write_bytes(pickle.dumps(canary))


def as_torch_zip(path: Path, canary: Canary) -> None:
    """A file of torch.save."""
    torch.save({"state_dict": {"x": torch.zeros(1)}, "note": canary}, path)


def as_torch_legacy(path: Path, canary: Canary) -> None:
    """A file of torch.save before version 1.6."""
    torch.save({"note": canary}, path, _use_new_zipfile_serialization=False)


def as_numpy(path: Path, canary: Canary) -> None:
    """An .npz with an array of objects."""
    with path.open("wb") as file:
        np.savez(file, content=np.array([canary], dtype=object))


def _extension_table(canary: Canary) -> pa.Table:
    # before pyarrow 14.0.1, reading this type unpickled its metadata (CVE-2023-47248)
    metadata = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickle.dumps(canary, protocol=0),
    }
    return pa.table(
        [pa.array(["x"])], schema=pa.schema([pa.field("key", pa.string(), True, metadata)])
    )


def as_arrow(path: Path, canary: Canary) -> None:
    """Arrow IPC with a column of the extension type that was pickled."""
    table = _extension_table(canary)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def as_parquet(path: Path, canary: Canary) -> None:
    """Parquet with such a column."""
    pq.write_table(_extension_table(canary), path)


HARMS: tuple[Callable[[Path, Canary], None], ...] = (
    as_pickle,
    as_torch_zip,
    as_torch_legacy,
    as_numpy,
    as_arrow,
    as_parquet,
)


def assert_the_canary_works(folder: Path) -> None:
    """Unpickling what the harms wrote creates the folder."""
    assert not folder.exists()
    pickle.loads(pickle.dumps(Canary(folder)))
    assert folder.is_dir(), "the canary does not work"
