"""What failures and checkpoints cost a planned run, and the `--save-every` to choose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from allinone.common.formatting import duration, size
from allinone.engine import ds_config
from allinone.engine.planning.failures import (
    Interval,
    Reliability,
    checkpoint_bytes,
    interval,
    intervals,
)
from allinone.engine.planning.memory import Zero
from allinone.tools.planning.train_plan import Plan

SHOWN = 2
"""Intervals that the table shows on each side of the best one."""


@dataclass(frozen=True)
class FailurePlan:
    """Failures, checkpoints and lost time of a planned run."""

    checkpoint_bytes: int
    save_s: float
    """Seconds of a checkpoint, during which training waits."""
    between_failures_h: float
    """Mean hours between failures of the run."""
    failures: float
    """Expected number of failures."""
    restart_s: float
    """Seconds from a failure to the next step."""
    run_s: float
    """The run without failures and checkpoints, seconds."""
    given: Interval
    """With the recipe's --save-every."""
    intervals: list[Interval]
    """Shortest first."""

    @property
    def best(self) -> Interval:
        """The one that loses least; the longest of those within 0.05 % of the run."""
        least = min(each.lost_share for each in self.intervals)
        return [each for each in self.intervals if each.lost_share < least + 5e-4][-1]


def plan_failures(plan: Plan, save_every: int, cluster: Reliability) -> FailurePlan:
    """Expected cost of failures and checkpoints for the chosen configuration.

    Args:
        plan: The plan.
        save_every: The recipe's steps between two checkpoints.
        cluster: How often runs fail, and how fast a checkpoint is written.
    """
    zero = Zero.from_config(ds_config.load(plan.chosen.ds_config))
    stored = checkpoint_bytes(zero, plan.parameters)
    save_s, between_s = stored / cluster.write_rate, cluster.between_failures_s(plan.gpus)
    step_s = float(plan.outcome(plan.mode)["step_s"])
    costs = (step_s, save_s, cluster.restart_s, between_s)
    run_s = plan.steps * step_s
    given = interval(min(save_every, plan.steps), *costs)
    return FailurePlan(
        checkpoint_bytes=stored,
        save_s=save_s,
        between_failures_h=between_s / 3600,
        failures=run_s * (1 + given.lost_share) / between_s,
        restart_s=cluster.restart_s,
        run_s=run_s,
        given=given,
        intervals=intervals(plan.steps, *costs),
    )


def failure_text(plan: FailurePlan, table: Callable[[Sequence[Sequence[str]]], str]) -> str:
    """The expected failures in a sentence, and a table of intervals.

    Args:
        plan: The plan.
        table: Formats rows; the first one holds the titles.
    """
    best, given = plan.best, plan.given
    head = (
        f"failures: one in {duration(3600 * plan.between_failures_h)}, {plan.failures:.2g} expected"
        f" in the run; {duration(plan.restart_s)} until it trains again; a checkpoint has"
        f" {size(plan.checkpoint_bytes)} and takes {duration(plan.save_s)} (all assumed, see"
        f" --failure-gpu-hours, --restart-s, --write-gb-per-s)"
    )
    number = plan.intervals.index(best)
    shown = plan.intervals[max(0, number - SHOWN) : number + SHOWN + 1]
    shown += [given] * (given.steps not in {each.steps for each in shown})
    rows = [["--save-every", "every", "writing", "lost by failures", "in all", "hours lost"]]
    for each in sorted(shown, key=lambda found: found.steps):
        shares = (each.saving_share, each.failure_share, each.lost_share)
        mark = " *" * (each is best) + " (recipe)" * (each.steps == given.steps)
        rows.append(
            [
                f"{each.steps:,}{mark}",
                duration(each.seconds),
                *(f"{100 * share:.2f} %" for share in shares),
                f"{plan.run_s * each.lost_share / 3600:.2f}",
            ]
        )
    return f"{head}\n\n{table(rows)}"
