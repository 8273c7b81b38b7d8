"""Mutated files of a prepared folder, opened as training and `allinone check` open them.

python -m tests.fuzz.index --inputs 10000
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from allinone.data.config import ClipConfig, DataConfig, DatasetSpec
from allinone.data.loading.loader import ClipSource
from allinone.data.prepare.verify import check as check_folder
from tests.data.helpers import prepare_small_demo
from tests.fuzz.runner import Fuzzer, main

FILES = ("index.arrow", "videos.arrow", "index.parquet", "videos.parquet", "dataset.json")


def make_seeds(folder: Path) -> Sequence[Path]:
    """The files of a prepared folder of 40 clips."""
    out = prepare_small_demo(folder)
    return [out / name for name in FILES]


def check(folder: Path, path: Path, content: bytes, number: int) -> str:
    """Open the folder, read some clips, and check it."""
    path.write_bytes(content)
    out = path.parent
    problems = check_folder(out, hashes=False, decodes=0, seed=0, workers=1)
    source = ClipSource(DatasetSpec(out, "train"), ClipConfig(3, 32), DataConfig(workers=0))
    for row in range(0, min(len(source), 40), 13):
        source.eval_sample(row)
    return "refused" if problems else "accepted"


if __name__ == "__main__":
    sys.exit(main(Fuzzer("index", make_seeds, check)))
