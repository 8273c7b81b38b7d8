"""Source → shards + index. Resumable: a shard whose tar and fragment stand is never made again; dataset.json is written last."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tarfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import DataError
from data.files import TEMPORARY, atomic_path, write_atomic
from data.index import Clip, table_of, write_index
from data.probe import Limits, ProbePool
from data.sources import Row, detect, read
from data.units import duration, size

OFFICIAL_COUNTS = {"results_2M_val.csv": 5000, "results_10M_val.csv": 5000, "results_10M_train.csv": 10_727_607}
"""Rows of WebVid's official files, from its data card."""


@dataclass(frozen=True)
class PrepareOptions:
    """What to prepare and how."""

    source: Path
    out: Path
    kind: str = "auto"
    videos: Path | None = None
    shard_clips: int = 1000
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    min_frames: int = 2
    max_duration_s: float = 3600.0
    timeout_s: float = 60.0

    def fingerprint(self) -> dict[str, Any]:
        """The options that change the result."""
        values = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}
        return {key: value for key, value in values.items() if key not in ("out", "workers", "timeout_s")}


@dataclass(frozen=True)
class PrepareSummary:
    """What came out."""

    clips: dict[str, int]
    """Good clips per split."""
    bad: dict[str, int]
    """Bad clips per reason."""
    bytes: int
    seconds: float
    done_before: bool = False
    notes: tuple[str, ...] = ()

    @property
    def bad_share(self) -> float:
        """Bad clips among all."""
        good, bad = sum(self.clips.values()), sum(self.bad.values())
        return bad / max(good + bad, 1)


def prepare(options: PrepareOptions, progress: bool = True) -> PrepareSummary:
    """Prepare a source; raises DataError for what a user can mend. Run again after any interruption: it continues."""
    start = time.monotonic()
    kind = detect(options.source) if options.kind == "auto" else options.kind
    if (options.out / "dataset.json").exists():
        _check_same(options)
        facts = json.loads((options.out / "dataset.json").read_text())
        return PrepareSummary(facts["clips"], facts["bad"], facts["bytes"], 0.0, done_before=True)
    _claim(options)
    rows = list(read(options.source, kind, options.videos))
    if not rows:
        raise DataError(f"{options.source} lists no clips")
    shards = _shards(rows, options.shard_clips)
    limits = Limits(options.min_frames, options.max_duration_s, options.timeout_s)
    pool = ProbePool(options.workers, limits)
    show = _Progress(len(rows), progress)
    try:
        for name, members in shards:
            fragment = options.out / "parts" / f"{name}.parquet"
            if fragment.exists():
                show.add(len(members), 0)
            else:
                _make_shard(options.out, name, members, pool, show)
    except OSError as error:
        free = size(shutil.disk_usage(options.out).free)
        raise DataError(
            f"cannot write below {options.out}: {error} ({free} free). Free space, then the same command continues"
        ) from error
    finally:
        pool.close()
        show.end()
    return _finish(options, kind, [name for name, _ in shards], time.monotonic() - start)


def _check_same(options: PrepareOptions) -> None:
    old, new = json.loads((options.out / "prepare.json").read_text()), options.fingerprint()
    changes = [f"{key}: {old.get(key)} → {new[key]}" for key in new if old.get(key) != new[key]]
    if changes:
        raise DataError(
            f"{options.out} was prepared with other options ({'; '.join(changes)}); give the same ones, or another --out"
        )


def _claim(options: PrepareOptions) -> None:
    marker = options.out / "prepare.json"
    if marker.exists():
        _check_same(options)
    elif options.out.exists() and any(options.out.iterdir()):
        raise DataError(f"{options.out} is not empty and holds no prepared data; give another --out")
    try:
        write_atomic(marker, json.dumps(options.fingerprint(), indent=1) + "\n")
        for folder in ("shards", "parts"):
            (options.out / folder).mkdir(exist_ok=True)
            for path in (options.out / folder).glob(f"{TEMPORARY}*"):
                path.unlink()
    except OSError as error:
        raise DataError(f"cannot write to {options.out}: {error}") from error


def _shards(rows: list[Row], clips: int) -> list[tuple[str, list[Row]]]:
    """Fixed chunks of each split, in source order: the same source gives the same shards."""
    by_split: dict[str, list[Row]] = {}
    for row in rows:
        by_split.setdefault(row.split, []).append(row)
    return [
        (f"{split}-{number:05d}", members[first : first + clips])
        for split, members in by_split.items()
        for number, first in enumerate(range(0, len(members), clips))
    ]


def _make_shard(out: Path, name: str, rows: list[Row], pool: ProbePool, show: _Progress) -> None:
    """Tar first, fragment second: a fragment stands only beside a whole tar."""
    clips = [
        Clip(f"{row.split}/{row.id}", row.split, list(row.captions), row.source, reason=row.reason, detail=row.detail)
        for row in rows
    ]
    wanted = [number for number, row in enumerate(rows) if row.reason is None]
    show.add(len(rows) - len(wanted), len(rows) - len(wanted))
    tasks = ((str(rows[number].path), rows[number].offset, rows[number].size, rows[number].extension) for number in wanted)
    for task, reason, found in pool.map(tasks):
        clip = clips[wanted[task]]
        if reason is None:
            vars(clip).update(found)
        else:
            clip.reason, clip.detail = reason, str(found)
        show.add(1, int(reason is not None))
    with (
        atomic_path(out / "shards" / f"{name}.tar") as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for number, (row, clip) in enumerate(zip(rows, clips, strict=True)):
            if clip.reason is None:
                _add_clip(archive, f"{name}-{number:05d}", row, clip)
                clip.shard = f"shards/{name}.tar"
    with atomic_path(out / "parts" / f"{name}.parquet") as temporary:
        pq.write_table(table_of(clips), temporary)


def _add_clip(archive: tarfile.TarFile, key: str, row: Row, clip: Clip) -> None:
    with row.path.open("rb") as file:
        file.seek(row.offset)
        content = file.read() if row.size is None else file.read(row.size)
    archive.addfile(*_member(f"{key}.{row.extension}", content))
    clip.size = len(content)
    clip.offset = archive.offset - -(-len(content) // 512) * 512  # the archive stands behind the padded content now
    archive.addfile(*_member(f"{key}.txt", clip.captions[0].encode()))
    facts = {"key": clip.key, "caption": clip.captions[0], "width": clip.width, "height": clip.height, "frames": clip.frames}
    archive.addfile(*_member(f"{key}.json", json.dumps(facts).encode()))


def _member(name: str, content: bytes) -> tuple[tarfile.TarInfo, io.BytesIO]:
    info = tarfile.TarInfo(name)  # owner 0, time 0: equal input gives equal bytes
    info.size = len(content)
    return info, io.BytesIO(content)


def _finish(options: PrepareOptions, kind: str, names: list[str], seconds: float) -> PrepareSummary:
    table = pa.concat_tables([pq.read_table(options.out / "parts" / f"{name}.parquet") for name in names])
    splits, reasons = table["split"].to_pylist(), table["reason"].to_pylist()
    clips = Counter(split for split, reason in zip(splits, reasons, strict=True) if reason is None)
    bad = Counter(reason for reason in reasons if reason is not None)
    total = sum(path.stat().st_size for path in (options.out / "shards").glob("*.tar"))
    bad_rows = table.filter(pa.compute.is_valid(table["reason"])).select(["key", "source", "reason", "detail"]).to_pylist()
    counts = Counter(splits)
    notes = []
    for path in [options.source] if options.source.is_file() else sorted(options.source.glob("results_*.csv")):
        official, split = OFFICIAL_COUNTS.get(path.name), path.stem.rpartition("_")[2]
        if official is not None and counts[split] != official:
            notes.append(f"{path.name}: {counts[split]:,} rows, the official file has {official:,}")
    try:
        write_index(options.out, table)
        write_atomic(options.out / "bad_clips.jsonl", "".join(json.dumps(row) + "\n" for row in bad_rows))
        facts = {"format": kind, "clips": dict(clips), "bad": dict(bad), "bytes": total, "options": options.fingerprint()}
        write_atomic(options.out / "dataset.json", json.dumps(facts, indent=1) + "\n")
    except OSError as error:
        raise DataError(
            f"cannot write the index to {options.out}: {error}. Free space, then the same command continues"
        ) from error
    return PrepareSummary(dict(clips), dict(bad), total, seconds, notes=tuple(notes))


class _Progress:
    """done/total, bad, clips/s, ETA: one line on a terminal, a line every 10 s elsewhere."""

    def __init__(self, total: int, on: bool) -> None:
        self._total, self._on = total, on
        self._done = self._bad = 0
        self._start = self._shown = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def add(self, done: int, bad: int) -> None:
        self._done += done
        self._bad += bad
        now = time.monotonic()
        if self._on and now - self._shown >= (0.2 if self._terminal else 10):
            self._shown = now
            rate = self._done / max(now - self._start, 1e-9)
            left = duration((self._total - self._done) / max(rate, 1e-9))
            text = f"{self._done:,}/{self._total:,} clips  bad {self._bad:,}  {rate:.0f} clips/s  ETA {left}"
            print(f"\r\033[K{text}" if self._terminal else text, end="" if self._terminal else "\n", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._on and self._terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
