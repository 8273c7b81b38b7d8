"""Mutated annotation files of every benchmark.

python -m tests.fuzz.annotations --inputs 10000
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tests.finetune.annotations.test_readers import READERS
from tests.finetune.official import WRITERS
from tests.fuzz.runner import Fuzzer, main


def make_seeds(folder: Path) -> Sequence[Path]:
    """Every small text file of every made-up benchmark; the first folder names the benchmark."""
    paths: list[Path] = []
    for name, write in WRITERS.items():
        (folder / name).mkdir(parents=True)
        annotations = write(folder / name).annotations
        files = (path for path in sorted(annotations.rglob("*")) if path.is_file())
        paths += [path for path in files if path.stat().st_size < 1 << 20]
    return paths


def check(folder: Path, path: Path, content: bytes, number: int) -> str:
    """Load every split of every task of the benchmark."""
    from allinone.finetune.annotations.schema import AnnotationError

    path.write_bytes(content)
    name = path.relative_to(folder).parts[0]
    refused = 0
    readers = [reader for reader in READERS.values() if reader.writer == name]
    root = next(parent for parent in path.parents if parent.name == "annotations")
    for reader in readers:
        for split in reader.sizes:
            try:
                reader.load(root, split)
            except AnnotationError:
                refused += 1
    return "refused" if refused else "accepted"


if __name__ == "__main__":
    sys.exit(main(Fuzzer("annotations", make_seeds, check)))
