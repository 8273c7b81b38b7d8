"""The scaling of a recipe from 8 to 1,024 GPUs as a picture: throughput and efficiency, by
network."""

from __future__ import annotations

from pathlib import Path

from allinone.common.atomic_io import atomic_path
from allinone.common.errors import InputError
from allinone.engine.planning.hardware import NETWORKS, Device, Network
from allinone.pretrain.config import PretrainConfig
from allinone.tools.planning.train_plan import make_plan, scaled

GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)
SHOWN = {"ib-ndr": "#0969da", "ib-hdr": "#1a7f37", "efa-400": "#bf8700", "eth-100": "#cf222e"}
INK, GRID = "#24292f", "#eaeef2"


def throughput(
    recipe: str,
    config: PretrainConfig,
    device: Device,
    network: Network,
    mfu: float,
    per_gpu: int | None,
) -> list[float]:
    """Samples/s of the recommended configuration at every number of GPUs, nan where the batch does
    not divide."""
    found = []
    for gpus in GPUS:
        try:
            found.append(
                make_plan(
                    recipe, scaled(config, gpus, per_gpu), gpus, device, network, mfu, 1.0
                ).chosen.samples_per_s
            )
        except InputError:
            found.append(float("nan"))
    return found


def draw_scaling(
    target: Path, recipe: str, config: PretrainConfig, device: Device, mfu: float
) -> None:
    """Write the picture; its format follows the suffix. Left: samples/s at the recipe's global
    batch. Right: share of one node's samples/s per GPU, at that batch (lines) and with the recipe's
    clips per GPU at any number (dashes).
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.3), layout="constrained")
    per_gpu = config.train.micro_batch
    for name, color in SHOWN.items():
        strong = throughput(recipe, config, device, NETWORKS[name], mfu, None)
        weak = throughput(recipe, config, device, NETWORKS[name], mfu, per_gpu)
        label = NETWORKS[name].source.partition(" (")[0].replace(" per node", "/node")
        left.plot(GPUS, strong, color=color, marker="o", markersize=3, linewidth=1.5, label=label)
        for rates, style in (
            (strong, "-"),
            (weak, "--"),
        ):  # one node: NVLink only, the same for all networks
            right.plot(
                GPUS,
                [
                    100 * rate / gpus * GPUS[0] / rates[0]
                    for rate, gpus in zip(rates, GPUS, strict=True)
                ],
                style,
                color=color,
            )
    left.plot(
        GPUS,
        [gpus / GPUS[0] * strong[0] for gpus in GPUS],
        color=INK,
        linewidth=0.8,
        linestyle=":",
        label="linear",
    )
    left.set(
        xscale="log",
        yscale="log",
        xlabel="GPUs",
        ylabel="samples/s",
        title=f"{config.train.global_batch:,} clips per step",
    )
    left.set_yticks([1e3, 3e3, 1e4, 3e4, 1e5], ["1k", "3k", "10k", "30k", "100k"])
    left.minorticks_off()
    left.legend(fontsize=7, frameon=False)
    right.plot([], [], color=INK, label=f"{config.train.global_batch:,} clips per step")
    right.plot([], [], color=INK, linestyle="--", label=f"{per_gpu} clips per GPU and step")
    right.set(
        xscale="log", xlabel="GPUs", ylabel="efficiency, %", ylim=(0, 105), title="against one node"
    )
    right.legend(fontsize=7, frameon=False, loc="lower left")
    for axis in (left, right):
        axis.set_xscale("log", base=2)
        axis.set_xticks(GPUS, [f"{gpus:,}" for gpus in GPUS], fontsize=8)
        axis.grid(color=GRID)
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_fontsize(10)
    figure.suptitle(
        f"{recipe} on {device.name}, planned (MFU {mfu:g} of the passes, data-sheet rates)",
        fontsize=10,
    )
    with atomic_path(target) as temporary:
        figure.savefig(temporary, dpi=150, format=target.suffix.removeprefix(".") or "png")
    plt.close(figure)
