"""Which nodes are bad, from what each of them found (tools/node_check.py)."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allinone.common.atomic_io import write_atomic
from allinone.common.formatting import count, size

if TYPE_CHECKING:  # the host's Python, which may be 3.9, cannot evaluate it
    Results = Mapping[str, Mapping[str, Any] | None]
    """Node → its result, None where there is none."""


EXCHANGE = re.compile(r"the all-reduce with (.+)")
"""What a node does while it exchanges numbers with a neighbour."""


def read_results(folder: Path, names: Sequence[str]) -> dict[str, dict[str, Any] | None]:
    """What each node wrote."""
    paths = {name: folder / f"{name}.json" for name in names}
    results = {
        name: json.loads(path.read_text()) if path.exists() else None
        for name, path in paths.items()
    }
    for result in results.values():
        partner = EXCHANGE.fullmatch((result or {}).get("doing") or "")
        if result and partner:  # it was cut off there
            result["neighbours"][partner[1]] = {"error": "did not end"}
    return results


def rates_between(results: Results) -> dict[frozenset[str], float]:
    """Bytes per second between neighbours, 0 where the exchange failed or one of the two says
    nothing about it."""
    pairs: dict[frozenset[str], float] = {}
    for name, result in results.items():
        for other, found in (result or {}).get("neighbours", {}).items():
            pair = frozenset((name, other))
            pairs[pair] = min(pairs.get(pair, float("inf")), found.get("rate", 0.0))
    return pairs


RATES: dict[str, tuple[str, Callable[[float], str]]] = {
    "matmul": ("multiplies at", lambda rate: f"{count(rate)}FLOP/s"),
    "inner_all_reduce": ("sums over its GPUs at", lambda rate: f"{size(rate)}/s"),
    "sm_clock_mhz": ("clocks its GPUs at", lambda rate: f"{rate:.0f} MHz"),
}
"""Facts of which more is better, compared with the median of all nodes: the words before the
figure, and how it is shown."""


def medians(results: Results) -> dict[str, float]:
    """Median over the nodes of every rate that was measured."""
    found = {
        name: [
            result["facts"][name]
            for result in results.values()
            if result and name in result["facts"]
        ]
        for name in RATES
    }
    return {name: statistics.median(values) for name, values in found.items() if values}


def own_problems(
    name: str, result: Mapping[str, Any] | None, median: Mapping[str, float], slow: float
) -> list[tuple[str, str]]:
    """(check, what is wrong) that a node has by itself or beside the median of all."""
    if result is None:
        return [("start", "did not start the check")]
    problems = [(check, text) for check, text in result["problems"]]
    if result["doing"] and "all-reduce with" not in result["doing"]:
        problems.append(("hang", f"did not finish {result['doing']}"))
    for fact, (words, show) in RATES.items():
        rate = result["facts"].get(fact)
        if rate is not None and rate < slow * median[fact]:
            problems.append(
                (fact, f"{words} {show(rate)}, the median of all is {show(median[fact])}")
            )
    return problems


def shared_problems(
    name: str,
    results: Results,
    pairs: Mapping[frozenset[str], float],
    slow: float,
    max_clock_s: float,
) -> list[str]:
    """What is wrong with a node's exchange with every neighbour, while at least one of these does
    well with another."""
    mine = {next(iter(pair - {name})): rate for pair, rate in pairs.items() if name in pair}
    limit = slow * statistics.median(pairs.values()) if pairs else 0.0
    problems = []
    if len(mine) > 1 and all(rate <= 0 or rate < limit for rate in mine.values()):
        others = {
            max((r for p, r in pairs.items() if other in p and name not in p), default=0.0)
            for other in mine
        }
        if max(others) > 0 and max(others) >= limit:
            shown = ", ".join(
                f"{other}: {size(rate)}/s" if rate else f"{other}: failed"
                for other, rate in sorted(mine.items())
            )
            problems.append(f"all-reduce with both neighbours fails or is slow ({shown})")
    clocks = [
        found["clock_s"]
        for found in (results[name] or {}).get("neighbours", {}).values()
        if "clock_s" in found
    ]
    if len(clocks) > 1 and all(abs(clock) > max_clock_s for clock in clocks):
        problems.append(
            f"its clock differs from both neighbours' by {statistics.mean(clocks):+.1f} s"
        )
    return problems


def verdict(results: Results, slow: float, max_clock_s: float) -> dict[str, list[tuple[str, str]]]:
    """Node → its problems as (check, what is wrong); empty for a good node."""
    median = medians(results)
    problems = {name: own_problems(name, result, median, slow) for name, result in results.items()}
    pairs = rates_between(results)
    for name in results:
        problems[name] += [
            ("all-reduce", text)
            for text in shared_problems(name, results, pairs, slow, max_clock_s)
        ]
    return problems


def suspicious_pairs(problems: Mapping[str, Sequence[object]], results: Results) -> dict[str, str]:
    """Exchanges that failed between two nodes of which neither is known to be bad → what one of
    them said."""
    failed = [sorted(pair) for pair, rate in rates_between(results).items() if rate <= 0]
    return {
        f"{a} and {b}": _said(results, a, b)
        for a, b in sorted(failed)
        if not problems[a] and not problems[b]
    }


def _said(results: Results, a: str, b: str) -> str:
    said = [
        (results[one] or {}).get("neighbours", {}).get(other, {}).get("error")
        for one, other in ((a, b), (b, a))
    ]
    return next((text for text in said if text), "one of them says nothing about it")


def judge(folder: Path, names: Sequence[str], slow: float, max_clock_s: float) -> int:
    """Print a line per node, write the files `good` and `bad`.

    Returns 0; or, without the files, where no node is to blame: 2 if the data, 3 if the disk is
    wrong on every node, 1 if more than half are bad.
    """
    results = read_results(folder, names)
    problems = verdict(results, slow, max_clock_s)
    for number, name in enumerate(names):
        result = results[name] or {"facts": {}, "neighbours": {}}
        if problems[name]:
            shown = (
                "bad:"
                f" {'; '.join(text for _, text in problems[name])}{_last_words(folder / f'node-{number}.log')}"
            )
        else:
            rates = [found["rate"] for found in result["neighbours"].values() if "rate" in found]
            neighbour = f"  {size(max(rates))}/s to a neighbour" if rates else ""
            shown = (
                f"good  {count(result['facts'].get('matmul', 0.0))}FLOP/s{neighbour} "
                f" {result['facts'].get('seconds', math.nan):.1f} s"
            )
        print(f"node check: {name}  {shown}")
    for pair, said in suspicious_pairs(problems, results).items():
        print(
            f"node check: warning: the all-reduce between {pair} failed, and neither can be told to"
            f" be at fault: {said}"
        )
    bad = [name for name in names if problems[name]]
    if all(any(kind == "start" for kind, _ in problems[name]) for name in names):
        print(
            "error: the check started on no node; that is not the nodes' fault. What srun said"
            " stands above"
        )
        return 1
    for check, code in (("data", 2), ("disk", 3)):
        if all(any(kind == check for kind, _ in problems[name]) for name in names):
            text = next(text for kind, text in problems[names[0]] if kind == check)
            print(f"error: the {check} is wrong on every node: {text}")
            return code
    if len(bad) > max(1, len(names) // 2):
        print(
            f"error: {len(bad)} of {len(names)} nodes failed the check; that is hardly the fault of"
            " single nodes, so none is left out"
        )
        return 1
    write_atomic(folder / "bad", "".join(f"{name}\n" for name in bad))
    write_atomic(folder / "good", "".join(f"{name}\n" for name in names if name not in bad))
    return 0


def _last_words(log: Path) -> str:
    """The last line that a node's check printed, which tells why it ended early."""
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f" (its last words: {last[:200]})" if last else ""
