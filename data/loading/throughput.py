"""Can this prepared data feed that training? Measured on a sample of its own clips: what is read,
what decoding costs, what trimming saves."""

from __future__ import annotations

import shlex
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from allinone.common.errors import DataError
from allinone.data.config import ClipConfig, DataConfig, DatasetSpec
from allinone.data.decoding.codecs import GPU_CODECS, dali_reads
from allinone.data.decoding.frames import DecodeError, Timeline, decode_frames
from allinone.data.decoding.gop_trim import trim
from allinone.data.decoding.segment import Piece
from allinone.data.loading.index import window
from allinone.data.loading.loader import Source
from allinone.data.loading.sampling import SampleChoices, draw, generator
from allinone.data.prepare.encode import Encoding
from allinone.data.prepare.probe import Limits, ProbeError
from allinone.data.prepare.worker import encoded


@dataclass(frozen=True)
class ClipCost:
    """What one clip costs on this machine; times of one core."""

    clips: int
    """Clips measured."""
    codecs: dict[str, int]
    """Codec → clips of the sample."""
    width: int
    height: int
    gop: float
    """Frames per GOP; the whole clip where it has one keyframe."""
    size_bytes: int
    """Read from the shard, on average: the whole file, or the part of a long video that holds the
    clip."""
    trimmed_share: float
    """Bytes left after GOP trimming, as a share."""
    read_ms: float
    """One read of the clip's bytes from its shard, mean; small where the page cache holds it."""
    decode_ms: float
    """Decoding the chosen frames with PyAV, mean (slow clips count)."""
    slowest_decode_ms: float
    """99th percentile."""
    trim_ms: float
    """Trimming and remuxing for DALI's decoder, which then stands in place of decoding on the
    host."""
    augment_ms: float
    """Crop, resize and normalise in the DALI graph, one thread."""
    on_gpu_share: float
    """Share of the clips that NVDEC reads."""
    bad: tuple[str, ...]
    """Clips of the sample that do not decode."""


@dataclass(frozen=True)
class Throughput:
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


@dataclass(frozen=True)
class _Choice:
    """A clip of the sample, read as training reads it."""

    row: dict[str, Any]
    choices: SampleChoices
    piece: Piece
    wanted: list[int]
    """Frame numbers inside the piece."""
    read_s: float


def _chosen(
    spec: DatasetSpec, clip: ClipConfig, config: DataConfig, clips: int, seed: int
) -> Iterator[_Choice]:
    source = Source(spec, clip, config)
    index = source.index
    items = np.random.default_rng(seed).choice(len(index), min(clips, len(index)), replace=False)
    for item in map(int, items):
        row = index[item]
        first, available = window(row)
        shape = {
            "frames": available,
            "width": row["width"],
            "height": row["height"],
            "wanted": clip.num_frames,
        }
        choices = draw(config, generator(seed, "feed", 0, item), captions=1, **shape).later(first)
        start = time.perf_counter()
        piece = source.piece(row, choices.frames, Timeline.of(row))
        yield _Choice(
            row,
            choices,
            piece,
            [number - piece.first for number in choices.frames],
            time.perf_counter() - start,
        )


def measure(
    spec: DatasetSpec, clip: ClipConfig, config: DataConfig, clips: int, seed: int = 0
) -> ClipCost:
    """Measure `clips` random clips of a prepared split in this process; raises DataError where none
    decodes. Decoding and augmenting are told in CPU time: on a machine that does other work, too,
    the clock on the wall would count that."""
    from allinone.data.loading.dali_pipeline import DaliPipeline

    torch.set_num_threads(1)
    augment = DaliPipeline(clip, DataConfig(backend="cpu", dali_threads=1), torch.device("cpu"), 1)
    rows, reads, sizes, decodes, trims, augments, shares, bad = [], [], [], [], [], [], [], []
    for chosen in _chosen(spec, clip, config, clips, seed):
        piece, start = chosen.piece, time.process_time()
        try:
            frames = decode_frames(
                piece.content, chosen.wanted, piece.timeline, timeout_s=config.clip_timeout_s
            )
            decode = time.process_time() - start
            trimmed = trim(piece.content, chosen.wanted, piece.frames, piece.timeline)
            trims.append(time.process_time() - start - decode)
        except DecodeError as error:
            bad.append(f"{chosen.row['key']}: {error}")
            continue
        start = time.process_time()
        augment([frames], [chosen.choices])
        augments.append(time.process_time() - start)
        decodes.append(decode)
        rows.append(chosen.row)
        reads.append(chosen.read_s)
        sizes.append(len(piece.content))
        shares.append(len(trimmed.content) / len(piece.content))
    if not rows:
        raise DataError(
            f"none of {len(bad)} clips of {spec.path} decodes, the first: {bad[0]}; run"
            " tools/check_data.py on it"
        )
    return ClipCost(
        clips=len(rows),
        codecs=dict(Counter(row["codec"] for row in rows)),
        width=int(statistics.median(row["width"] for row in rows)),
        height=int(statistics.median(row["height"] for row in rows)),
        gop=statistics.median(row["frames"] / max(1, len(row["keyframes"])) for row in rows),
        size_bytes=int(statistics.fmean(sizes)),
        trimmed_share=statistics.median(shares),
        read_ms=1e3 * statistics.fmean(reads),
        decode_ms=1e3 * statistics.fmean(decodes),
        slowest_decode_ms=1e3 * float(np.percentile(decodes, 99)),
        trim_ms=1e3 * statistics.fmean(trims),
        augment_ms=1e3 * statistics.median(augments),
        on_gpu_share=statistics.fmean(dali_reads(row, GPU_CODECS) for row in rows),
        bad=tuple(bad),
    )


def cured(
    cost: ClipCost,
    spec: DatasetSpec,
    clip: ClipConfig,
    config: DataConfig,
    clips: int = 4,
    seed: int = 0,
) -> ClipCost:
    """What clips will cost that are prepared as `cure` says: a few of those that `cost` was
    measured on are encoded, and measured anew."""
    from allinone.data.loading.dali_pipeline import DaliPipeline

    augment = DaliPipeline(clip, DataConfig(backend="cpu", dali_threads=1), torch.device("cpu"), 1)
    decodes, augments, before, after, columns = [], [], 0, 0, []
    for chosen in _chosen(spec, clip, config, clips, seed):
        piece = chosen.piece
        try:
            found, content = encoded(
                piece.content, chosen.row["container"], Limits(1, float("inf")), _encoding(clip)
            )
        except ProbeError:  # it was named when it was measured
            continue
        content = content or piece.content
        start = time.process_time()
        wanted = [
            min(number, found["frames"] - 1) for number in chosen.wanted
        ]  # of a variable rate there may be fewer
        frames = decode_frames(content, wanted, Timeline.of(found))
        decodes.append(time.process_time() - start)
        start = time.process_time()
        augment([frames], [chosen.choices])
        augments.append(time.process_time() - start)
        before, after = before + len(piece.content), after + len(content)
        columns.append(found)
    share = after / before if before else 1.0
    return replace(
        cost,
        clips=len(columns),
        codecs=dict(Counter(found["codec"] for found in columns)),
        width=int(statistics.median(found["width"] for found in columns)),
        height=int(statistics.median(found["height"] for found in columns)),
        gop=statistics.median(
            found["frames"] / max(1, len(found["keyframes"])) for found in columns
        ),
        size_bytes=int(cost.size_bytes * share),
        read_ms=cost.read_ms * share,
        decode_ms=1e3 * statistics.fmean(decodes),
        slowest_decode_ms=1e3 * max(decodes),
        trim_ms=cost.trim_ms * share,
        augment_ms=1e3 * statistics.median(augments),
    )


def _encoding(clip: ClipConfig) -> Encoding:
    return Encoding("h264", max(256, clip.image_size))


def plan(
    cost: ClipCost,
    *,
    samples_per_s: float,
    gpus: int,
    gpus_per_node: int,
    cores: int,
    storage_mb_per_s: float,
) -> Throughput:
    """Whether one node's cores and storage keep up; `samples_per_s` is of the whole training,
    storage 0 = not judged.

    Judged is the host path: PyAV in reader processes, DALI's graph on the CPU. What NVDEC would
    take over cannot be measured without a GPU.
    """
    per_node = samples_per_s / max(1.0, gpus / gpus_per_node)
    busy = per_node * (cost.read_ms + cost.decode_ms + cost.augment_ms) / 1e3
    volume = per_node * cost.size_bytes
    limits = []
    if busy > 0.8 * cores:  # the rest is for Python, NCCL and the training processes themselves
        limits.append(
            f"decoding on the host keeps {busy:.1f} cores busy, a node has {cores} (80 % of them"
            " usable)"
        )
    if storage_mb_per_s and volume > storage_mb_per_s * 1e6:
        limits.append(
            f"{volume / 1e6:.0f} MB/s are read per node, the storage gives {storage_mb_per_s:.0f}"
        )
    return Throughput(per_node, cores, busy, volume, not limits, tuple(limits))


def cure(cost: ClipCost, prepared: Mapping[str, Any], out: Path, clip: ClipConfig) -> str | None:
    """The prepare command that makes clips cheaper, or None where they are as cheap as it makes
    them. `prepared`: options that the data was prepared with (dataset.json)."""
    encoding = _encoding(clip)
    if (
        min(cost.width, cost.height) <= (encoding.short_side or 0)
        and cost.gop <= encoding.gop * 1.2
    ):
        return None
    words = ["python", "tools/prepare.py", str(prepared["source"]), "--out", str(out)]
    for option, name in (
        ("--format", "kind"),
        ("--videos", "videos"),
        ("--names", "names"),
        ("--exclude", "exclude"),
    ):
        if prepared.get(name) is not None:
            words += [option, str(prepared[name])]
    words += [
        "--short-side",
        str(encoding.short_side),
        "--gop",
        str(encoding.gop),
        "--codec",
        encoding.codec,
    ]
    return shlex.join(words)
