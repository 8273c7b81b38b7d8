"""The peak rate to which model FLOPs utilisation refers, and the device that a run has."""

from __future__ import annotations

import functools
import time

import torch

from allinone.engine.planning.hardware import GB, Device, card_named, peak_of_card


@functools.cache
def measured_matmul_rate(seconds: float = 0.3, order: int = 1024) -> float:
    """FLOP/s of fp32 matrix products on this CPU with the current number of threads.

    Args:
        seconds: How long to measure; the fastest product counts.
        order: Size of the square matrices.
    """
    a, b = torch.randn(order, order), torch.randn(order, order)
    a @ b  # not timed: the first product starts the threads
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        a @ b
        best = max(best, 2 * order**3 / (time.perf_counter() - start))
    return best


@functools.cache
def measured_copy_rate(seconds: float = 0.1, numel: int = 2**23) -> float:
    """Bytes/s read and written by a copy in this machine's memory.

    Args:
        seconds: How long to measure; the fastest copy counts.
        numel: fp32 elements, more than fit into a cache.
    """
    source = torch.ones(numel)
    target = torch.empty_like(source).copy_(source)  # writes the pages for the first time
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        target.copy_(source)
        best = max(best, 2 * source.nbytes / (time.perf_counter() - start))
    return best


CPU_SHARES = {"gemm_share": 0.9, "attention_share": 0.6, "memory_share": 0.2}
"""Shares of a CPU's measured rates. From a profile of forward and backward pass on one thread:
matrix products of nano (8 clips) 0.7, of tiny (4 clips) 1.0, attention 0.3 and 0.7, the rest 0.2 of
the bytes of a copy, because a core also computes there. With these values the planned CPU time of
the two is 17 % too short and 8 % too long."""
GLOO_BANDWIDTH = 1 * GB
"""Bytes/s between two ranks of a machine without GPUs: an assumption."""


def planned_device(device: torch.device) -> Device | None:
    """What the time of a step is computed from: a card's data sheet, or a CPU's measured rates.

    Args:
        device: The rank's device.

    Returns:
        None for a card that is not known.
    """
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return card_named(properties.name, properties.total_memory)
    rate = measured_matmul_rate()
    return Device(
        "cpu",
        "CPU",
        memory=float("inf"),
        rate=rate,
        rate_fp32=rate,
        bandwidth=measured_copy_rate(),
        link=GLOO_BANDWIDTH,
        watts=0,
        decoders=0,
        source="measured fp32 matrix product and copy",
        has_bf16=False,  # fp32 has no faster replacement
        shares_from="measured",
        **CPU_SHARES,
    )


def peak_rate(device: torch.device, precision: str) -> tuple[float, str]:
    """Peak FLOP/s of one rank.

    Args:
        device: The rank's device.
        precision: fp32, bf16 or fp16.

    Returns:
        The rate, nan for an unknown GPU, and its source in words.
    """
    if device.type == "cpu":
        return measured_matmul_rate(), "measured fp32 matrix product"
    name = torch.cuda.get_device_name(device)
    found = peak_of_card(name, precision)
    if found is None:
        return float("nan"), f"{name}: peak in {precision} unknown"
    kind = "TF32, fp32 on cards without it" if precision == "fp32" else "dense 16 bit"
    return found[0], f"{found[1]}, {kind}, data sheet"
