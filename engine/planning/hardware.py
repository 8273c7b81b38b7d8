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
    """Dense 16-bit tensor-core FLOP/s with fp32 sums (bf16; fp16 where `has_bf16` is false)."""
    rate_fp32: float
    """FLOP/s of plain fp32."""
    bandwidth: float
    """Bytes/s of the GPU's memory."""
    link: float
    """Bytes/s per direction to the other GPUs of its node: NVLink, or PCIe 4.0 x16 without it."""
    watts: float
    """Thermal design power, W; 0 if unknown."""
    decoders: int
    """NVDEC units: NVIDIA's Video Encode and Decode Support Matrix."""
    source: str
    has_bf16: bool = True
    gemm_share: float = 0.65
    """Share of `rate` that the model's matrix products reach: an assumption. 0.70 on an A100 and
    0.62 on an H100, whose memory is slower in relation to its tensor cores."""
    attention_share: float = 0.35
    """Share of `rate` that fused attention reaches with heads of 64: an assumption."""
    memory_share: float = 0.85
    """Share of `bandwidth` that memory-bound kernels reach: an assumption."""
    shares_from: str = "assumed"
    """Where the three shares come from, in a word."""

    def rate_of(self, precision: str) -> float:
        """Dense FLOP/s in fp32, bf16 or fp16."""
        if precision != "fp32":
            return self.rate
        # TF32 is on for fp32 (engine/trainer.py); cards with bf16 have it, at half of its rate
        return self.rate / 2 if self.has_bf16 else self.rate_fp32


DEVICES = {
    device.name: device
    for device in (
        Device(
            "v100-32g", "V100", 32 * GB, 125 * TERA, 15.7 * TERA, 900 * GB, 150 * GB, 300, 1,
            "V100 data sheet, SXM2 32 GB", False,
        ),
        Device(
            "a100-40g", "A100", 40 * GB, 312 * TERA, 19.5 * TERA, 1555 * GB, 300 * GB, 400, 5,
            "A100 data sheet, SXM 40 GB", gemm_share=0.7,
        ),
        Device(
            "a100-80g", "A100", 80 * GB, 312 * TERA, 19.5 * TERA, 2039 * GB, 300 * GB, 400, 5,
            "A100 data sheet, SXM 80 GB", gemm_share=0.7,
        ),
        Device(
            "h100-80g", "H100", 80 * GB, 989.4 * TERA, 67 * TERA, 3350 * GB, 450 * GB, 700, 7,
            "H100 data sheet, SXM, half of the sparse rate", gemm_share=0.62,
        ),
        Device(
            "h100-pcie", "H100 PCIe", 80 * GB, 756.5 * TERA, 51 * TERA, 2000 * GB, 64 * GB, 350, 7,
            "H100 data sheet, PCIe, half of the sparse rate; PCIe 5.0 x16", gemm_share=0.62,
        ),
        Device(
            "h200-141g", "H200", 141 * GB, 989.4 * TERA, 67 * TERA, 4800 * GB, 450 * GB, 700, 7,
            "H200 data sheet, SXM, half of the sparse rate", gemm_share=0.62,
        ),
        Device(
            "b200", "B200", 180 * GB, 2250 * TERA, 75 * TERA, 8000 * GB, 900 * GB, 1000, 7,
            "DGX B200 data sheet / 8, half of the sparse rate", gemm_share=0.62,
        ),
        Device(
            "l40s", "L40S", 48 * GB, 362 * TERA, 91.6 * TERA, 864 * GB, 32 * GB, 350, 3,
            "L40S data sheet; PCIe 4.0 x16",
        ),
        Device(
            "l4", "L4", 24 * GB, 121 * TERA, 30.3 * TERA, 300 * GB, 32 * GB, 72, 4,
            "L4 data sheet, half of sparse; PCIe 4.0 x16",
        ),
        Device(
            "a6000", "A6000", 48 * GB, 154.8 * TERA, 38.7 * TERA, 768 * GB, 32 * GB, 300, 2,
            "RTX A6000 data sheet, half of sparse; PCIe 4.0 x16",
        ),
        Device(
            "a10", "A10", 24 * GB, 125 * TERA, 31.2 * TERA, 600 * GB, 32 * GB, 150, 2,
            "A10 data sheet; PCIe 4.0 x16",
        ),
        Device(
            "t4", "T4", 16 * GB, 65 * TERA, 8.1 * TERA, 300 * GB, 16 * GB, 70, 2,
            "T4 data sheet; PCIe 3.0 x16", False,
        ),
        # these cards' tensor cores have half of their rate when they sum in fp32, as torch does
        Device(
            "rtx3090", "RTX 3090", 24 * GB, 71 * TERA, 35.6 * TERA, 936 * GB, 32 * GB, 350, 1,
            "GA102 white paper, fp16 with fp32 accumulation; PCIe 4.0 x16",
        ),
        Device(
            "rtx4090", "RTX 4090", 24 * GB, 165.2 * TERA, 82.6 * TERA, 1008 * GB, 32 * GB, 450, 1,
            "Ada white paper, fp16 with fp32 accumulation; PCIe 4.0 x16",
        ),
        Device(
            "rtx5090", "RTX 5090", 32 * GB, 209.5 * TERA, 104.8 * TERA, 1792 * GB, 64 * GB, 575, 2,
            "RTX Blackwell white paper, fp16 with fp32 accumulation; PCIe 5.0 x16",
        ),
    )
}  # fmt: skip
"""Planning names → GPUs."""
CUSTOM = "custom"
"""Planning name of a GPU that the command line describes."""


def custom_device(memory_gb: float, tflops: float, bandwidth: float) -> Device:
    """A GPU that is not in DEVICES, without NVLink.

    Args:
        memory_gb: Memory, GB.
        tflops: Dense bf16 rate, TFLOP/s.
        bandwidth: Of its memory, GB/s.
    """
    return Device(
        CUSTOM,
        CUSTOM,
        memory_gb * GB,
        tflops * TERA,
        tflops / 2 * TERA,
        bandwidth * GB,
        32 * GB,
        0,
        0,
        "--memory-gb, --tflops, --bandwidth; PCIe 4.0 x16 assumed",
    )


OTHER_PEAKS = {
    "H100 NVL": (835.5 * TERA, 835.5 / 2 * TERA),
}
"""CUDA's name → (dense 16-bit, TF32) FLOP/s of cards that are not planning devices; from their data
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


def usual_network(device: str) -> str:
    """Default network of a device's planning name."""
    if device in ("h100-80g", "h200-141g", "b200"):
        return "ib-ndr"
    return "ib-hdr" if device in ("v100-32g", "a100-40g", "a100-80g") else "eth-100"


LINK_EFFICIENCY = 0.8
"""Share of the link rate that collectives reach inside a node: an assumption."""
LINK_LATENCY = 3e-6
"""Seconds per message inside a node: an assumption."""


def find_device(name: str) -> Device:
    """The device of a planning name; ValueError lists the valid ones."""
    if name not in DEVICES:
        raise ValueError(_unknown("device", name, [*DEVICES, CUSTOM]))
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
        precision: fp32 (computed in TF32 where the card has it), bf16 or fp16.

    Returns:
        (dense FLOP/s, product), or None for an unknown card.
    """
    product = _product_of(cuda_name)
    if product is None:
        return None
    if product in OTHER_PEAKS:
        rates = OTHER_PEAKS[product]
    else:
        # the two A100 share a product name and their rates
        device = next(device for device in DEVICES.values() if device.product == product)
        rates = device.rate, device.rate_of("fp32")
    return rates[precision == "fp32"], product


def card_named(cuda_name: str, memory: float) -> Device | None:
    """The planning device of a card; None for one that is not in DEVICES.

    Args:
        cuda_name: Name from torch.cuda.get_device_name.
        memory: Bytes, which tell the two A100 apart.
    """
    product = _product_of(cuda_name)
    same = [device for device in DEVICES.values() if device.product == product]
    return min(same, key=lambda device: abs(device.memory - memory), default=None)


def _product_of(cuda_name: str) -> str | None:
    products = {device.product for device in DEVICES.values()} | set(OTHER_PEAKS)
    for product in sorted(products, key=len, reverse=True):  # H100 PCIe before H100
        # A10 must not match A100 or A10G, nor RTX 3090 the faster RTX 3090 Ti
        if re.search(rf"\b{product}\b(?! Ti)", cuda_name):
            return product
    return None
