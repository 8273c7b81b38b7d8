"""Compares two predictions files of one test set item by item: agreement, and the difference of
every measure with its paired interval."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from allinone.common.errors import InputError
from allinone.finetune.evaluation.bootstrap import mean, median, paired_interval
from allinone.finetune.evaluation.results import ResultError, read_predictions

_SHOWN = 5
Rows = Mapping[str, Mapping[str, Any]]


def compare(first: Path, second: Path) -> tuple[str, bool]:
    """Compare two predictions files, called A and B in the text.

    Returns:
        The comparison as lines of text, and whether the files agree in every item.

    Raises:
        InputError: A file cannot be read, or the files share no item.
    """
    try:
        a, b = read_predictions(first), read_predictions(second)
    except ResultError as error:
        raise InputError(str(error)) from error
    shared = sorted(a.keys() & b.keys())
    if not shared:
        raise InputError(
            f"{first} and {second} share no item: they are predictions for different test sets"
        )
    lines = [
        f"A {first}: {len(a):,} items",
        f"B {second}: {len(b):,} items",
        f"{len(shared):,} items in both",
        *_only_in("A", a.keys() - b.keys()),
        *_only_in("B", b.keys() - a.keys()),
        *_measures(a, b, shared),
    ]
    different = [name for name in shared if a[name] != b[name]]
    changed = [name for name in shared if a[name].get("prediction") != b[name].get("prediction")]
    same = len(shared) - len(changed)
    lines.append(f"same prediction: {same:,} of {len(shared):,} ({100 * same / len(shared):.2f} %)")
    identical = not different and len(shared) == len(a) == len(b)
    if identical:
        bytes_too = first.read_bytes() == second.read_bytes()
        lines.append(f"identical in every item{', byte for byte' if bytes_too else ''}")
    else:
        lines.append(f"rows that differ in any field: {len(different):,}")
        for name in (changed or different)[:_SHOWN]:
            lines += [f"  {name}", f"    A {_short(a[name])}", f"    B {_short(b[name])}"]
    return "\n".join(lines), identical


def _only_in(name: str, items: Collection[str]) -> list[str]:
    if not items:
        return []
    more = " …" if len(items) > _SHOWN else ""
    return [f"only in {name}: {len(items):,} ({', '.join(sorted(items)[:_SHOWN])}{more})"]


def _short(row: Mapping[str, Any]) -> str:
    kept = {key: row[key] for key in ("prediction", "answer", "measures") if key in row}
    text = json.dumps(kept or dict(row), ensure_ascii=False)
    return text if len(text) <= 200 else text[:199] + "…"


def _measures(a: Rows, b: Rows, shared: list[str]) -> list[str]:
    """One line per measure that both files have: both values, and B - A with its interval."""
    values: dict[str, list[tuple[str, float, float]]] = {}
    for name in shared:
        measures = a[name].get("measures") or {}, b[name].get("measures") or {}
        media = str(a[name].get("media") or name)
        for measure in sorted(measures[0].keys() & measures[1].keys()):
            pair = float(measures[0][measure]), float(measures[1][measure])
            values.setdefault(measure, []).append((media, *pair))
    lines = []
    for measure, rows in values.items():
        media_ids, first, second = (np.array(column) for column in zip(*rows, strict=True))
        for title, x, y, statistic in _statistics(measure, first, second):
            # items of one video are not independent, so the bootstrap resamples videos
            difference, low, high = paired_interval(x, y, statistic, clusters=media_ids)
            shown = (
                f"A {statistic(x):.2f}  B {statistic(y):.2f}  B - A {difference:+.2f} [{low:+.2f},"
                f" {high:+.2f}]"
            )
            lines.append(f"{title:<18}{shown}  ({len(rows):,} items)")
    return lines


def _statistics(
    measure: str, first: np.ndarray, second: np.ndarray
) -> list[tuple[str, np.ndarray, np.ndarray, Callable[[np.ndarray], float]]]:
    """(title, values of A, values of B, statistic): a rank is shown as R@1, R@5, R@10, MdR and MnR
    (a tied rank counts by its expectation), a hit in percent."""
    if not measure.endswith("rank"):
        return [(f"{measure} %", 100 * first, 100 * second, mean)]
    prefix = measure.removesuffix("rank")
    recalls = [
        (f"{prefix}R@{k} %", 100.0 * (first <= k), 100.0 * (second <= k), mean) for k in (1, 5, 10)
    ]
    return [
        *recalls,
        (f"{prefix}MdR", first, second, median),
        (f"{prefix}MnR", first, second, mean),
    ]
