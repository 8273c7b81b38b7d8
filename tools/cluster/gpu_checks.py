"""Checks of a node's GPUs, or of its CPU in their place."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from allinone.common.formatting import size
from allinone.tools.cluster.node_result import NodeCheckOptions, NodeResult

BRAKES = {
    0x08: "hardware slowdown",
    0x20: "too hot (software)",
    0x40: "too hot (hardware)",
    0x80: "power brake",
}
"""Bits of nvidia-smi's clocks_throttle_reasons.active that a healthy GPU under load does not show;
the power cap (0x04) is normal."""
_FIELDS = "index,clocks.sm,clocks_throttle_reasons.active,ecc.errors.uncorrected.volatile.total"


def check_gpus(result: NodeResult, options: NodeCheckOptions) -> None:
    """Check the number of GPUs, their free memory, speed, clocks, and an all-reduce over them."""
    import torch

    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    result.facts["gpus"] = visible
    if visible < options.gpus:
        result.problems.append(("gpus", f"{visible} of {options.gpus} GPUs are visible"))
        return
    # before anything is allocated: a job that was not cleaned up would fail the training instead
    for gpu in range(visible):
        free, total = torch.cuda.mem_get_info(gpu)
        if free < 0.9 * total:
            text = (
                f"GPU {gpu} has {size(free)} of {size(total)} free: another process uses the rest"
            )
            result.problems.append(("memory", text))
            return
    # a factor of 128 MiB in bf16 and 1.1 TFLOP per product, so that launch overhead does not count
    order = 8192
    factors = [
        torch.randn(order, order, device=f"cuda:{gpu}", dtype=torch.bfloat16)
        for gpu in range(visible)
    ]
    products = [functools.partial(torch.matmul, factor, factor) for factor in factors]
    result.facts["matmul"] = min(
        best_rate(product, 2 * order**3, functools.partial(torch.cuda.synchronize, gpu), 10)
        for gpu, product in enumerate(products)
    )
    with _busy(products, torch.cuda.synchronize):
        check_clocks(result)
    if visible > 1:
        shares = [torch.ones(2**26, device=f"cuda:{gpu}") for gpu in range(visible)]
        torch.cuda.nccl.all_reduce(shares)
        if any(float(share[-1]) != visible for share in shares):
            result.problems.append(("all-reduce", "the sum over the node's GPUs is wrong"))
        result.facts["inner_all_reduce"] = best_rate(
            lambda: torch.cuda.nccl.all_reduce(shares), 2**28, torch.cuda.synchronize
        )


def check_cpu(result: NodeResult, options: NodeCheckOptions) -> None:
    """Measure the rate of a matrix product on the CPU, in place of a GPU."""
    from allinone.engine.planning.peak_flops import measured_matmul_rate

    result.facts["matmul"] = measured_matmul_rate(seconds=0.5, order=512)


@contextlib.contextmanager
def _busy(
    products: Sequence[Callable[[], object]], wait: Callable[[int], object]
) -> Iterator[None]:
    """Keep every GPU busy meanwhile: an idle GPU lowers its clock."""
    ended = threading.Event()

    def work() -> None:
        """Queue products until the block ends."""
        while not ended.is_set():
            for _ in range(20):  # tenths of a second
                for product in products:
                    product()
            for gpu in range(len(products)):
                wait(gpu)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    time.sleep(1.0)
    try:
        yield
    finally:
        ended.set()
        thread.join()


def check_clocks(result: NodeResult) -> None:
    """Check clocks under load, their throttling, and memory errors, if there is nvidia-smi."""
    # without --id, nvidia-smi may also list other jobs' GPUs, which can be idle or broken
    ours = os.environ.get("CUDA_VISIBLE_DEVICES")
    command = ["nvidia-smi", f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"]
    if ours:
        command.append(f"--id={ours}")
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        # a container without nvidia-smi, or an old driver without one of the fields; the measured
        # rate of the matrix product remains
        return
    clocks, problems = read_clocks(done.stdout)
    if clocks:
        result.facts["sm_clock_mhz"] = min(clocks)
    result.problems += [("clocks", text) for text in problems]


def read_clocks(shown: str) -> tuple[list[float], list[str]]:
    """Read nvidia-smi's lines `index, clock, throttle reasons, errors`.

    Returns:
        (clock of each GPU in MHz, problems); fields that a card does not have are skipped.
    """
    clocks, problems = [], []
    for line in shown.strip().splitlines():
        gpu, clock, brakes, errors = (field.strip() for field in line.split(","))
        if clock.isdecimal():
            clocks.append(float(clock))
        mask = int(brakes, 16) if brakes.startswith("0x") else 0
        problems += [
            f"GPU {gpu}: {reason}, {clock} MHz" for bit, reason in BRAKES.items() if mask & bit
        ]
        if errors.isdecimal() and int(errors):
            problems.append(f"GPU {gpu}: {errors} uncorrected memory errors")
    return clocks, problems


def best_rate(
    action: Callable[[], object], work: float, wait: Callable[[], object], repeats: int = 5
) -> float:
    """Measure the rate of an action.

    Args:
        action: Starts the work.
        work: Amount of work of one repetition.
        wait: Waits until the work has finished.
        repeats: Number of repetitions, after one that warms up.

    Returns:
        Work per second of the fastest repetition.
    """
    best = 0.0
    for repeat in range(repeats + 1):
        wait()
        start = time.perf_counter()
        action()
        wait()
        if repeat:
            best = max(best, work / (time.perf_counter() - start))
    return best
