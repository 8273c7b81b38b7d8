#!/usr/bin/env python3
"""Do all layouts compute the same, and do checkpoints move between all of them?

`python tests/benchmarks/equality_matrix.py [--moves N]` trains a very small All-in-one (dropout and
stochastic depth on, fp32) for 6 steps at every {ZeRO 0, 1, 2, 3} x {tensor parallel 1, 2} x {1, 2,
4 ranks} that exists, and prints the largest difference of losses, gradient norms and weights to
ZeRO 0 on one rank. Then it continues checkpoints of step 3 at other layouts and prints the largest
difference of the losses and weights to the uninterrupted run. About 3 s per run on 2 cores. Exit
code 1 if any difference is above 1e-5.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from safetensors.torch import load_file
from torch import Tensor

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
class Place:
    """One cell of the matrix."""

    stage: int
    tensor: int
    world: int
    precision: str = "fp32"
    offload: str = ""
    """cpu or nothing."""

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


PLACES = [Place(s, t, w) for t in (1, 2) for w in (1, 2, 4) if w >= t for s in range(4)]


@dataclass(frozen=True)
class Trace:
    """What a run computed."""

    losses: list[float]
    norms: list[float]
    digests: list[int]
    weights: dict[str, Tensor]

    def differences(self, other: Trace) -> tuple[float, float, float]:
        """Largest difference of losses, of gradient norms (relative), and of weights."""
        assert self.digests == other.digests, "other clips were trained on"
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


def train(server: RankServer, out: Path, place: Place) -> str:
    codes, output = server.run(out, place.world, **place.options())
    if any(codes):
        raise RuntimeError(f"{place} in {out} ended with {codes}:\n{output[-3000:]}")
    return output


def move(server: RankServer, source: Path, out: Path, place: Place) -> str:
    """Continue a copy of a run from its checkpoint of step CUT at another layout."""
    shutil.copytree(source, out)
    shutil.rmtree(out / "checkpoints" / f"step-{STEPS:08d}")
    return train(server, out, place)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--moves",
        type=int,
        default=10_000,
        help="layouts that each checkpoint moves to (default: all)",
    )
    args = parser.parse_args()
    worst, start = 0.0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        root, server = Path(folder), RankServer()
        for place in PLACES:
            train(server, root / str(place), place)
        whole = trace(root / str(PLACES[0]))
        print(
            f"against {PLACES[0]}, largest difference over {STEPS} steps:\n{'':16}      loss  grad"
            " norm    weights"
        )
        for place in PLACES[1:]:
            found = trace(root / str(place)).differences(whole)
            worst = max(worst, *found)
            print(f"{place!s:16}{''.join(f'{value:11.1e}' for value in found)}", flush=True)
        print(
            f"\ncheckpoints of step {CUT} (rows) continued at another layout (columns): largest"
            " difference of loss and weight, in 1e-7"
        )
        print(
            f"{'':16}"
            + "".join(f"{place.stage}/{place.tensor}/{place.world}".rjust(7) for place in PLACES)
            + "   ZeRO/TP/ranks"
        )
        for number, source in enumerate(PLACES):
            cells = []
            for distance in range(len(PLACES)):
                target = PLACES[distance]
                if (distance - number) % len(PLACES) > args.moves:
                    cells.append("")
                    continue
                move(server, root / str(source), root / "moved", target)
                losses, _, weights = trace(root / "moved").differences(whole)
                worst = max(worst, losses, weights)
                cells.append(f"{max(losses, weights) * 1e7:.0f}")
                shutil.rmtree(root / "moved")
            print(f"{source!s:16}" + "".join(cell.rjust(7) for cell in cells), flush=True)
        server.close()
    print(f"worst {worst:.1e}, {time.monotonic() - start:.0f} s")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
