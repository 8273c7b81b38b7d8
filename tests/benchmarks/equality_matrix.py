#!/usr/bin/env python3
"""Compare training at all parallel layouts, and checkpoints moved between them.

    python tests/benchmarks/equality_matrix.py [--moves N]

Trains a very small All-in-one (with dropout and stochastic depth, in fp32) for 6 steps at each
{ZeRO 0, 1, 2, 3} x {tensor parallel 1, 2} x {1, 2, 4 ranks} that exists, and prints the largest
difference of losses, gradient norms and weights from ZeRO 0 on one rank. Then continues checkpoints
of step 3 at other layouts and prints the largest difference of losses and weights from the
uninterrupted run. About 3 s per run on 2 cores. Exit code 1 if a difference exceeds 1e-5.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from safetensors.torch import load_file
from torch import Tensor

from allinone.common.command_line import parse, run_command
from allinone.common.validation import NOT_NEGATIVE, require
from tests.engine.ranks import RankServer

STEPS, CUT = 6, 3
TOLERANCE = 1e-5
OPTIONS = {
    "steps": STEPS,
    "save_every": CUT,
    "keep_last": 9,
    "lr": 1e-3,
    "global_batch": 8,
    "micro_batch": 2,
    "warmup": 0.5,
}


@dataclass(frozen=True)
class Cell:
    """One parallel layout of the matrix."""

    stage: int
    tensor: int
    world: int
    precision: str = "fp32"
    offload: str = ""
    """"cpu", or "" for none."""

    def __str__(self) -> str:
        return f"zero{self.stage}-tp{self.tensor}-w{self.world}" + (
            f"-{self.offload}" if self.offload else ""
        )

    def options(self) -> dict[str, object]:
        offload = f"_offload_{self.offload}" if self.offload else ""
        return {
            **OPTIONS,
            "ds_config": f"zero{self.stage}{offload}_{self.precision}",
            "tensor_parallel": self.tensor,
        }


CELLS = [Cell(s, t, w) for t in (1, 2) for w in (1, 2, 4) if w >= t for s in range(4)]


@dataclass(frozen=True)
class Trace:
    """Numbers that a run computed."""

    losses: list[float]
    norms: list[float]
    digests: list[int]
    weights: dict[str, Tensor]

    def differences(self, other: Trace) -> tuple[float, float, float]:
        """Largest differences of losses, gradient norms (relative) and weights."""
        assert self.digests == other.digests, "the runs trained on different clips"
        assert self.weights.keys() == other.weights.keys()
        losses = max(abs(a - b) for a, b in zip(self.losses, other.losses, strict=True))
        norms = max(abs(a - b) / b for a, b in zip(self.norms, other.norms, strict=True))
        weights = max(
            (self.weights[name] - other.weights[name]).abs().max().item() for name in other.weights
        )
        return losses, norms, weights


def trace(out: Path, step: int = STEPS) -> Trace:
    rows = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "metrics" in row]
    assert [row["step"] for row in rows] == list(range(1, step + 1))
    return Trace(
        [row["metrics"]["fit_loss"] for row in rows],
        [row["grad_norm"] for row in rows],
        [row["digest"] for row in rows],
        load_file(out / "checkpoints" / f"step-{step:08d}" / "weights" / "model.safetensors"),
    )


def train(server: RankServer, out: Path, cell: Cell) -> str:
    codes, output = server.run(out, cell.world, **cell.options())
    if any(codes):
        raise RuntimeError(f"{cell} in {out} ended with {codes}:\n{output[-3000:]}")
    return output


def move(server: RankServer, source: Path, out: Path, cell: Cell) -> str:
    """Continue a copy of a run from its checkpoint of step CUT at another layout."""
    shutil.copytree(source, out)
    shutil.rmtree(out / "checkpoints" / f"step-{STEPS:08d}")
    return train(server, out, cell)


@dataclass(frozen=True)
class MatrixOptions:
    """What to compare."""

    moves: int = len(CELLS)
    """Layouts to which each checkpoint is moved; by default all."""

    def __post_init__(self) -> None:
        require(self, NOT_NEGATIVE, ("moves",))


def compare_layouts(server: RankServer, root: Path) -> float:
    """Train at every layout, print the differences, return the largest one."""
    for cell in CELLS:
        train(server, root / str(cell), cell)
    reference = trace(root / str(CELLS[0]))
    print(f"differences from {CELLS[0]}, maximum over {STEPS} steps:")
    print(f"{'':16}      loss  grad norm    weights")
    worst = 0.0
    for cell in CELLS[1:]:
        found = trace(root / str(cell)).differences(reference)
        worst = max(worst, *found)
        print(f"{cell!s:16}{''.join(f'{value:11.1e}' for value in found)}", flush=True)
    return worst


def compare_moves(server: RankServer, root: Path, moves: int) -> float:
    """Continue the checkpoints at other layouts, print the differences, return the largest one."""
    reference = trace(root / str(CELLS[0]))
    print(f"\ncheckpoints of step {CUT} (rows) continued at another layout (columns):")
    print("maximum difference of losses and weights, in 1e-7")
    titles = [f"{cell.stage}/{cell.tensor}/{cell.world}".rjust(7) for cell in CELLS]
    print(f"{'':16}{''.join(titles)}   ZeRO/TP/ranks")
    worst = 0.0
    for number, source in enumerate(CELLS):
        row = ""
        for column, target in enumerate(CELLS):
            if (column - number) % len(CELLS) > moves:
                row += " " * 7
                continue
            move(server, root / str(source), root / "moved", target)
            losses, _, weights = trace(root / "moved").differences(reference)
            worst = max(worst, losses, weights)
            row += f"{max(losses, weights) * 1e7:.0f}".rjust(7)
            shutil.rmtree(root / "moved")
        print(f"{source!s:16}{row}", flush=True)
    return worst


def benchmark(options: MatrixOptions) -> int:
    """Run both comparisons; returns the exit code."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        server = RankServer()
        worst = compare_layouts(server, Path(folder))
        worst = max(worst, compare_moves(server, Path(folder), options.moves))
        server.close()
    print(f"maximum {worst:.1e}, {time.monotonic() - start:.0f} s")
    return int(worst > TOLERANCE)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    prog = "tests/benchmarks/equality_matrix.py"
    return run_command(
        lambda: benchmark(parse(MatrixOptions, arguments, prog=prog, description=__doc__ or ""))
    )


if __name__ == "__main__":
    sys.exit(main())
