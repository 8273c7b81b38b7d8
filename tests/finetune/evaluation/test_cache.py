"""The cache of evaluated batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from allinone.finetune.evaluation.cache import BatchResult, Cache


def test_cached_result_is_found_by_content_only(tmp_path: Path) -> None:
    result = BatchResult((3, 5), np.array([[1.5], [2.5]], np.float32), {4: "gone"}, 1, 2)
    Cache(tmp_path, "weights 1").put("items", result)
    known = Cache(tmp_path, "weights 1").get("items")
    assert known is not None
    assert (known.items, known.missing, known.lost, known.shortened) == ((3, 5), {4: "gone"}, 1, 2)
    assert known.values.tolist() == [[1.5], [2.5]]
    assert Cache(tmp_path, "weights 2").get("items") is None
    assert Cache(tmp_path, "weights 1").get("other items") is None
    (file,) = tmp_path.rglob("*.npz")
    file.write_bytes(file.read_bytes()[:40])
    assert Cache(tmp_path, "weights 1").get("items") is None
