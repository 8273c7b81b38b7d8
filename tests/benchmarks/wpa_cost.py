#!/usr/bin/env python3
"""Cost of word-patch alignment: its share of a step's FLOPs and bytes, and its time next to the
joint pass, measured in the same run.

    python tests/benchmarks/wpa_cost.py [--size base] [--micro-batch 2] [--repeats 5]

FLOPs and bytes are the planner's, for MLM + VTM + 0.1 WPA in the precision of --element. Times are
medians of forward and backward in float32: of one joint pass with the VTM head, and of the distance
between random features of the same shape. On a GPU the iterations of the plan are compiled, and the
time without compilation is printed too. Exit code 1 if the distance takes 5 % of the joint pass or
more.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

from allinone.common.command_line import parse, run_command
from allinone.common.formatting import count, size
from allinone.model import AllInOneConfig, AllInOneForPreTraining
from allinone.pretrain.cost import masked_tokens, model_activations, sample_flops
from allinone.pretrain.objectives import ObjectiveConfig, optimal_transport

LIMIT = 0.05
OBJECTIVE = ObjectiveConfig(wpa=0.1)


@dataclass(frozen=True)
class CostOptions:
    """Options of the measurement."""

    size: str = "base"
    """Model size, a key of model.SIZES."""
    micro_batch: int = 2
    """Clips of the micro-batch."""
    repeats: int = 5
    """Measured repetitions, after one that warms up."""
    element: int = 2
    """Bytes of an activation in the planned memory; 2 is bf16."""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    options = parse(CostOptions, sys.argv[1:] if argv is None else argv, prog="wpa_cost.py")
    return run_command(lambda: measure(options))


def measure(options: CostOptions) -> int:
    """Print the planned and the measured cost; returns the exit code."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = AllInOneConfig.from_size(options.size)
    print_plan(config, options)
    joint = time_joint_pass(config, options, device)
    distance = time_distance(config, options, device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(
        f"{where}, {torch.get_num_threads()} threads, {options.micro_batch} clips, float32, forward"
        f" and backward: joint pass {1000 * joint:,.1f} ms, distance {1000 * distance:,.1f} ms ="
        f" {100 * distance / joint:.2f} % of it"
    )
    if device.type == "cuda":
        optimal_transport._compiled_iterations = optimal_transport.proximal_iterations  # type: ignore[assignment]
        print(f"distance uncompiled: {1000 * time_distance(config, options, device):,.1f} ms")
    return 1 if distance >= LIMIT * joint else 0


def print_plan(config: AllInOneConfig, options: CostOptions) -> None:
    """FLOPs of a clip's training step and saved bytes of a micro-batch, by the planner."""
    flops = sample_flops(config, OBJECTIVE, config.num_frames, masked_tokens(config))
    share = flops["wpa"] / sum(flops.values())
    print(
        f"{options.size}, {config.num_frames} frames, {config.max_text_len} tokens: WPA"
        f" {count(flops['wpa'])}FLOPs of {count(sum(flops.values()))}FLOPs per clip and step ="
        f" {100 * share:.3f} %"
    )
    kept = [
        model_activations(config, objective, options.micro_batch, options.element, 1).total
        for objective in (OBJECTIVE, ObjectiveConfig())
    ]
    print(
        f"{options.micro_batch} clips: it keeps {size(kept[0] - kept[1])} of {size(kept[0])} ="
        f" {100 * (1 - kept[1] / kept[0]):.2f} %"
    )


def time_joint_pass(config: AllInOneConfig, options: CostOptions, device: torch.device) -> float:
    """Seconds of forward and backward of the joint pass and the VTM head."""
    model = AllInOneForPreTraining(config).to(device)
    clips, length = options.micro_batch, config.max_text_len
    pixels = torch.randn(
        clips, config.num_frames, 3, config.image_size, config.image_size, device=device
    )
    ids = torch.randint(5, config.vocab_size, (clips, length), device=device)

    def step() -> None:
        model.vtm_head(model(pixels, ids, torch.ones_like(ids)).pooled).sum().backward()

    return median_seconds(step, options.repeats)


def time_distance(config: AllInOneConfig, options: CostOptions, device: torch.device) -> float:
    """Seconds of forward and backward of the distance."""
    clips, length = options.micro_batch, config.max_text_len
    text = torch.randn(clips, length, config.hidden_size, device=device, requires_grad=True)
    video = torch.randn(
        clips, 1 + config.num_patches, config.hidden_size, device=device, requires_grad=True
    )
    mask = torch.ones(clips, length, dtype=torch.long, device=device)

    def step() -> None:
        optimal_transport.word_patch_distance(text, video, mask).sum().backward()

    return median_seconds(step, options.repeats)


def median_seconds(step: Callable[[], None], repeats: int) -> float:
    """Median seconds of a step after one that warms up."""

    def timed() -> float:
        start = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start

    timed()
    return statistics.median(timed() for _ in range(repeats))


if __name__ == "__main__":
    sys.exit(main())
