"""Records and evaluations of a run as curves: tag → value, the same for every logger.

Tags: train/<metric>[/<data set>] means over the logging interval; run/<fact>;
run/lr/x<multiple> for parameter groups with different learning rates;
ranks/<time>/<min|median|max> over ranks; eval/<set>/<metric>.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TRAIN = "train/"
"""Prefix of the tags of objectives' metrics."""
RUN_FACTS = (
    "lr",
    "grad_norm",
    "clip_rate",
    "samples_per_s",
    "step_s",
    "mfu",
    "data_wait",
    "memory_bytes",
    "skipped_steps",
    "bad_clips",
)
"""Keys of a history record that become curves run/<key>."""
RANK_FACTS = ("own_s", "wait_s")
"""Keys of a history record with a spread over ranks; curves ranks/<key>/<min|median|max>."""


def record_scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """Tag → value of one logging interval, a record of history.jsonl."""
    values = {f"{TRAIN}{name}": value for name, value in record["metrics"].items()}
    values |= {f"run/{name}": record[name] for name in RUN_FACTS}
    values |= {f"run/lr/{name}": value for name, value in record.get("lr_groups", {}).items()}
    for name in RANK_FACTS:
        values |= {f"ranks/{name}/{which}": value for which, value in record[name].items()}
    return values


def evaluation_scalars(results: Mapping[str, float]) -> dict[str, float]:
    """Tag → value of one evaluation."""
    return {f"eval/{name}": value for name, value in results.items()}
