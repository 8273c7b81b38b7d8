"""Time that failures and checkpoints cost a run, by checkpoint interval.

Failures are assumed to be independent and at a constant rate, so that the time between them is
exponential. The expected time of a run is then Daly's (A higher order estimate of the optimum
checkpoint interval, Future Generation Computer Systems 22, 2006, equation 13).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from allinone.engine.planning.memory import Zero

MASTER_AND_MOMENTS = 12
"""Bytes per parameter in the optimizer state's files, whatever the ZeRO stage."""
PUBLISHED = 4
"""Bytes per parameter of weights/model.safetensors, fp32."""
ROUND = (1, 2, 5)
"""First digits of the proposed intervals."""


@dataclass(frozen=True)
class Reliability:
    """How often runs fail on a cluster, and how fast it writes and restarts."""

    gpu_hours: float
    """Mean GPU-hours between failures that end all ranks. Llama 3 had 54 days x 16,384 H100 / 419
    unexpected interruptions = 50,676 (The Llama 3 Herd of Models, arXiv 2407.21783, table 5)."""
    restart_s: float
    """From a failure to the next training step, seconds."""
    write_rate: float
    """Bytes per second of a checkpoint, over all ranks."""

    def between_failures_s(self, gpus: int) -> float:
        """Mean time between failures of a run, seconds."""
        return 3600 * self.gpu_hours / gpus


@dataclass(frozen=True)
class Interval:
    """A run with one checkpoint interval."""

    steps: int
    """--save-every."""
    seconds: float
    """Training time between two checkpoints."""
    saving_share: float
    """Time spent on writing checkpoints, relative to the undisturbed training."""
    failure_share: float
    """Time that is lost by failures: repeated steps and restarts, relative to the same."""

    @property
    def lost_share(self) -> float:
        """Both, relative to the undisturbed training."""
        return self.saving_share + self.failure_share


def checkpoint_bytes(zero: Zero, parameters: int) -> int:
    """Size of a checkpoint: the optimizer state, DeepSpeed's weights and the published weights.

    Args:
        zero: DeepSpeed configuration.
        parameters: Number of parameters.
    """
    # without ZeRO, fp32 weights are their own masters
    masters = 4 if zero.stage == 0 and zero.element == 4 else 0
    weights = zero.element if zero.stage < 3 else 0  # stage 3 stores masters only
    return (MASTER_AND_MOMENTS - masters + weights + PUBLISHED) * parameters


def interval(
    steps: int, step_s: float, save_s: float, restart_s: float, between_s: float
) -> Interval:
    """Expected cost of saving every `steps` steps.

    Args:
        steps: Steps between two checkpoints.
        step_s: Seconds of a step.
        save_s: Seconds of a checkpoint, during which training waits.
        restart_s: Seconds from a failure to the next step.
        between_s: Mean seconds between failures.
    """
    seconds = steps * step_s
    # expm1: the exponent is small, its rounding would be the result
    expected = between_s * math.exp(restart_s / between_s)
    expected *= math.expm1((seconds + save_s) / between_s)
    saving = save_s / seconds
    return Interval(steps, seconds, saving, expected / seconds - 1 - saving)


def intervals(
    total_steps: int, step_s: float, save_s: float, restart_s: float, between_s: float
) -> list[Interval]:
    """Intervals of 1, 2 and 5 times a power of ten up to the complete run, shortest first.

    The one with the least `lost_share` is the one to propose.

    Args:
        total_steps: Steps of the run.
        step_s: Seconds of a step.
        save_s: Seconds of a checkpoint.
        restart_s: Seconds from a failure to the next step.
        between_s: Mean seconds between failures.
    """
    digits = range(int(math.log10(total_steps)) + 1)
    steps = [first * 10**power for power in digits for first in ROUND]
    found = []
    for each in steps:
        # beyond ten failures per interval, no run would be planned like this
        if each <= total_steps and each * step_s <= 10 * between_s:
            found.append(interval(each, step_s, save_s, restart_s, between_s))
    return found
