"""Estimates whether prepared data can be loaded as fast as a training needs it.

Measures a sample of the data's own clips: bytes read, time for decoding and augmenting, and what
trimming saves. tools/plan.py data prints the answer.
"""

from __future__ import annotations

import math
import shlex
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from allinone.common.errors import DataError
from allinone.common.object_storage import remote_url
from allinone.data.config import ClipConfig, DataConfig, DatasetSpec
from allinone.data.decoding.codecs import GPU_CODECS, dali_reads
from allinone.data.decoding.frames import DecodeError, Timeline, decode_frames
from allinone.data.decoding.segment import VideoSegment
from allinone.data.loading.augmentation import augmentation_for
from allinone.data.loading.loader import ClipSource
from allinone.data.loading.remote_files import BLOCK
from allinone.data.loading.sampling import SampleChoices, generator
from allinone.data.prepare.encode import Encoding
from allinone.data.prepare.probe import Limits, ProbeError
from allinone.data.prepare.worker import reencode


@dataclass(frozen=True)
class ClipCost:
    """What loading one clip costs on one core of this machine."""

    clips: int
    """Clips measured."""
    codecs: dict[str, int]
    """Codec → clips of the sample."""
    width: int
    height: int
    gop: float
    """Frames per GOP, median; all frames of a clip with a single keyframe."""
    size_bytes: int
    """Bytes read from the shard, mean: the complete file, or the segment of a long video that holds
    the clip."""
    trimmed_share: float
    """Share of the bytes that GOP trimming leaves, median."""
    read_ms: float
    """Reading the clip's bytes from its shard, mean; small if the page cache holds them."""
    decode_ms: float
    """Decoding the chosen frames with PyAV; a mean, because slow clips count."""
    slowest_decode_ms: float
    """99th percentile of decode_ms."""
    trim_ms: float
    """Trimming and remuxing for DALI's decoder, instead of decoding on the host."""
    augment_ms: float
    """Cropping, resizing, RandAugment and normalising with one thread; a mean, because RandAugment
    costs clips differently."""
    on_gpu_share: float
    """Share of the clips that NVDEC decodes."""
    bad: tuple[str, ...]
    """Clips of the sample that do not decode."""


@dataclass(frozen=True)
class Throughput:
    """Whether one node loads clips fast enough."""

    needed_clips_per_s: float
    cores: int
    cores_needed: float
    """CPU cores per node that reading, decoding and augmenting keep busy."""
    bytes_per_s: float
    """Bytes read from storage per node."""
    enough: bool
    limits: tuple[str, ...]
    """What is too slow, in words; empty if nothing is."""
    reachable_clips_per_s: float
    """Clips per second that the node's cores and storage give."""


@dataclass(frozen=True)
class _ReadClip:
    """A clip of the sample, read as training reads it."""

    row: dict[str, Any]
    choices: SampleChoices
    segment: VideoSegment
    read_s: float

    @property
    def numbers(self) -> list[int]:
        """Chosen frame numbers inside the segment."""
        return self.segment.numbers(self.choices.frames)


def _read_clips(
    spec: DatasetSpec, clip: ClipConfig, config: DataConfig, clips: int, seed: int
) -> Iterator[_ReadClip]:
    """Read random clips of a split; arguments as for `measure`."""
    source = ClipSource(spec, clip, config)
    rows = np.random.default_rng(seed).choice(len(source), min(clips, len(source)), replace=False)
    for number in map(int, rows):
        row = source.index[number]
        choices = source.choose(row, generator(seed, "feed", 0, number), captions=1)
        # wall clock, unlike decoding: a process that waits for storage uses no CPU time
        start = time.perf_counter()
        segment = source.segment(row, choices.frames)
        yield _ReadClip(row, choices, segment, time.perf_counter() - start)


class _AugmentTimer:
    """CPU time of augmenting single clips.

    Args:
        clip: Frames per clip and image size of the training.
        config: Data options of the training.
    """

    def __init__(self, clip: ClipConfig, config: DataConfig) -> None:
        # what training uses on the CPU, with one thread
        one_core = replace(config, backend="cpu", decoder="pyav", dali_threads=1)
        self._augmentation = augmentation_for(clip, one_core, torch.device("cpu"), 1)
        self._warm = False

    def __call__(self, frames: Any, choices: SampleChoices) -> float:
        """Return seconds for one clip.

        Args:
            frames: uint8 [T, H, W, 3].
            choices: How they are to be cropped and augmented.
        """
        if not self._warm:  # the first call builds DALI's graph
            self._augmentation([frames], [choices])
            self._warm = True
        start = time.process_time()
        self._augmentation([frames], [choices])
        return time.process_time() - start


@dataclass
class _Measured:
    """Measurements of the clips that decode, in order."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    read_s: list[float] = field(default_factory=list)
    size_bytes: list[int] = field(default_factory=list)
    decode_s: list[float] = field(default_factory=list)
    trim_s: list[float] = field(default_factory=list)
    augment_s: list[float] = field(default_factory=list)
    trimmed_share: list[float] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)


def measure(
    spec: DatasetSpec, clip: ClipConfig, config: DataConfig, clips: int, seed: int = 0
) -> ClipCost:
    """Measure random clips of a prepared split in this process.

    Decoding and augmenting are measured in CPU time: wall-clock time would include other work of
    the machine.

    Args:
        spec: Prepared folder and split.
        clip: Frames per clip and image size of the training.
        config: Data options of the training.
        clips: Clips to measure.
        seed: Chooses the clips and their frames.

    Returns:
        What the clips of the sample cost.

    Raises:
        DataError: No clip of the sample decodes.
    """
    torch.set_num_threads(1)  # as in reader processes; process_time adds up all threads
    augment_s = _AugmentTimer(clip, config)
    done = _Measured()
    for read in _read_clips(spec, clip, config, clips, seed):
        segment, start = read.segment, time.process_time()
        try:
            frames = decode_frames(
                segment.content, read.numbers, segment.timeline, timeout_s=config.clip_timeout_s
            )
            decoded = time.process_time()
            trimmed = segment.trim(read.choices.frames)
            done.trim_s.append(time.process_time() - decoded)
        except DecodeError as error:
            done.bad.append(f"{read.row['key']}: {error}")
            continue
        done.decode_s.append(decoded - start)
        done.augment_s.append(augment_s(frames, read.choices))
        done.rows.append(read.row)
        done.read_s.append(read.read_s)
        done.size_bytes.append(len(segment.content))
        done.trimmed_share.append(len(trimmed.content) / len(segment.content))
    if not done.rows:
        raise DataError(
            f"none of {len(done.bad)} clips of {spec.path} decodes, the first: {done.bad[0]}; run"
            " tools/check_data.py on it"
        )
    return ClipCost(
        clips=len(done.rows),
        **_shape(done.rows),
        size_bytes=int(statistics.fmean(done.size_bytes)),
        trimmed_share=statistics.median(done.trimmed_share),
        read_ms=1e3 * statistics.fmean(done.read_s),
        decode_ms=1e3 * statistics.fmean(done.decode_s),
        slowest_decode_ms=1e3 * float(np.percentile(done.decode_s, 99)),
        trim_ms=1e3 * statistics.fmean(done.trim_s),
        augment_ms=1e3 * statistics.fmean(done.augment_s),
        on_gpu_share=statistics.fmean(dali_reads(row, GPU_CODECS) for row in done.rows),
        bad=tuple(done.bad),
    )


def _shape(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return codecs, frame size and GOP length of clips, by the fields of ClipCost."""
    return {
        "codecs": dict(Counter(row["codec"] for row in rows)),
        "width": int(statistics.median(row["width"] for row in rows)),
        "height": int(statistics.median(row["height"] for row in rows)),
        "gop": statistics.median(row["frames"] / max(1, len(row["keyframes"])) for row in rows),
    }


def measure_reencoded(
    cost: ClipCost,
    spec: DatasetSpec,
    clip: ClipConfig,
    config: DataConfig,
    clips: int = 4,
    seed: int = 0,
) -> ClipCost:
    """Measure what clips will cost once they are re-encoded.

    A few of the clips that `cost` was measured on are re-encoded and measured again.

    Args:
        cost: What the clips cost now.
        spec: Prepared folder and split.
        clip: Frames per clip and image size of the training.
        config: Data options of the training.
        clips: Clips to re-encode.
        seed: As for `measure`, so that the clips are the same.

    Returns:
        `cost` with what re-encoding changes.
    """
    augment_s = _AugmentTimer(clip, config)
    before = after = 0
    done = _Measured()
    for read in _read_clips(spec, clip, config, clips, seed):
        content = read.segment.content
        try:
            columns, made = reencode(
                content, read.row["container"], Limits(1, float("inf")), _encoding(clip)
            )
        except ProbeError:  # `measure` has named it
            continue
        made = made or content
        # A re-encoded clip of a variable rate may have fewer frames.
        wanted = [min(number, columns["frames"] - 1) for number in read.numbers]
        start = time.process_time()
        frames = decode_frames(made, wanted, Timeline.of(columns))
        done.decode_s.append(time.process_time() - start)
        done.augment_s.append(augment_s(frames, read.choices))
        done.rows.append(columns)
        before += len(content)
        after += len(made)
    # Reading and remuxing copy bytes: their cost is scaled by the size instead of measured on a few
    # clips.
    share = after / before if before else 1.0
    return replace(
        cost,
        clips=len(done.rows),
        **_shape(done.rows),
        size_bytes=int(cost.size_bytes * share),
        read_ms=cost.read_ms * share,
        decode_ms=1e3 * statistics.fmean(done.decode_s),
        slowest_decode_ms=1e3 * max(done.decode_s),  # of a few clips there is no 99th percentile
        trim_ms=cost.trim_ms * share,
        augment_ms=1e3 * statistics.fmean(done.augment_s),
    )


def _encoding(clip: ClipConfig) -> Encoding:
    return Encoding("h264", max(256, clip.image_size))


def estimate(
    cost: ClipCost,
    *,
    samples_per_s: float,
    gpus: int,
    gpus_per_node: int,
    cores: int,
    storage_mb_per_s: float,
) -> Throughput:
    """Estimate whether one node's cores and storage keep up.

    Only decoding on the host is estimated: PyAV in reader processes, augmentation on the CPU. What
    NVDEC would take over cannot be measured without a GPU.

    Args:
        cost: What a clip costs.
        samples_per_s: Clips per second of the complete training.
        gpus: GPUs of the training.
        gpus_per_node: GPUs of a node.
        cores: CPU cores of a node.
        storage_mb_per_s: What a node reads from storage; 0 ignores storage.

    Returns:
        The need of one node, and what is too slow.
    """
    per_node = samples_per_s / max(1.0, gpus / gpus_per_node)
    busy = per_node * (cost.read_ms + cost.decode_ms + cost.augment_ms) / 1e3
    volume = per_node * cost.size_bytes
    limits = []
    # 20 % of the cores are left to Python, NCCL and the training processes themselves.
    usable = 0.8 * cores
    reachable = per_node * usable / busy
    if busy > usable:
        limits.append(
            f"decoding on the host keeps {busy:.1f} cores busy, a node has {cores} (80 % of them"
            " usable)"
        )
    if storage_mb_per_s:
        reachable = min(reachable, per_node * storage_mb_per_s * 1e6 / volume)
    if storage_mb_per_s and volume > storage_mb_per_s * 1e6:
        limits.append(
            f"{volume / 1e6:.0f} MB/s are read per node, the storage gives {storage_mb_per_s:.0f}"
        )
    return Throughput(per_node, cores, busy, volume, not limits, tuple(limits), reachable)


@dataclass(frozen=True)
class BucketNeed:
    """What object storage must give to a training, without any cache."""

    requests_per_s: float
    """Range requests of all nodes; a clip is one, a segment of a long video one per block."""
    bytes_per_s: float
    """Of all nodes."""
    parallel: int
    """Requests in flight per node, at the measured time of a request: the fewest readers."""
    workers: int
    """Reader processes per GPU (--workers) that wait for requests, decode and augment."""
    dataset_bytes: int
    """Size of the shards: with a cache of at least this, the second epoch needs no request."""


def bucket_need(
    cost: ClipCost, *, samples_per_s: float, gpus: int, gpus_per_node: int, dataset_bytes: int
) -> BucketNeed:
    """Compute what object storage must give.

    Args:
        cost: What a clip costs; `read_ms` measured with this storage, without a cache.
        samples_per_s: Clips per second of the complete training.
        gpus: GPUs of the training.
        gpus_per_node: GPUs of a node.
        dataset_bytes: Size of the shards.
    """
    per_clip = max(1.0, cost.size_bytes / BLOCK)
    per_node = samples_per_s / max(1.0, gpus / gpus_per_node)
    per_reader_s = (cost.read_ms + cost.decode_ms + cost.augment_ms) / 1e3
    return BucketNeed(
        requests_per_s=samples_per_s * per_clip,
        bytes_per_s=samples_per_s * cost.size_bytes,
        parallel=math.ceil(per_node * cost.read_ms / 1e3),
        workers=math.ceil(samples_per_s / gpus * per_reader_s),
        dataset_bytes=dataset_bytes,
    )


def suggest_reencode(
    cost: ClipCost, prepared: Mapping[str, Any], out: Path, clip: ClipConfig
) -> str | None:
    """Return the prepare command that makes clips cheaper to load, or None if none does.

    Args:
        cost: What a clip costs now.
        prepared: Options that the data was prepared with, from dataset.json.
        out: Folder for the re-encoded data.
        clip: Image size of the training.

    Returns:
        A line for a shell; None if the clips are small and their GOPs short already.
    """
    encoding = _encoding(clip)
    small = min(cost.width, cost.height) <= (encoding.short_side or 0)
    if small and cost.gop <= encoding.gop * 1.2:
        return None
    words = ["python", "tools/prepare.py", str(prepared["source"])]
    words += ["--out", remote_url(out) or str(out)]
    for option, name in (
        ("--format", "kind"),
        ("--videos", "videos"),
        ("--names", "names"),
        ("--exclude", "exclude"),
    ):
        if prepared.get(name) is not None:
            words += [option, str(prepared[name])]
    words += ["--short-side", str(encoding.short_side)]
    words += ["--gop", str(encoding.gop), "--codec", encoding.codec]
    return shlex.join(words)
