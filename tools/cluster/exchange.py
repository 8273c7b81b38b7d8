"""All-reduces of a node with its two neighbours in a ring over all nodes."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from allinone.tools.cluster.gpu_checks import best_rate
from allinone.tools.cluster.node_result import NodeCheckOptions, NodeResult, first_line

if TYPE_CHECKING:
    import torch


def edges(nodes: int) -> Iterator[tuple[int, int, int]]:
    """(round, a, b) of a ring: in each round a node has at most one partner."""
    for a in range(nodes if nodes > 2 else nodes - 1):
        b = (a + 1) % nodes
        yield (2 if b == 0 and nodes % 2 else a % 2), a, b


def exchange(
    result: NodeResult, options: NodeCheckOptions, nodes: Sequence[tuple[str, str]]
) -> None:
    """Run all-reduces with both neighbours, in rounds.

    Args:
        result: Gets the rates, the clock differences and the errors.
        options: Ports and time limits.
        nodes: (name, address) of all nodes.
    """
    names = [name for name, _ in nodes]
    me = names.index(result.node)
    result.doing = "waiting for the other nodes"
    result.write(options.folder)
    store = meet(me, nodes[0][1], len(nodes), options.port + len(nodes), options.limit_s / 2)
    for number, a, b in sorted(edges(len(nodes))):
        if me not in (a, b):
            continue
        partner = names[b if me == a else a]
        result.doing = f"the all-reduce with {partner}"
        result.write(options.folder)
        # later rounds wait longer: the partner may have waited for a dead node before
        timeout_s = options.timeout_s * (number + 1)
        try:
            result.neighbours[partner] = _with_partner(
                me == b, nodes[a][1], options.port + a, timeout_s, max(1, options.gpus)
            )
        except (RuntimeError, OSError, ValueError) as error:
            result.neighbours[partner] = {"error": first_line(error)[:200]}
    del store  # only now: the other nodes poll the first node's store


def meet(me: int, address: str, nodes: int, port: int, limit_s: float) -> object:
    """Wait until all nodes have arrived.

    A node that starts late because its files are not cached must not look like one that does not
    answer.

    Args:
        me: Index of this node.
        address: Address of the first node.
        nodes: Number of nodes.
        port: TCP port of the first node's store.
        limit_s: Give up after this many seconds.

    Returns:
        The store, which must be kept until the exchanges have ended; None without it.
    """
    from torch.distributed import TCPStore

    end = time.monotonic() + limit_s
    try:
        store = TCPStore(
            address,
            port,
            is_master=me == 0,
            timeout=timedelta(seconds=limit_s),
            wait_for_workers=False,
        )
        here = store.add("here", 1)
        while here < nodes and time.monotonic() < end:
            time.sleep(0.1)
            here = store.add("here", 0)
    except RuntimeError:  # the first node is gone; the exchanges report it
        return None
    return store


def _with_partner(
    second: bool, address: str, port: int, timeout_s: float, gpus: int
) -> dict[str, float]:
    """The slowest rate over the GPUs, each of which may use its own network adapter, and the
    difference of the clocks."""
    import torch
    import torch.distributed as dist

    on_cpu = os.environ.get("DS_ACCELERATOR") == "cpu"
    devices = [torch.device("cuda", gpu) for gpu in range(gpus)]
    if on_cpu:
        devices = [torch.device("cpu")]
    limit = timedelta(seconds=timeout_s)
    # raise on a time-out; by default torch ends the process, without naming the partner
    os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"
    dist.init_process_group(
        "gloo" if on_cpu else "nccl",
        init_method=f"tcp://{address}:{port}",
        rank=int(second),
        world_size=2,
        timeout=limit,
    )
    try:
        rates = [_rate_on(device) for device in devices]
        clocks = [torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)]
        try:  # over gloo, which training uses in addition to NCCL
            group = dist.new_group(backend="gloo", timeout=limit)
            dist.all_gather(clocks, torch.tensor([time.time()], dtype=torch.float64), group=group)
        except RuntimeError as error:
            raise ValueError(
                f"gloo: {first_line(error)}; GLOO_SOCKET_IFNAME names the interface between the"
                " nodes"
            ) from error
        return {"rate": min(rates), "clock_s": float(clocks[int(second)] - clocks[1 - int(second)])}
    finally:
        dist.destroy_process_group()


def _rate_on(device: torch.device) -> float:
    """Bytes per second of an all-reduce with the partner; errors name the GPU."""
    import torch
    import torch.distributed as dist

    on_cpu = device.type == "cpu"
    try:
        payload = torch.ones((2**20 if on_cpu else 2**26), device=device)
        dist.all_reduce(payload)
        if float(payload[-1]) != 2.0:
            raise ValueError(f"{device}: the sum is wrong")
        wait = functools.partial(torch.cuda.synchronize, device)
        return best_rate(
            lambda: dist.all_reduce(payload),
            payload.numel() * 4.0,
            (lambda: None) if on_cpu else wait,
        )
    except RuntimeError as error:
        raise RuntimeError(f"{device}: {first_line(error)}") from error
