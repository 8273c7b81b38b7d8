"""Figure of a recipe's scaling from 8 to 1,024 GPUs: throughput and efficiency, by network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from allinone.common.atomic_io import atomic_path
from allinone.common.errors import InputError
from allinone.engine.planning.hardware import NETWORKS, Device, Network
from allinone.pretrain.config import PretrainConfig
from allinone.pretrain.cost import Lengths
from allinone.tools.planning.train_plan import make_plan, scaled

GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)
SHOWN = {"ib-ndr": "#0969da", "ib-hdr": "#1a7f37", "efa-400": "#bf8700", "eth-100": "#cf222e"}
"""Networks to show → colour."""
STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "figure.titlesize": 12,
    "grid.color": "#eaeef2",
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.markersize": 3,
    "xtick.labelsize": 9,
}


def throughput(
    recipe: str,
    config: PretrainConfig,
    device: Device,
    network: Network,
    per_gpu: int | None,
    lengths: Lengths,
) -> list[float]:
    """Throughput of the recommended configuration by number of GPUs.

    Args:
        recipe: Name of the recipe.
        config: The recipe with its options.
        device: The GPU.
        network: The network between nodes.
        per_gpu: Clips per GPU and step (weak scaling); None keeps the global batch (strong
            scaling).
        lengths: Of the captions.

    Returns:
        Samples/s for each number in GPUS; NaN where the batch does not divide.
    """
    found = []
    for gpus in GPUS:
        try:
            options = scaled(config, gpus, per_gpu)
            plan = make_plan(recipe, options, gpus, device, network, lengths=lengths)
            found.append(float(plan.outcome(plan.mode)["samples_per_s"]))
        except InputError:
            found.append(float("nan"))
    return found


def draw_scaling(
    target: Path, recipe: str, config: PretrainConfig, device: Device, lengths: Lengths = ()
) -> None:
    """Write the figure; the suffix of the file selects its format.

    Left: samples/s at the recipe's global batch. Right: samples/s per GPU as a share of that of one
    node, at the global batch (lines) and at the recipe's clips per GPU (dashes).

    Args:
        target: The file.
        recipe: Name of the recipe.
        config: The recipe with its options.
        device: The GPU.
        lengths: Of the captions.
    """
    import matplotlib

    # no display on a login node; must precede the import of pyplot
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import EngFormatter, StrMethodFormatter

    per_gpu = config.train.micro_batch
    strong_label = f"{config.train.global_batch:,} clips per step"
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4), layout="constrained")
        for name, color in SHOWN.items():
            strong = throughput(recipe, config, device, NETWORKS[name], None, lengths)
            weak = throughput(recipe, config, device, NETWORKS[name], per_gpu, lengths)
            label = NETWORKS[name].source.partition(" (")[0].replace(" per node", "/node")
            left.plot(GPUS, strong, "o-", color=color, label=label)
            for rates, style in ((strong, "-"), (weak, "--")):
                # one node uses NVLink only, so it is the reference for all networks
                per_node = [rate * GPUS[0] / gpus for rate, gpus in zip(rates, GPUS, strict=True)]
                right.plot(GPUS, [100 * rate / rates[0] for rate in per_node], style, color=color)
        linear = [gpus / GPUS[0] * strong[0] for gpus in GPUS]
        # from the last network's single node, which uses NVLink only and is equal for all
        left.plot(GPUS, linear, ":", color="black", label="linear")
        left.set(xlabel="GPUs", ylabel="clips per second", title=strong_label, yscale="log")
        left.yaxis.set_major_formatter(EngFormatter(sep=""))
        right.plot([], [], color="black", label=strong_label)
        right.plot([], [], "--", color="black", label=f"{per_gpu} clips per GPU and step")
        right.set(
            xlabel="GPUs", ylabel="efficiency, %", ylim=(0, 105), title="relative to one node"
        )
        for axis in (left, right):
            axis.set_xscale("log", base=2)
            axis.set_xticks(GPUS)
            axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            axis.legend()
        first = make_plan(recipe, scaled(config, GPUS[0], None), GPUS[0], device, NETWORKS[name])
        figure.suptitle(
            f"{recipe} on {device.name}, {first.mode}, planned (counted operations, data-sheet"
            " rates)"
        )
        with atomic_path(target) as temporary:
            figure.savefig(temporary, dpi=150, format=target.suffix.removeprefix(".") or "png")
        plt.close(figure)
