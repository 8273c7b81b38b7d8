"""Stage (a): the device, its driver, and the ceilings that speed is compared with."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable

import torch

from allinone.common.formatting import count, size
from allinone.engine.planning.hardware import card_named, peak_of_card
from allinone.model import AllInOneConfig
from tests.gpu.stage import CheckFn, Found, Settings, Skip

REPEATS = 20


def checks(settings: Settings) -> dict[str, CheckFn]:
    """The checks of the stage, in order."""
    return {
        "device": lambda: describe(settings),
        "free memory": lambda: free_memory(settings),
        "copy on the device": lambda: copy_rate(settings),
        "copy from the host": lambda: host_copy_rate(settings),
        "bf16 GEMM, square": lambda: square_gemm(settings),
        "bf16 GEMM, the model's": lambda: model_gemm(settings),
    }


def best_seconds(work: Callable[[], object], on_gpu: bool, repeats: int = REPEATS) -> float:
    """Shortest of some repetitions, after two that warm up."""
    for _ in range(2):
        work()
    best = float("inf")
    for _ in range(repeats):
        if on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if on_gpu:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def describe(settings: Settings) -> Found:
    """Name, memory and driver."""
    from allinone.env import versions

    values: dict[str, object] = {"versions": versions()}
    if not settings.on_gpu:
        return Found(f"CPU, {torch.get_num_threads()} threads", values, measured=True)
    properties = torch.cuda.get_device_properties(0)
    values |= {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "gpus": torch.cuda.device_count(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        "driver": _nvidia_smi("driver_version"),
        "power_limit": _nvidia_smi("power.limit"),
        "max_sm_clock": _nvidia_smi("clocks.max.sm"),
    }
    text = f"{properties.name}, {size(properties.total_memory)}, driver {values['driver']}"
    return Found(f"{text}, CUDA {torch.version.cuda}", values, measured=True)


def _nvidia_smi(field: str) -> str:
    """One field of the first GPU; "unknown" without the program."""
    if shutil.which("nvidia-smi") is None:
        return "unknown (no nvidia-smi)"
    command = ["nvidia-smi", "-i", "0", f"--query-gpu={field}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    return done.stdout.strip() or "unknown"


def free_memory(settings: Settings) -> Found:
    """Another process on the GPU would falsify everything that follows."""
    if not settings.on_gpu:
        raise Skip("the host's memory is not judged")
    free, total = torch.cuda.mem_get_info()
    # this process's own context takes up to 1 GiB
    used = total - free
    text = f"{size(free)} of {size(total)} are free"
    return Found(text, {"free": free, "total": total}, problem=used > 2 * 2**30)


def copy_rate(settings: Settings) -> Found:
    """Bytes read and written per second."""
    numel = 2**28 if settings.on_gpu else 2**24
    source = torch.ones(numel, device=settings.device)
    target = torch.empty_like(source)
    rate = 2 * 4 * numel / best_seconds(lambda: target.copy_(source), settings.on_gpu)
    sheet = _bandwidth_of_card() if settings.on_gpu else None
    share = f", {100 * rate / sheet:.0f} % of the data sheet" if sheet else ""
    values = {"bytes_per_s": rate, "data_sheet": sheet}
    return Found(f"{size(rate)}/s read and written{share}", values, measured=True)


def _bandwidth_of_card() -> float | None:
    properties = torch.cuda.get_device_properties(0)
    card = card_named(properties.name, properties.total_memory)
    return card.bandwidth if card else None


def host_copy_rate(settings: Settings) -> Found:
    """Bytes per second from pinned host memory, which the batches take."""
    if not settings.on_gpu:
        raise Skip("the device is the host")
    source = torch.ones(2**26, pin_memory=True)
    target = torch.empty_like(source, device=settings.device)
    seconds = best_seconds(lambda: target.copy_(source, non_blocking=True), settings.on_gpu)
    rate = source.nbytes / seconds
    return Found(f"{size(rate)}/s from pinned memory", {"bytes_per_s": rate}, measured=True)


def square_gemm(settings: Settings) -> Found:
    """The rate that is commonly quoted."""
    order = 8192 if settings.on_gpu else 256
    return _gemm(settings, order, order, order)


def model_gemm(settings: Settings) -> Found:
    """The rate of the first layer of the MLP, in the shape that a micro-batch gives it."""
    config = AllInOneConfig.from_size(settings.size)
    tokens = config.max_text_len + config.num_visual_tokens
    rows = settings.micro_batch * config.num_frames * tokens
    return _gemm(settings, rows, config.hidden_size, config.mlp_ratio * config.hidden_size)


def _gemm(settings: Settings, m: int, k: int, n: int) -> Found:
    a = torch.randn(m, k, device=settings.device, dtype=torch.bfloat16)
    b = torch.randn(k, n, device=settings.device, dtype=torch.bfloat16)
    repeats = REPEATS if settings.on_gpu else 3
    rate = 2 * m * k * n / best_seconds(lambda: a @ b, settings.on_gpu, repeats)
    peak = peak_of_card(torch.cuda.get_device_name(), "bf16") if settings.on_gpu else None
    share = f", {100 * rate / peak[0]:.0f} % of the data sheet" if peak else ""
    values = {"m": m, "k": k, "n": n, "flops_per_s": rate, "data_sheet": peak and peak[0]}
    return Found(f"{count(rate)}FLOP/s at {m} x {k} x {n}{share}", values, measured=True)
