"""How much memory a rank needs for weights, gradients and optimizer, by DeepSpeed's ZeRO stage. Activations come on top.

P parameters, N ranks, b bucket elements. The 16-bit rows were fitted on the heap at N = 1, 2, 4 and predicted N = 6 within 4.4 %; the
fp32 rows on resident memory at N = 1 with P = 40 M, to within 1.5 bytes per parameter. ZeRO 3 in fp32 was not measured in that way and
has no row.
"""

from __future__ import annotations

from dataclasses import dataclass

LIVE_PARAMETERS = 50_000_000
"""Elements of parameters that ZeRO 3 holds gathered or prefetched at a time: its prefetch bucket in ds_configs/."""


@dataclass(frozen=True)
class Memory:
    """Bytes per rank."""

    between_steps: float
    backward: float
    """Peak in the backward pass, without activations."""
    update: float
    """Peak in the optimizer step."""

    @property
    def peak(self) -> float:
        """The larger peak; activations are gone by the time of the update."""
        return max(self.backward, self.update)


def memory_per_rank(parameters: int, world: int, stage: int, precision: str, bucket: int = 50_000_000) -> Memory | None:
    """Model state of one rank; None where the model has no row. `precision` is fp32, bf16 or fp16."""
    p, n, b = float(parameters), float(world), float(bucket)
    if precision == "fp32":
        return {
            0: Memory(12 * p, 20 * p, 16 * p),
            1: Memory(4 * p + 12 * p / n, 8 * p + 12 * p / n + 4 * b, 4 * p + 20 * p / n),
            2: Memory(4 * p + 12 * p / n, 4 * p + 16 * p / n + 4 * b, 4 * p + 24 * p / n),
        }.get(stage)
    return {
        0: Memory(14 * p, 18 * p, 20 * p),
        1: Memory(2 * p + 12 * p / n, 4 * p + 14 * p / n, 2 * p + 24 * p / n),
        2: Memory(2 * p + 12 * p / n, 2 * p + 14 * p / n + 4 * b, 2 * p + 24 * p / n),
        3: Memory(16 * p / n + 2 * b, 16 * p / n + 6 * b + 2 * min(2.0 * LIVE_PARAMETERS, p), 28 * p / n + 2 * b),
    }.get(stage)
