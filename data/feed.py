"""Can this prepared data feed that training? Measured on a sample of its own clips: what is read, what decoding costs, what trimming saves."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data.choices import draw, generator
from data.config import ClipConfig, DataConfig, DatasetSpec
from data.decode import DecodeError, Timeline, decode_frames
from data.errors import DataError
from data.index import window
from data.loader import Source
from data.media import GPU_CODECS, dali_reads
from data.trim import trim


@dataclass(frozen=True)
class ClipCost:
    """What one clip costs on this machine, medians over the sample; times of one core."""

    clips: int
    """Clips measured."""
    codecs: dict[str, int]
    """Codec → clips of the sample."""
    width: int
    height: int
    gop: float
    """Frames per GOP; the whole clip where it has one keyframe."""
    size_bytes: int
    trimmed_share: float
    """Bytes left after GOP trimming, as a share."""
    read_ms: float
    """One read of the clip's bytes from its shard; small where the page cache holds it."""
    decode_ms: float
    """Decoding the chosen frames with PyAV, mean (slow clips count)."""
    slowest_decode_ms: float
    """99th percentile."""
    augment_ms: float
    """Crop, resize and normalise in the DALI graph, one thread."""
    on_gpu_share: float
    """Share of the clips that NVDEC reads."""
    bad: tuple[str, ...]
    """Clips of the sample that do not decode."""


@dataclass(frozen=True)
class Feed:
    """The answer, for one node."""

    needed_clips_per_s: float
    cores: int
    cores_needed: float
    """CPU cores per node that reading, decoding and augmenting keep busy."""
    bytes_per_s: float
    """Read from storage per node."""
    enough: bool
    limits: tuple[str, ...]
    """What stands in the way, in words; empty where nothing does."""


def measure(spec: DatasetSpec, clip: ClipConfig, config: DataConfig, clips: int, seed: int = 0) -> ClipCost:
    """Measure `clips` random clips of a prepared split in this process; raises DataError where none decodes."""
    from data.graph import Augment

    torch.set_num_threads(1)
    source = Source(spec, clip, config)
    index = source.index
    augment = Augment(clip, DataConfig(backend="cpu", dali_threads=1), torch.device("cpu"), 1)
    items = np.random.default_rng(seed).permutation(len(index))[:clips]
    rows, reads, decodes, augments, shares, bad = [], [], [], [], [], []
    for item in items:
        row = index[int(item)]
        start = time.perf_counter()
        content = source.read(row)
        read = time.perf_counter()
        first, available = window(row)
        shape = {"frames": available, "width": row["width"], "height": row["height"], "wanted": clip.num_frames}
        choices = draw(config, generator(seed, "feed", 0, int(item)), captions=1, **shape).later(first)
        timeline = Timeline.of(row)
        try:
            frames = decode_frames(content, choices.frames, timeline, timeout_s=config.clip_timeout_s)
            decoded = time.perf_counter()
            shares.append(len(trim(content, choices.frames, row["frames"], timeline).content) / len(content))
        except DecodeError as error:
            bad.append(f"{row['key']}: {error}")
            continue
        begin = time.perf_counter()
        augment([frames], [choices])
        rows.append(row)
        reads.append(read - start)
        decodes.append(decoded - read)
        augments.append(time.perf_counter() - begin)
    if not rows:
        raise DataError(f"none of {len(items)} clips of {spec.path} decodes, the first: {bad[0]}; run tools/check_data.py on it")
    return ClipCost(
        clips=len(rows),
        codecs=dict(Counter(row["codec"] for row in rows)),
        width=int(statistics.median(row["width"] for row in rows)),
        height=int(statistics.median(row["height"] for row in rows)),
        gop=statistics.median(row["frames"] / max(1, len(row["keyframes"])) for row in rows),
        size_bytes=int(statistics.median(row["size"] for row in rows)),
        trimmed_share=statistics.median(shares),
        read_ms=1e3 * statistics.median(reads),
        decode_ms=1e3 * statistics.fmean(decodes),
        slowest_decode_ms=1e3 * float(np.percentile(decodes, 99)),
        augment_ms=1e3 * statistics.median(augments),
        on_gpu_share=statistics.fmean(dali_reads(row, GPU_CODECS) for row in rows),
        bad=tuple(bad),
    )


def plan(cost: ClipCost, *, samples_per_s: float, gpus: int, gpus_per_node: int, cores: int, storage_mb_per_s: float) -> Feed:
    """Whether one node's cores and storage keep up; `samples_per_s` is of the whole training, storage 0 = not judged.

    Judged is the host path: PyAV in reader processes, DALI's graph on the CPU. What NVDEC would take over cannot be measured without a GPU.
    """
    per_node = samples_per_s / max(1.0, gpus / gpus_per_node)
    busy = per_node * (cost.read_ms + cost.decode_ms + cost.augment_ms) / 1e3
    volume = per_node * cost.size_bytes
    limits = []
    if busy > 0.8 * cores:  # the rest is for Python, NCCL and the training processes themselves
        limits.append(f"decoding on the host keeps {busy:.1f} cores busy, a node has {cores} (80 % of them usable)")
    if storage_mb_per_s and volume > storage_mb_per_s * 1e6:
        limits.append(f"{volume / 1e6:.0f} MB/s are read per node, the storage gives {storage_mb_per_s:.0f}")
    return Feed(per_node, cores, busy, volume, not limits, tuple(limits))


def cure(cost: ClipCost, source: str, out: Path, clip: ClipConfig) -> str | None:
    """The prepare command that makes clips cheaper, or None where they are as cheap as it makes them."""
    side = max(256, clip.image_size)
    if min(cost.width, cost.height) <= side and cost.gop <= 30:
        return None
    return f"python tools/prepare.py {source} --out {out} --short-side {side} --gop 25 --codec h264"
