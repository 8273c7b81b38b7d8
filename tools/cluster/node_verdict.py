"""Decides from the results of all nodes which nodes are bad (tools/node_check.py judge).

Standard library only, Python >= 3.9: this runs on the host.
"""

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

if TYPE_CHECKING:  # Python 3.9 on the host cannot evaluate this
    Results = Mapping[str, Mapping[str, Any] | None]
    """Result of each node; None if it wrote none."""


EXCHANGE = re.compile(r"the all-reduce with (.+)")
"""`doing` of a node during the exchange with a neighbour."""


def read_results(folder: Path, names: Sequence[str]) -> dict[str, dict[str, Any] | None]:
    """Read the result of each node. An exchange that was cut off counts as failed."""
    paths = {name: folder / f"{name}.json" for name in names}
    results = {
        name: json.loads(path.read_text()) if path.exists() else None
        for name, path in paths.items()
    }
    for result in results.values():
        partner = EXCHANGE.fullmatch((result or {}).get("doing") or "")
        if result and partner:
            result["neighbours"][partner[1]] = {"error": "did not end"}
    return results


def rates_between(results: Results) -> dict[frozenset[str], float]:
    """Bytes per second between neighbours; 0 if the exchange failed for one of the two."""
    pairs: dict[frozenset[str], float] = {}
    # the smaller of the two ends' rates: one end may see an error that the other does not
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
"""Facts that are compared with the median of all nodes (more is better): the words before the
number, and its format."""


def medians(results: Results) -> dict[str, float]:
    """Median over the nodes of each measured rate."""
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
    result: Mapping[str, Any] | None, median: Mapping[str, float], slow: float
) -> list[tuple[str, str]]:
    """Find the problems of a node in its own result.

    Args:
        result: Its result.
        median: Median of each rate over all nodes.
        slow: Share of the median below which a rate is too low.

    Returns:
        (check, problem) for each.
    """
    if result is None:
        return [("start", "did not start the check")]
    problems = [(check, text) for check, text in result["problems"]]
    # an exchange that did not end is judged with the partner's, in `exchange_problems`
    if result["doing"] and "all-reduce with" not in result["doing"]:
        problems.append(("hang", f"did not finish {result['doing']}"))
    for fact, (words, show) in RATES.items():
        rate = result["facts"].get(fact)
        if rate is not None and rate < slow * median[fact]:
            problems.append(
                (fact, f"{words} {show(rate)}, the median of all is {show(median[fact])}")
            )
    return problems


def exchange_problems(name: str, pairs: Mapping[frozenset[str], float], slow: float) -> list[str]:
    """Find out whether a node is at fault in the exchanges with its neighbours.

    Args:
        name: The node.
        pairs: Rates of all exchanges.
        slow: Share of the median rate below which an exchange is slow.

    Returns:
        A problem if the exchanges with both neighbours fail or are slow while at least one of the
        neighbours does well with another node.
    """
    mine = {next(iter(pair - {name})): rate for pair, rate in pairs.items() if name in pair}
    # the median, not the mean: one dead link of two nodes must not lower the limit for all
    limit = slow * statistics.median(pairs.values()) if pairs else 0.0
    if len(mine) < 2 or any(rate > 0 and rate >= limit for rate in mine.values()):
        return []
    # a neighbour that is slow with everybody is itself at fault, and proves nothing about this node
    best_elsewhere = max(
        max((r for p, r in pairs.items() if other in p and name not in p), default=0.0)
        for other in mine
    )
    if best_elsewhere <= 0 or best_elsewhere < limit:
        return []
    shown = ", ".join(
        f"{other}: {size(rate)}/s" if rate else f"{other}: failed"
        for other, rate in sorted(mine.items())
    )
    return [f"all-reduce with both neighbours fails or is slow ({shown})"]


def clock_problems(name: str, results: Results, max_clock_s: float) -> list[str]:
    """Compare a node's clock with those of its neighbours.

    Args:
        name: The node.
        results: Results of all nodes.
        max_clock_s: Largest difference, seconds.

    Returns:
        One problem if the clock differs from those of both neighbours by more; with one neighbour
        it cannot be decided whose clock is wrong.
    """
    neighbours = (results[name] or {}).get("neighbours", {})
    clocks = [found["clock_s"] for found in neighbours.values() if "clock_s" in found]
    if len(clocks) < 2 or any(abs(clock) <= max_clock_s for clock in clocks):
        return []
    return [f"its clock differs from both neighbours' by {statistics.mean(clocks):+.1f} s"]


def verdict(results: Results, slow: float, max_clock_s: float) -> dict[str, list[tuple[str, str]]]:
    """Find the problems of every node.

    Args:
        results: Results of all nodes.
        slow: Share of the median rate below which a node or an exchange is slow.
        max_clock_s: Largest difference of two clocks, seconds.

    Returns:
        (check, problem) of each node; none for a good node.
    """
    median = medians(results)
    pairs = rates_between(results)
    problems = {}
    for name, result in results.items():
        shared = exchange_problems(name, pairs, slow)
        shared += clock_problems(name, results, max_clock_s)
        own = own_problems(result, median, slow)
        problems[name] = own + [("all-reduce", text) for text in shared]
    return problems


def suspicious_pairs(problems: Mapping[str, Sequence[object]], results: Results) -> dict[str, str]:
    """Failed exchanges of two nodes of which neither is known to be bad, with an error message."""
    failed = [sorted(pair) for pair, rate in rates_between(results).items() if rate <= 0]
    return {
        f"{a} and {b}": _exchange_error(results, a, b)
        for a, b in sorted(failed)
        if not problems[a] and not problems[b]
    }


def _exchange_error(results: Results, a: str, b: str) -> str:
    errors = [
        (results[one] or {}).get("neighbours", {}).get(other, {}).get("error")
        for one, other in ((a, b), (b, a))
    ]
    return next((text for text in errors if text), "one of them reported nothing")


def judge(folder: Path, names: Sequence[str], slow: float, max_clock_s: float) -> int:
    """Print one line per node and write the files `good` and `bad`.

    Args:
        folder: Where the nodes wrote their results.
        names: All nodes.
        slow: Share of the median rate below which a node is bad.
        max_clock_s: Largest difference of two clocks, seconds.

    Returns:
        0 with the files written. Without them, because the nodes are not to blame: 2 if the data
        and 3 if the disk is wrong on every node, 1 if more than half are bad.
    """
    results = read_results(folder, names)
    problems = verdict(results, slow, max_clock_s)
    for number, name in enumerate(names):
        if problems[name]:
            last = _last_words(folder / f"node-{number}.log")
            shown = f"bad: {'; '.join(text for _, text in problems[name])}{last}"
        else:
            shown = _good(results[name] or {"facts": {}, "neighbours": {}})
        print(f"node check: {name}  {shown}")
    for pair, error in suspicious_pairs(problems, results).items():
        print(
            f"node check: warning: the all-reduce between {pair} failed, and it cannot be decided"
            f" which of them is at fault: {error}"
        )
    code = _common_fault(problems)
    if code:
        return code
    write_atomic(folder / "bad", "".join(f"{name}\n" for name in names if problems[name]))
    write_atomic(folder / "good", "".join(f"{name}\n" for name in names if not problems[name]))
    return 0


def _good(result: Mapping[str, Any]) -> str:
    """The measurements of a good node."""
    rates = [found["rate"] for found in result["neighbours"].values() if "rate" in found]
    neighbour = f"  {size(max(rates))}/s to a neighbour" if rates else ""
    facts = result["facts"]
    flops, seconds = count(facts.get("matmul", 0.0)), facts.get("seconds", math.nan)
    return f"good  {flops}FLOP/s{neighbour}  {seconds:.1f} s"


def _common_fault(problems: Mapping[str, Sequence[tuple[str, str]]]) -> int:
    """Print a fault that is not due to single nodes; returns its exit code, 0 if there is none."""

    def everywhere(check: str) -> bool:
        """Whether every node has this problem."""
        return all(any(kind == check for kind, _ in found) for found in problems.values())

    if everywhere("start"):
        print(
            "error: the check started on no node; this does not show bad nodes, see srun's"
            " messages above"
        )
        return 1
    for check, code in (("data", 2), ("disk", 3)):
        if everywhere(check):
            text = next(text for kind, text in next(iter(problems.values())) if kind == check)
            print(f"error: the {check} is wrong on every node: {text}")
            return code
    bad = sum(bool(found) for found in problems.values())
    if bad > max(1, len(problems) // 2):
        print(
            f"error: {bad} of {len(problems)} nodes failed the check; the cause is probably not in"
            " single nodes, so none is left out"
        )
        return 1
    return 0


def _last_words(log: Path) -> str:
    """The last line that a node's check printed, which shows why it ended early."""
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f" (its last words: {last[:200]})" if last else ""
