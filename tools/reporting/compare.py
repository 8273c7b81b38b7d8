"""Two predictions files of one test set, item by item: agreement, and the difference of every
measure with its paired interval."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from allinone.common.errors import InputError
from allinone.finetune.evaluation.bootstrap import mean, median, paired_interval
from allinone.finetune.evaluation.results import ResultError, read_predictions

_SHOWN = 5
Rows = Mapping[str, Mapping[str, Any]]


def compare(first: Path, second: Path) -> int:
    """Print the comparison; 0 where the files agree in every item, 1 where they do not, like diff.
    InputError where a file cannot be read."""
    try:
        one, two = read_predictions(first), read_predictions(second)
    except ResultError as error:
        raise InputError(str(error)) from error
    shared = sorted(one.keys() & two.keys())
    print(
        f"A {first}: {len(one):,} items\nB {second}: {len(two):,} items\n{len(shared):,} items in"
        " both"
    )
    for name, only in (("A", one.keys() - two.keys()), ("B", two.keys() - one.keys())):
        if only:
            print(
                f"only in {name}: {len(only):,}"
                f" ({', '.join(sorted(only)[:_SHOWN])}{' …' * (len(only) > _SHOWN)})"
            )
    if not shared:
        raise InputError("the two files share no item: they are predictions on different test sets")
    different = [name for name in shared if one[name] != two[name]]
    changed = [
        name for name in shared if one[name].get("prediction") != two[name].get("prediction")
    ]
    for line in _measures(one, two, shared):
        print(line)
    print(
        f"same prediction: {len(shared) - len(changed):,} of {len(shared):,}"
        f" ({100 * (1 - len(changed) / len(shared)):.2f} %)"
    )
    if not different and len(shared) == len(one) == len(two):
        same = first.read_bytes() == second.read_bytes()
        print(f"identical in every item{', byte for byte' if same else ''}")
        return 0
    print(f"rows that differ in anything: {len(different):,}")
    for name in (changed or different)[:_SHOWN]:
        print(f"  {name}\n    A {_short(one[name])}\n    B {_short(two[name])}")
    return 1


def _short(row: Mapping[str, Any]) -> str:
    kept = {key: row[key] for key in ("prediction", "answer", "measures") if key in row}
    text = json.dumps(kept or dict(row), ensure_ascii=False)
    return text if len(text) <= 200 else text[:199] + "…"


def _measures(one: Rows, two: Rows, shared: list[str]) -> list[str]:
    """One line per measure that both files have: the two values, and B - A with its interval."""
    values: dict[str, list[tuple[str, float, float]]] = {}
    for name in shared:
        mine, theirs = one[name].get("measures") or {}, two[name].get("measures") or {}
        for measure in sorted(mine.keys() & theirs.keys()):
            media = str(one[name].get("media") or name)
            values.setdefault(measure, []).append(
                (media, float(mine[measure]), float(theirs[measure]))
            )
    lines = []
    for measure, rows in values.items():
        clusters = np.array([row[0] for row in rows])
        first, second = (np.array([row[place] for row in rows]) for place in (1, 2))
        for title, a, b, statistic in _views(measure, first, second):
            difference, low, high = paired_interval(a, b, statistic, clusters=clusters)
            shown = (
                f"A {statistic(a):.2f}  B {statistic(b):.2f}  B - A {difference:+.2f} [{low:+.2f},"
                f" {high:+.2f}]"
            )
            lines.append(f"{title:<18}{shown}  ({len(rows):,} items)")
    return lines


def _views(
    measure: str, first: np.ndarray, second: np.ndarray
) -> list[tuple[str, np.ndarray, np.ndarray, Callable[[np.ndarray], float]]]:
    """A rank is shown as R@1, R@5, R@10, MdR and MnR (a tied rank counts by its expectation), a hit
    in percent."""
    if not measure.endswith("rank"):
        return [(f"{measure} %", 100 * first, 100 * second, mean)]
    way = measure.removesuffix("rank")
    recalls = [
        (f"{way}R@{k} %", 100.0 * (first <= k), 100.0 * (second <= k), mean) for k in (1, 5, 10)
    ]
    return [*recalls, (f"{way}MdR", first, second, median), (f"{way}MnR", first, second, mean)]
