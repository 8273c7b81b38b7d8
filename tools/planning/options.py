"""Options of tools/plan.py, read before torch is imported."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from allinone.common.command_line import options_of
from allinone.common.errors import InputError
from allinone.common.validation import COUNT, POSITIVE, Bounds, require

OWN_WORDS = ("help", "version", "print-config")
"""Flags that every command has."""


@dataclass(frozen=True)
class ModelPlan:
    """Parameters and operations of every model size."""

    frames: int = 3
    """Frames per clip; the paper's 3."""
    image_size: int | None = None
    """Height and width of a frame, pixels; None uses the size's own."""
    text_tokens: int | None = None
    """Text tokens; None uses 32, which reproduces the paper's number, or 16 for nano."""
    json: bool = False
    """Print one JSON object."""
    markdown: bool = False
    """Print Markdown tables."""

    def __post_init__(self) -> None:
        require(self, COUNT, ("frames", "image_size", "text_tokens"))
        _refuse_both(self.json, self.markdown)


@dataclass(frozen=True)
class DataPlan:
    """Whether prepared data can be loaded as fast as a training consumes it."""

    data: Positional[str]
    """DIR[:SPLIT]; DIR was written by tools/prepare.py."""
    gpus: int
    """GPUs of the training."""
    samples_per_s: float
    """Clips per second of the training, over all GPUs."""
    gpus_per_node: int = 8
    """GPUs of a node."""
    cores: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """CPU cores of a node; by default those that this process may use."""
    storage_mb_per_s: float = 0.0
    """Read rate of a node from storage, MB/s; 0 ignores storage."""
    clips: int = 200
    """Clips to measure, chosen at random."""
    frames: int = 3
    """Frames per clip."""
    image_size: int = 224
    """Height and width of a frame, pixels."""
    geometry: Literal["crop", "squash"] = "crop"
    """How the training makes videos square; squash resizes more pixels of a wide frame."""
    augment: Literal["none", "randaug"] = "none"
    """Augmentation of the training."""
    json: bool = False
    """Print one JSON object."""

    def __post_init__(self) -> None:
        require(self, COUNT, ("gpus", "gpus_per_node", "cores", "clips", "frames", "image_size"))
        require(self, POSITIVE, ("samples_per_s",))
        require(self, Bounds(0), ("storage_mb_per_s",))


@dataclass(frozen=True)
class TrainPlan:
    """Memory, time and energy of a recipe, and the recommended configuration."""

    recipe: Positional[str]
    """Recipe of pretrain/train.py; flags that are not listed here are the recipe's."""
    gpus: int = 128
    """Number of GPUs; the paper's 128."""
    device: str = "a100-80g"
    """v100-32g, a100-40g, a100-80g, h100-80g, h100-pcie, h200-141g, b200, l40s, l4, a6000, a10, t4,
    rtx3090, rtx4090, rtx5090, or custom, described by the next three options."""
    memory_gb: float = 0.0
    """Memory of a custom device, GB."""
    tflops: float = 0.0
    """Dense bf16 rate of a custom device, TFLOP/s, with fp32 sums and without sparsity."""
    bandwidth: float = 0.0
    """Memory bandwidth of a custom device, GB/s."""
    gpus_per_node: int = 8
    """GPUs of a node."""
    gemm_share: float | None = None
    """Share of the peak rate that matrix products reach, in (0, 1], as `make gpu-check` measures
    it; None uses the device's: 0.70 on an A100, 0.62 on an H100, assumed."""
    measured: Path | None = None
    """gpu_report.json of `make gpu-check` on this kind of GPU: the shares of its peak rates that a
    training step reached, in place of the assumed ones."""
    network: str | None = None
    """ib-hdr, ib-ndr, ib-hdr-single, efa-400, efa-3200 or eth-100; None uses the device's usual
    network."""
    prepared: str | None = None
    """DIR[:SPLIT] written by tools/prepare.py: measure on this machine whether its clips can be
    loaded as fast as the training needs them."""
    cores: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """CPU cores of a node; by default those that this process may use."""
    pue: float = 1.2
    """Power usage effectiveness of the data centre, 1 to 10."""
    failure_gpu_hours: float = 50_000.0
    """Mean GPU-hours between failures that end a run, as on Llama 3's 16,384 H100 (50,676 there);
    take your cluster's own."""
    restart_s: float = 300.0
    """From a failure to the next training step, seconds; assumed."""
    write_gb_per_s: float = 1.0
    """Rate at which all ranks together write a checkpoint, GB/s; assumed."""
    picture: Path | None = None
    """Draw the scaling from 8 to 1,024 GPUs into this file (.png, .webp, .pdf or .svg)."""
    json: bool = False
    """Print one JSON object."""
    markdown: bool = False
    """Print Markdown tables."""

    def __post_init__(self) -> None:
        require(self, COUNT, ("gpus", "gpus_per_node", "cores"))
        require(self, Bounds(0, 1, above=True), ("gemm_share",))
        described = (self.memory_gb, self.tflops, self.bandwidth)
        if self.device == "custom":
            require(self, POSITIVE, ("memory_gb", "tflops", "bandwidth"))
        elif any(described):
            raise InputError(
                "--memory-gb, --tflops and --bandwidth describe --device custom, but --device is"
                f" {self.device}; leave them out, or give --device custom"
            )
        require(self, Bounds(1, 10), ("pue",))
        require(self, POSITIVE, ("failure_gpu_hours", "write_gb_per_s"))
        require(self, Bounds(0), ("restart_s",))
        _refuse_both(self.json, self.markdown)


def _refuse_both(json: bool, markdown: bool) -> None:
    if json and markdown:
        raise InputError("--json and --markdown exclude each other; give one of them")


def split_arguments(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide the arguments of `plan.py train` into its own and those of the recipe.

    A flag of `TrainPlan` is the planner's, every other flag is the recipe's; words that follow a
    flag belong to it. Words before the first flag are the planner's: the recipe's name.

    Returns:
        (own arguments, recipe arguments), each in the given order.
    """
    flags = {option.flag for option in options_of(TrainPlan)}
    own_flags = {*OWN_WORDS, *flags, *(f"no-{flag}" for flag in flags)}
    own: list[str] = []
    recipe: list[str] = []
    target = own
    for word in argv:
        if word.startswith("--"):
            flag = word[2:].partition("=")[0].replace("_", "-")
            target = own if flag in own_flags else recipe
        elif word == "-h":
            target = own
        target.append(word)
    return own, recipe
