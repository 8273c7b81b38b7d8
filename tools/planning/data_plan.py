"""`tools/plan.py data`: whether prepared data can feed a training, what limits it, and the command
that would mend it."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict

from allinone.common.errors import InputError
from allinone.common.formatting import size
from allinone.data.config import ClipConfig, DataConfig, DatasetSpec
from allinone.data.loading.throughput import ClipCost, Throughput, cure, cured, measure, plan


def add_data_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "data",
        help="can this prepared data feed that training?",
        description=(
            "Measures random clips of a prepared folder on one core of this machine and compares"
            " with what a training needs per node. Run it on a node of the kind that trains, on the"
            " storage that it will read."
        ),
    )
    parser.add_argument("data", metavar="DIR[:SPLIT]", help="folder written by tools/prepare.py")
    parser.add_argument("--gpus", type=int, required=True, help="GPUs of the training")
    parser.add_argument(
        "--samples-per-s", type=float, required=True, help="clips/s of the whole training"
    )
    parser.add_argument("--gpus-per-node", type=int, default=8, help="default: %(default)s")
    parser.add_argument(
        "--cores",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="CPU cores of a node (default: those that this may use, %(default)s)",
    )
    parser.add_argument(
        "--storage-mb-per-s",
        type=float,
        default=0.0,
        help="what a node reads from storage, MB/s; 0 leaves it out",
    )
    parser.add_argument(
        "--clips", type=int, default=200, help="clips to measure (default: %(default)s)"
    )
    parser.add_argument(
        "--frames", type=int, default=3, help="frames per clip (default: %(default)s)"
    )
    parser.add_argument("--image-size", type=int, default=224, help="pixels (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(plan=plan_data)


def plan_data(args: argparse.Namespace) -> int:
    """Measure, judge, print; 0 where the data keeps up, 1 where it does not."""
    try:
        spec = DatasetSpec.parse(args.data)
    except ValueError as error:
        raise InputError(str(error)) from error
    clip = ClipConfig(num_frames=args.frames, image_size=args.image_size)
    for name in ("gpus", "gpus_per_node", "cores", "clips", "samples_per_s"):
        if getattr(args, name) <= 0:
            raise InputError(
                f"--{name.replace('_', '-')} must be more than 0, got {getattr(args, name)}"
            )
    cost = measure(spec, clip, DataConfig(), args.clips)
    training = {
        name: getattr(args, name)
        for name in ("samples_per_s", "gpus", "gpus_per_node", "cores", "storage_mb_per_s")
    }
    feed = plan(cost, **training)
    prepared = json.loads((spec.path / "dataset.json").read_text())
    command = cure(cost, prepared["options"], spec.path.with_name(spec.path.name + "-train"), clip)
    command = None if feed.enough else command
    better = cured(cost, spec, clip, DataConfig()) if command else None
    after = plan(better, **training) if better else None
    if args.json:
        print(
            json.dumps(
                {
                    "cost": asdict(cost),
                    "feed": asdict(feed),
                    "command": command,
                    "cost_after": asdict(better) if better else None,
                    "feed_after": asdict(after) if after else None,
                }
            )
        )
    else:
        print(_text(cost, feed))
        if command and better and after:
            print(_cure(command, better, after))
        elif not feed.enough:
            print(
                "the clips are as cheap as preparing makes them: more nodes or cores per GPU, or"
                " fewer --samples-per-s"
            )
    return 0 if feed.enough else 1


def _text(cost: ClipCost, feed: Throughput) -> str:
    codecs = ", ".join(
        f"{name} {number}"
        for name, number in sorted(cost.codecs.items(), key=lambda pair: -pair[1])
    )
    lines = [
        (
            f"{cost.clips} clips measured: {codecs}; {cost.width} x {cost.height}, {cost.gop:.0f}"
            f" frames per GOP (medians), {size(cost.size_bytes)}"
        ),
        (
            f"  read {cost.read_ms:.1f} ms, decode {cost.decode_ms:.1f} ms (99 % under"
            f" {cost.slowest_decode_ms:.1f}), crop and resize {cost.augment_ms:.1f} ms per clip on"
            " one core"
        ),
        (
            f"  GOP trimming leaves {100 * cost.trimmed_share:.0f} % of the bytes, in"
            f" {cost.trim_ms:.1f} ms"
        ),
        (
            "judged is decoding on the host (--decoder pyav); with --decoder dali, NVDEC would"
            f" decode {100 * cost.on_gpu_share:.0f} % of the clips on a GPU, and the host trim them"
            " only: not judged here"
        ),
        f"needed per node: {feed.needed_clips_per_s:.1f} clips/s = {_needs(feed)}",
    ]
    lines += [f"  does not decode: {name}" for name in cost.bad[:5]]
    lines.append(
        "this data feeds that training" if feed.enough else "this data does NOT feed that training:"
    )
    return "\n".join([*lines, *(f"  {limit}" for limit in feed.limits)])


def _needs(feed: Throughput) -> str:
    return (
        f"{feed.cores_needed:.1f} of {feed.cores} cores, {feed.bytes_per_s / 1e6:.1f} MB/s from"
        " storage"
    )


def _cure(command: str, cost: ClipCost, feed: Throughput) -> str:
    verdict = (
        "enough"
        if feed.enough
        else "still not enough: more nodes or cores per GPU, or fewer --samples-per-s, too"
    )
    return (
        f"smaller frames and short GOPs cost less:\n  {command}\n  {cost.clips} clips encoded like"
        f" that: decode {cost.decode_ms:.1f} ms, crop and resize {cost.augment_ms:.1f} ms,"
        f" {size(cost.size_bytes)}; the node would need {_needs(feed)}: {verdict}"
    )
