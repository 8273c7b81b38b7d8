"""GPUs and networks known to the planner: data-sheet figures with their source.

Memory is the data sheet's figure at 10**9 bytes per GB; drivers report 0 to 7 % more, which is kept
as a margin.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from allinone.common.command_line.messages import suggestion

GPUS_PER_NODE = 8
GB, GBIT, TERA = 1e9, 1e9 / 8, 1e12


@dataclass(frozen=True)
class Device:
    """One GPU."""

    name: str
    product: str
    """Part of torch.cuda.get_device_name that identifies the card."""
    memory: float
    """Bytes."""
    rate: float
    """Dense 16-bit tensor-core FLOP/s (bf16; fp16 on a V100), without sparsity."""
    rate_fp32: float
    """FLOP/s of plain fp32, which torch uses for fp32 unless TF32 is allowed."""
    bandwidth: float
    """Bytes/s of the GPU's memory."""
    link: float
    """Bytes/s per direction to the other GPUs of its node: NVLink, or PCIe 4.0 x16 without it."""
    watts: float
    """Thermal design power, W."""
    source: str
    has_bf16: bool = True


DEVICES = {
    device.name: device
    for device in (
        Device(
            "v100-32g", "V100", 32 * GB, 125 * TERA, 15.7 * TERA, 900 * GB, 150 * GB, 300,
            "V100 data sheet, SXM2 32 GB", False,
        ),
        Device(
            "a100-40g", "A100", 40 * GB, 312 * TERA, 19.5 * TERA, 1555 * GB, 300 * GB, 400,
            "A100 data sheet, SXM 40 GB",
        ),
        Device(
            "a100-80g", "A100", 80 * GB, 312 * TERA, 19.5 * TERA, 2039 * GB, 300 * GB, 400,
            "A100 data sheet, SXM 80 GB",
        ),
        Device(
            "h100-80g", "H100", 80 * GB, 989.4 * TERA, 67 * TERA, 3350 * GB, 450 * GB, 700,
            "H100 data sheet, SXM, half of the sparse rate",
        ),
        Device(
            "h200-141g", "H200", 141 * GB, 989.4 * TERA, 67 * TERA, 4800 * GB, 450 * GB, 700,
            "H200 data sheet, SXM, half of the sparse rate",
        ),
        Device(
            "b200", "B200", 180 * GB, 2250 * TERA, 75 * TERA, 8000 * GB, 900 * GB, 1000,
            "DGX B200 data sheet / 8, half of the sparse rate",
        ),
        Device(
            "l40s", "L40S", 48 * GB, 362 * TERA, 91.6 * TERA, 864 * GB, 32 * GB, 350,
            "L40S data sheet; PCIe 4.0 x16",
        ),
        Device(
            "a6000", "A6000", 48 * GB, 154.8 * TERA, 38.7 * TERA, 768 * GB, 32 * GB, 300,
            "RTX A6000 data sheet, half of sparse; PCIe 4.0 x16",
        ),
    )
}  # fmt: skip
"""Planning names → GPUs."""

OTHER_PEAKS = {
    "A10": (125 * TERA, 31.2 * TERA),
    "H100 PCIe": (756.5 * TERA, 51 * TERA),
    "H100 NVL": (835.5 * TERA, 60 * TERA),
}
"""CUDA's name → (dense 16-bit, fp32) FLOP/s of cards that are not planning devices; from their data
sheets."""


@dataclass(frozen=True)
class Network:
    """The network between nodes."""

    name: str
    node_bandwidth: float
    """Bytes/s per direction of a node of 8 GPUs: line rate of all its adapters."""
    efficiency: float
    """Share of the line rate that large collectives reach: an assumption, stated with each plan."""
    latency: float
    """Seconds per message: an assumption."""
    source: str


NETWORKS = {
    network.name: network
    for network in (
        Network(
            "ib-hdr", 8 * 200 * GBIT, 0.85, 5e-6, "8 x InfiniBand HDR 200 Gb/s per node (DGX A100)",
        ),
        Network(
            "ib-ndr", 8 * 400 * GBIT, 0.85, 5e-6, "8 x InfiniBand NDR 400 Gb/s per node (DGX H100)",
        ),
        Network(
            "ib-hdr-single", 200 * GBIT, 0.85, 5e-6, "one InfiniBand HDR 200 Gb/s adapter per node",
        ),
        Network("efa-400", 4 * 100 * GBIT, 0.7, 20e-6, "EFA, 4 x 100 Gb/s per node (p4d)"),
        Network("efa-3200", 32 * 100 * GBIT, 0.7, 20e-6, "EFA, 3,200 Gb/s per node (p5)"),
        Network("eth-100", 100 * GBIT, 0.7, 30e-6, "one 100 Gb/s Ethernet adapter per node"),
    )
}  # fmt: skip
"""Planning names → networks between nodes."""

USUAL_NETWORK = {
    "h100-80g": "ib-ndr",
    "h200-141g": "ib-ndr",
    "b200": "ib-ndr",
    "l40s": "eth-100",
    "a6000": "eth-100",
}
"""Default network of a device; ib-hdr for all other devices."""
LINK_EFFICIENCY = 0.8
"""Share of the link rate that collectives reach inside a node: an assumption."""
LINK_LATENCY = 3e-6
"""Seconds per message inside a node: an assumption."""


def find_device(name: str) -> Device:
    """The device of a planning name; ValueError lists the valid ones."""
    if name not in DEVICES:
        raise ValueError(_unknown("device", name, DEVICES))
    return DEVICES[name]


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Message for an unknown planning name."""
    valid = list(known)
    return f"unknown {kind} {name!r}; {suggestion(name, valid)}valid {kind}s: {', '.join(valid)}"


def find_network(name: str) -> Network:
    """The network of a planning name; ValueError lists the valid ones."""
    if name not in NETWORKS:
        raise ValueError(_unknown("network", name, NETWORKS))
    return NETWORKS[name]


def peak_of_card(cuda_name: str, precision: str) -> tuple[float, str] | None:
    """Look up the peak rate of a card.

    Args:
        cuda_name: Name from torch.cuda.get_device_name.
        precision: fp32, bf16 or fp16.

    Returns:
        (dense FLOP/s, product), or None for an unknown card.
    """
    # the two A100 share a product name and their rates, so either may stay in the dict
    known = {
        device.product: (device.rate, device.rate_fp32) for device in DEVICES.values()
    } | OTHER_PEAKS
    for product in sorted(known, key=len, reverse=True):  # H100 PCIe before H100
        if re.search(rf"\b{product}\b", cuda_name):  # A10 must not match A100 or A10G
            return known[product][precision == "fp32"], product
    return None
