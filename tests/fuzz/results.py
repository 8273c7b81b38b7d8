"""Mutated results and predictions of fine-tuning, as the report reads them.

python -m tests.fuzz.results --inputs 10000
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from allinone.finetune.evaluation.results import (
    read_predictions,
    read_results,
    write_predictions,
    write_result,
)
from tests.finetune.evaluation.test_results import result
from tests.fuzz.runner import Fuzzer, main


def make_seeds(folder: Path) -> Sequence[Path]:
    """A result and its predictions."""
    folder.mkdir(parents=True, exist_ok=True)
    path = write_result(folder, result())
    rows = [
        {"id": f"q{k}", "media": "a", "answer": "x", "measures": {"accuracy": 1.0}}
        for k in range(5)
    ]
    write_predictions(folder / "predictions.jsonl", rows)
    return [path, folder / "predictions.jsonl"]


def check(folder: Path, path: Path, content: bytes, number: int) -> str:
    """Read one of them."""
    path.write_bytes(content)
    read_predictions(path) if path.suffix == ".jsonl" else read_results(path)
    return "accepted"


if __name__ == "__main__":
    sys.exit(main(Fuzzer("results", make_seeds, check)))
