"""`tools/plan.py data`: whether prepared data can be loaded fast enough, what limits it, and the
command that re-encodes it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

from allinone.common.errors import InputError
from allinone.common.formatting import size
from allinone.common.object_storage import remote_url
from allinone.data.config import ClipConfig, DataConfig, DatasetSpec
from allinone.data.index import dataset_facts
from allinone.data.throughput import (
    BucketNeed,
    ClipCost,
    Throughput,
    bucket_need,
    estimate,
    measure,
    measure_reencoded,
    suggest_reencode,
)
from allinone.tools.planning.options import DataPlan

S3_REQUESTS_PER_S = 5_500
"""GET requests per second and prefix that Amazon S3 serves at least (its documentation, "Best
practices design patterns: optimizing Amazon S3 performance")."""


@dataclass(frozen=True)
class Loading:
    """What loading clips costs, and whether a node keeps up."""

    cost: ClipCost
    throughput: Throughput


def plan_data(options: DataPlan) -> int:
    """Measure clips, compare with the training's demand, print; returns the exit code.

    0: the data can be loaded fast enough; 1: it cannot.
    """
    try:
        spec = DatasetSpec.parse(options.data)
    except ValueError as error:
        raise InputError(str(error)) from error
    clip = ClipConfig(num_frames=options.frames, image_size=options.image_size)
    remote = remote_url(spec.path) is not None
    # of object storage the requests are measured, not what an earlier run has left in the cache
    cache_gb = 0.0 if remote else DataConfig.cache_gb
    config = DataConfig(geometry=options.geometry, augment=options.augment, cache_gb=cache_gb)
    cost = measure(spec, clip, config, options.clips)
    training = {
        name: getattr(options, name)
        for name in ("samples_per_s", "gpus", "gpus_per_node", "cores", "storage_mb_per_s")
    }
    bucket = None
    if remote:
        training_size = {
            name: training[name] for name in ("samples_per_s", "gpus", "gpus_per_node")
        }
        dataset_bytes = dataset_facts(spec.path)["bytes"]
        bucket = bucket_need(cost, **training_size, dataset_bytes=dataset_bytes)
    # a reader that waits for a request keeps no core busy
    throughput = estimate(replace(cost, read_ms=0.0) if remote else cost, **training)
    command, cost_after, estimate_after = None, None, None
    if not throughput.enough:
        # the options of the preparation, so that the suggested command changes what is needed only
        prepared = dataset_facts(spec.path)
        target = spec.path.with_name(spec.path.name + "-train")
        command = suggest_reencode(cost, prepared["options"], target, clip)
        cost_after = measure_reencoded(cost, spec, clip, config) if command else None
        estimate_after = estimate(cost_after, **training) if cost_after else None
    if options.json:
        content = {
            "cost": asdict(cost),
            "feed": asdict(throughput),  # the key of earlier versions
            "bucket": asdict(bucket) if bucket else None,
            "command": command,
            "cost_after": asdict(cost_after) if cost_after else None,
            "feed_after": asdict(estimate_after) if estimate_after else None,
        }
        print(json.dumps(content))
    else:
        print(_text(cost, throughput, config))
        if bucket:
            print(_bucket(bucket))
        if command and cost_after and estimate_after:
            print(_suggestion(command, cost_after, estimate_after))
        elif not throughput.enough:
            print(
                "re-encoding would not make these clips cheaper; use more nodes or more cores per"
                " GPU, or lower --samples-per-s"
            )
    return 0 if throughput.enough else 1


def _text(cost: ClipCost, estimate: Throughput, config: DataConfig) -> str:
    work = "crop, resize and RandAugment" if config.uses_randaug else "crop and resize"
    counts = sorted(cost.codecs.items(), key=lambda pair: -pair[1])
    codecs = ", ".join(f"{name} {number}" for name, number in counts)
    lines = [
        f"{cost.clips} clips measured: {codecs}; {cost.width} x {cost.height}, {cost.gop:.0f}"
        f" frames per GOP (medians), {size(cost.size_bytes)}",
        f"  read {cost.read_ms:.1f} ms, decode {cost.decode_ms:.1f} ms (99 % below"
        f" {cost.slowest_decode_ms:.1f}), {work} {cost.augment_ms:.1f} ms per clip on one core",
        f"  GOP trimming keeps {100 * cost.trimmed_share:.0f} % of the bytes and takes"
        f" {cost.trim_ms:.1f} ms",
        "only CPU decoding (--decoder pyav) is evaluated; with --decoder dali, NVDEC would decode"
        f" {100 * cost.on_gpu_share:.0f} % of the clips on a GPU, and the CPU would only trim them",
        f"needed per node: {estimate.needed_clips_per_s:.1f} clips/s = {_demand(estimate)}",
    ]
    lines += [f"  cannot be decoded: {name}" for name in cost.bad[:5]]
    lines.append(
        "this data is loaded fast enough for the training"
        if estimate.enough
        else "this data is NOT loaded fast enough for the training:"
    )
    return "\n".join([*lines, *(f"  {limit}" for limit in estimate.limits)])


def _bucket(need: BucketNeed) -> str:
    lines = [
        f"the bucket must give {need.requests_per_s:,.0f} requests/s and"
        f" {need.bytes_per_s / 1e6:,.1f} MB/s to all nodes, {need.parallel:,} requests at a time to"
        f" each; --workers {need.workers} per GPU wait, decode and augment",
        f"  with --cache-gb {need.dataset_bytes / 1e9:,.1f} on each node, every node reads the data"
        " set once; below that, each epoch again. A smaller cache helps with --shuffle-window",
    ]
    if need.requests_per_s > S3_REQUESTS_PER_S:
        lines.append(
            f"  S3 promises {S3_REQUESTS_PER_S:,} reads/s per prefix, and adapts to more within"
            " minutes: expect repeated requests until then, or divide the shards over prefixes"
        )
    return "\n".join(lines)


def _demand(estimate: Throughput) -> str:
    return (
        f"{estimate.cores_needed:.1f} of {estimate.cores} cores, {estimate.bytes_per_s / 1e6:.1f}"
        " MB/s from storage"
    )


def _suggestion(command: str, cost: ClipCost, estimate: Throughput) -> str:
    verdict = (
        "enough"
        if estimate.enough
        else "still not enough: also use more nodes or cores per GPU, or lower --samples-per-s"
    )
    return (
        f"smaller frames and shorter GOPs cost less:\n  {command}\n  {cost.clips} clips encoded"
        f" that way: decode {cost.decode_ms:.1f} ms, crop and resize {cost.augment_ms:.1f} ms,"
        f" {size(cost.size_bytes)}; the node would need {_demand(estimate)}: {verdict}"
    )
