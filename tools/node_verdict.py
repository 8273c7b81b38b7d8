"""Which nodes are bad, from what each of them found (tools/node_check.py)."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.files import write_atomic
from data.units import count, size

Results = Mapping[str, Mapping[str, Any] | None]
"""Node → its result, None where there is none."""


def read_results(folder: Path, names: Sequence[str]) -> dict[str, dict[str, Any] | None]:
    """What each node wrote."""
    paths = {name: folder / f"{name}.json" for name in names}
    return {name: json.loads(path.read_text()) if path.exists() else None for name, path in paths.items()}


def rates_between(results: Results) -> dict[frozenset[str], float]:
    """Bytes per second between neighbours, 0 where the exchange failed or one of the two says nothing about it."""
    pairs: dict[frozenset[str], float] = {}
    for name, result in results.items():
        for other, found in (result or {}).get("neighbours", {}).items():
            pair = frozenset((name, other))
            pairs[pair] = min(pairs.get(pair, float("inf")), found.get("rate", 0.0))
    return pairs


def own_problems(name: str, result: Mapping[str, Any] | None, matmul: float, slow: float) -> list[tuple[str, str]]:
    """(check, what is wrong) that a node has by itself; `matmul` is the median of all."""
    if result is None:
        return [("start", f"did not start the check; see {name}.log")]
    problems = [(check, text) for check, text in result["problems"]]
    if result["doing"] and "all-reduce with" not in result["doing"]:
        problems.append(("hang", f"did not finish {result['doing']}; see {name}.log"))
    rate = result["facts"].get("matmul")
    if rate is not None and rate < slow * matmul:
        problems.append(("matmul", f"multiplies at {count(rate)}FLOP/s, the median of all is {count(matmul)}FLOP/s"))
    return problems


def shared_problems(
    name: str, results: Results, pairs: Mapping[frozenset[str], float], slow: float, max_clock_s: float
) -> list[str]:
    """What is wrong with a node's exchange with every neighbour, while at least one of these does well with another."""
    mine = {next(iter(pair - {name})): rate for pair, rate in pairs.items() if name in pair}
    limit = slow * statistics.median(pairs.values()) if pairs else 0.0
    problems = []
    if len(mine) > 1 and all(rate <= 0 or rate < limit for rate in mine.values()):
        others = {max((r for p, r in pairs.items() if other in p and name not in p), default=0.0) for other in mine}
        if max(others) > 0 and max(others) >= limit:
            shown = ", ".join(f"{other}: {size(rate)}/s" if rate else f"{other}: failed" for other, rate in sorted(mine.items()))
            problems.append(f"all-reduce with both neighbours fails or is slow ({shown})")
    clocks = [found["clock_s"] for found in (results[name] or {}).get("neighbours", {}).values() if "clock_s" in found]
    if len(clocks) > 1 and all(abs(clock) > max_clock_s for clock in clocks):
        problems.append(f"its clock differs from both neighbours' by {statistics.mean(clocks):+.1f} s")
    return problems


def verdict(results: Results, slow: float, max_clock_s: float) -> dict[str, list[tuple[str, str]]]:
    """Node → its problems as (check, what is wrong); empty for a good node."""
    matmuls = [result["facts"]["matmul"] for result in results.values() if result and "matmul" in result["facts"]]
    median = statistics.median(matmuls) if matmuls else 0.0
    problems = {name: own_problems(name, result, median, slow) for name, result in results.items()}
    pairs = rates_between(results)
    for name in results:
        problems[name] += [("all-reduce", text) for text in shared_problems(name, results, pairs, slow, max_clock_s)]
    return problems


def suspicious_pairs(problems: Mapping[str, Sequence[object]], results: Results) -> list[str]:
    """Exchanges that failed between two nodes of which neither is known to be bad."""
    failed = {pair for pair, rate in rates_between(results).items() if rate <= 0}
    return [" and ".join(sorted(pair)) for pair in failed if not any(problems[name] for name in pair)]


def judge(folder: Path, names: Sequence[str], slow: float, max_clock_s: float) -> int:
    """Print a line per node, write the files `good` and `bad`; 2 where every node has the same problem with the data, 3 with the disk."""
    results = read_results(folder, names)
    problems = verdict(results, slow, max_clock_s)
    for name in names:
        facts = (results[name] or {}).get("facts", {})
        rates = [found["rate"] for found in (results[name] or {}).get("neighbours", {}).values() if "rate" in found]
        shown = f"{count(facts.get('matmul', 0.0))}FLOP/s  {size(max(rates, default=0.0))}/s to a neighbour  {facts.get('seconds', 0.0):.1f} s"
        print(
            f"node check: {name}  {'bad: ' + '; '.join(text for _, text in problems[name]) if problems[name] else 'good  ' + shown}"
        )
    for pair in suspicious_pairs(problems, results):
        print(f"node check: warning: the all-reduce between {pair} failed, and neither can be told to be at fault")
    bad = [name for name in names if problems[name]]
    for check, code in (("data", 2), ("disk", 3)):
        if all(any(kind == check for kind, _ in problems[name]) for name in names):
            print(
                f"error: the {check} is wrong on every node: {next(text for kind, text in problems[names[0]] if kind == check)}"
            )
            return code
    write_atomic(folder / "bad", "".join(f"{name}\n" for name in bad))
    write_atomic(folder / "good", "".join(f"{name}\n" for name in names if name not in bad))
    return 0
