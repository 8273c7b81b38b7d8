"""The rate that model FLOPs utilisation is measured against."""

from __future__ import annotations

import functools
import time

import torch

from allinone.engine.planning.hardware import peak_of_card


@functools.cache
def measured_matmul_rate(seconds: float = 0.3, order: int = 1024) -> float:
    """FLOP/s of square fp32 matrix products on this machine's CPU with the current number of
    threads."""
    a, b = torch.randn(order, order), torch.randn(order, order)
    a @ b
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        a @ b
        best = max(best, 2 * order**3 / (time.perf_counter() - start))
    return best


def peak_rate(device: torch.device, precision: str) -> tuple[float, str]:
    """(FLOP/s of one rank in fp32, bf16 or fp16, where the figure comes from); nan for an unknown
    GPU."""
    if device.type == "cpu":
        return measured_matmul_rate(), "measured fp32 matrix product"
    name = torch.cuda.get_device_name(device)
    found = peak_of_card(name, precision)
    if found is None:
        return float("nan"), f"{name}: peak in {precision} unknown"
    return found[0], f"{found[1]}, {'fp32' if precision == 'fp32' else 'dense 16 bit'}, data sheet"
