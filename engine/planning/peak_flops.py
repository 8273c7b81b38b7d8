"""The peak rate to which model FLOPs utilisation refers."""

from __future__ import annotations

import functools
import time

import torch

from allinone.engine.planning.hardware import peak_of_card


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
