#!/usr/bin/env python3
"""Counts a training step and predicts its time on an A100 and an H100; writes docs/performance.md's
tables.

    python tests/benchmarks/step_counts.py [RECIPE] [options of the recipe]

"one graph": if embeddings, heads and losses were compiled together with the blocks.

Nothing is measured: the operations are those of the step's own code on tensors without data, and
engine/planning/step_time.py turns them into time.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from allinone.common.tables import markdown_table
from allinone.engine.planning.hardware import DEVICES, NETWORKS, usual_network
from allinone.engine.planning.operations import KINDS, totals
from allinone.pretrain.step_counts import Mode, StepPasses
from allinone.pretrain.train import parse
from allinone.tools.planning.train_plan import make_plan

GPUS = 128
SHOWN = ("a100-80g", "h100-80g")


def main(argv: Sequence[str] | None = None) -> int:
    """Print both tables; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv) or ["webvid-howto"]
    config, _ = parse(words, prog="step_counts.py")
    plans = [
        make_plan(words[0], config, GPUS, DEVICES[name], NETWORKS[usual_network(name)])
        for name in SHOWN
    ]
    chosen = plans[0].chosen
    rows = [["predicted ms per step → MFU", *SHOWN]]
    for mode in plans[0].by_mode:
        found = [plan.by_mode[mode] for plan in plans]
        rows.append(
            [mode, *(f"{1e3 * each.step_s:.0f} → {100 * each.mfu:.0f} %" for each in found)]
        )
    for part in chosen.bounds:
        cells = [
            " / ".join(f"{1e3 * each.bounds[part]:.1f}" for each in plan.by_mode.values())
            for plan in plans
        ]
        rows.append([f"of it {part}, eager / compiled", *cells])
    print(f"{' '.join(words)}, {chosen.ds_config}, micro-batch {chosen.micro_batch}, {GPUS} GPUs\n")
    print(markdown_table(rows))
    step = StepPasses(config, "bf16", flash=True).video()
    modes: tuple[Mode, ...] = ("eager", "compiled", "everything")
    found = [totals(step.operations(chosen.micro_batch, mode)) for mode in modes]
    names = ("eager", "compiled", "one graph")
    rows = [["kernels", "TFLOP"]]
    rows[0] += [f"{what} {name}" for what in ("GB", "launches") for name in names]
    for kind in KINDS:
        each = [counts[kind] for counts in found]
        rows.append(
            [kind, f"{each[0].flops / 1e12:.2f}"]
            + [f"{one.bytes / 1e9:.1f}" for one in each]
            + [f"{one.launches:.0f}" for one in each]
        )
    print(f"\n{markdown_table(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
