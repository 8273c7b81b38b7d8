"""Source → shards + index. Resumable: a shard whose tar and fragment stand is not made again, unless --retry asks; dataset.json is written last.

Any number of parts may work on one folder at the same time, each on its own shards (--part i/n); --merge then makes the index. An unparted run
is both.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import sys
import tarfile
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from data.bounds import COUNT, POSITIVE, Bounds, require
from data.encode import Encoding
from data.errors import FULL, DataError
from data.files import TEMPORARY, atomic_path, content_hash, write_atomic
from data.index import LAYOUT, Clip, Video, dataset_facts
from data.listing import Listing
from data.merge import Merged, bad_files, fragment_paths, merge_fragments, write_facts, write_fragment
from data.probe import Limits, ProbePool
from data.processes import refuse_to_start_again
from data.sources import FORMATS, ReadOptions, Row, detect, excluded_ids, read
from data.units import duration, size
from data.work import Found, Task, worker

NOTHING_FOUND = 1000
"""Files missing one after the other, and none found, after which the folder of the media must be a wrong one."""
WRITING = 2
"""Shards that wait to be written while the next ones are decoded."""
RETRIED = ("missing", "timeout", "killed", "decoder_crashed", "unreadable")
"""Reasons that may lie outside the file."""


@dataclass(frozen=True)
class PrepareOptions:
    """What to prepare and how. None stands for the format's own default: short clips, or videos of minutes to hours."""

    source: Path
    out: Path
    kind: str = "auto"
    videos: Path | None = None
    names: str | None = None
    exclude: Path | None = None
    shard_clips: int | None = None
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    min_frames: int = 2
    max_duration_s: float | None = None
    timeout_s: float | None = None
    codec: str | None = None
    """Encode anew (data.encode.CODECS); None copies the stream, unless short_side or gop is given."""
    short_side: int | None = None
    gop: int | None = None
    part: tuple[int, int] | None = None
    """(i, n): make the i-th of n shares of the shards, i from 1, and no index."""
    merge: bool = False
    """Make the index only, anew where it stands."""
    retry: tuple[str, ...] = ()
    """Make those shards anew that hold files which are bad for one of these reasons."""

    def resolved(self) -> PrepareOptions:
        """With the format named, and its defaults. DataError for values that cannot be."""
        kind = detect(self.source) if self.kind == "auto" else self.kind
        if not self.source.exists():
            raise DataError(f"no such source: {self.source}")
        if self.part is not None and not 1 <= self.part[0] <= self.part[1]:
            raise DataError(f"--part {self.part[0]}/{self.part[1]}: i must be from 1 to n")
        try:
            require(self, COUNT, ("workers", "shard_clips", "min_frames", "gop"))
            require(self, Bounds(16), ("short_side",))
            require(self, POSITIVE, ("max_duration_s", "timeout_s"))
        except ValueError as error:
            raise DataError(str(error)) from error
        long = FORMATS[kind].narrated
        return replace(
            self,
            kind=kind,
            shard_clips=self.shard_clips or (100 if long else 1000),
            max_duration_s=self.max_duration_s or (36_000.0 if long else 3600.0),
            timeout_s=self.timeout_s or (1800.0 if long else 60.0),
        )

    @property
    def encoding(self) -> Encoding | None:
        """How files are encoded anew, None where they are copied."""
        if (self.codec, self.short_side, self.gop) == (None, None, None):
            return None
        return Encoding(self.codec or "h264", self.short_side, self.gop or Encoding.gop)

    def fingerprint(self) -> dict[str, Any]:
        """The options that change the result."""
        values = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}
        ignored = ("out", "workers", "timeout_s", "part", "merge", "retry")
        return {"layout": LAYOUT, **{key: value for key, value in values.items() if key not in ignored}}


@dataclass(frozen=True)
class PrepareSummary:
    """What came out."""

    clips: dict[str, int]
    """Good clips per split."""
    bad: dict[str, int]
    """Bad files and captions per reason."""
    kept_share: float
    bytes: int
    seconds: float
    done_before: bool = False
    part: str | None = None
    """Of an array: what this part did. There is no index yet, and the counts are empty."""
    official: tuple[str, ...] = ()

    @property
    def bad_share(self) -> float:
        """Share of the listed clips that cannot be used."""
        return 1 - self.kept_share


def prepare(options: PrepareOptions, progress: bool = True) -> PrepareSummary:
    """Prepare a source; raises DataError for what a user can mend. Run again after any interruption: it continues."""
    refuse_to_start_again()
    start = time.monotonic()
    options = options.resolved()
    if (options.out / "dataset.json").exists():
        _check_same(options)
        if _stands(options):
            return _done(options.out)
    _claim(options)
    try:
        (options.out / "dataset.json").unlink(missing_ok=True)
        listing = Listing(options.source, partial(_rows, options), options.out / "plan.json")
        made = _Made() if options.merge else _make_shards(options, listing, progress)
        if options.part is not None:
            text = (
                f"part {options.part[0]} of {options.part[1]}: {made.shards} shards made of {made.files:,} files, "
                f"{made.files - made.bad.total():,} of them good; when all parts are done, run with --merge"
            )
            kept = 1 - made.bad.total() / max(made.files, 1)
            return PrepareSummary({}, dict(made.bad), kept, 0, time.monotonic() - start, part=text)
        counts = listing.counted()
        merged = merge_fragments(options.out, _shard_names(options, counts))
        (options.out / RETRY).unlink(missing_ok=True)
        official = _official(options, counts, merged)
        write_facts(options.out, merged, options.kind, options.fingerprint(), official)
    except OSError as error:
        free = size(shutil.disk_usage(options.out).free)
        what = "write below" if error.errno in FULL else f"read {options.source} or write below"
        remedy = "Free space, then" if error.errno in FULL else "When the storage is well again,"
        raise DataError(f"cannot {what} {options.out}: {error} ({free} free). {remedy} the same command continues") from error
    return replace(_done(options.out), seconds=time.monotonic() - start, done_before=False)


def _done(out: Path) -> PrepareSummary:
    facts = dataset_facts(out)
    merged = Merged(facts["clips"], facts["bad"], tuple(facts["files"]), tuple(facts["captions"]), facts["bytes"])
    return PrepareSummary(
        merged.clips, merged.bad, merged.kept_share, merged.bytes, 0.0, done_before=True, official=tuple(facts["official"])
    )


def _check_same(options: PrepareOptions) -> None:
    old, new = json.loads((options.out / "prepare.json").read_text()), json.loads(json.dumps(options.fingerprint()))
    # the media may have been moved, or looked for in a wrong place
    changes = [f"{key}: {old.get(key)} → {new[key]}" for key in new if key != "videos" and old.get(key) != new[key]]
    if changes:
        raise DataError(
            f"{options.out} was prepared with other options ({'; '.join(changes)}); give the same ones, or another --out"
        )


def _claim(options: PrepareOptions) -> None:
    marker = options.out / "prepare.json"
    foreign = options.out.exists() and any(not path.name.startswith(TEMPORARY) for path in options.out.iterdir())
    if marker.exists():  # looked for after the folder was: another part may have begun it meanwhile, and the marker comes first
        _check_same(options)
    elif foreign:
        raise DataError(f"{options.out} is not empty and holds no prepared data; give another --out")
    try:
        write_atomic(marker, json.dumps(options.fingerprint(), indent=1) + "\n")
        for folder in ("shards", "parts"):
            (options.out / folder).mkdir(exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write to {options.out}: {error}") from error


def _rows(options: PrepareOptions) -> Iterator[Row]:
    exclude = excluded_ids(options.exclude, options.source, options.kind)
    return read(options.source, options.kind, ReadOptions(options.videos, options.names, exclude))


def _shard_names(options: PrepareOptions, counts: dict[str, int]) -> list[str]:
    clips = options.shard_clips or 1
    return [f"{split}-{number:05d}" for split, rows in counts.items() for number in range(-(-rows // clips))]


def _shards(rows: Iterator[Row], clips: int) -> Iterator[tuple[str, list[Row]]]:
    """Fixed chunks of each split, in source order: the same source gives the same shards."""
    waiting: dict[str, list[Row]] = {}
    numbers: dict[str, int] = {}
    for row in rows:
        members = waiting.setdefault(row.split, [])
        members.append(row)
        if len(members) == clips:
            number = numbers[row.split] = numbers.get(row.split, -1) + 1
            yield f"{row.split}-{number:05d}", waiting.pop(row.split)
    for split, members in waiting.items():
        yield f"{split}-{numbers.get(split, -1) + 1:05d}", members


@dataclass
class _Made:
    """What one run has done."""

    shards: int = 0
    files: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    """Files by reason."""


class _Shard:
    """A shard in the making."""

    def __init__(self, name: str, rows: list[Row]) -> None:
        self.name, self.rows = name, rows
        self.reasons = {number: (row.reason, row.detail) for number, row in enumerate(rows) if row.reason is not None}
        self.found: dict[int, Found] = {}

    @property
    def whole(self) -> bool:
        """Whether every file has been looked at."""
        return len(self.reasons) + len(self.found) == len(self.rows)


def _make_shards(options: PrepareOptions, listing: Listing, progress: bool) -> _Made:
    """All shards of this part that do not stand yet. Workers go on to the next shards while the last files of one are decoded, which may take them
    half an hour, and while it is written."""
    limits = Limits(options.min_frames, options.max_duration_s or 0.0, options.timeout_s or 0.0)
    standing, leftovers = _standing(options.out)
    _begin_retry(options)
    show, made = _Progress(listing, (options.part or (1, 1))[1], progress), _Made()
    places: dict[int, tuple[_Shard, int]] = {}
    whole: deque[_Shard] = deque()
    writing: deque[Future[None]] = deque()
    media = _Media(options, found=bool(standing))
    listing.count_beside()
    pool = ProbePool(options.workers, limits, worker)
    writer = ThreadPoolExecutor(1)

    def tasks() -> Iterator[Task]:
        numbers = itertools.count()
        for name, rows in _shards_of_part(options, listing):
            if name in standing and not _to_retry(options, name, rows):
                show.skip(len(rows))
                continue
            # of a run that was killed; and no fragment stands beside a tar that it does not describe
            for path in (*leftovers.get(name, ()), *fragment_paths(options.out, name)):
                path.unlink(missing_ok=True)
            shard = _Shard(name, rows)
            show.add(len(shard.reasons), len(shard.reasons))
            for reason, detail in shard.reasons.values():
                if reason == "missing":
                    media.lost(detail)
            wanted = [number for number in range(len(rows)) if number not in shard.reasons]
            if not wanted:
                whole.append(shard)
                write(WRITING)
            for number in wanted:
                places[next(numbers)] = shard, number
                yield _task(options, name, number, rows[number])

    def write(limit: int) -> None:
        while whole and media.found:
            shard = whole.popleft()
            made.shards += 1
            made.files += len(shard.rows)
            made.bad.update(str(reason) for reason, _ in shard.reasons.values())
            writing.append(writer.submit(_write_shard, options, shard))
        while len(writing) > limit:
            writing.popleft().result()

    try:
        for task, reason, result in pool.map(tasks()):
            shard, number = places.pop(task)
            if reason is None:
                shard.found[number] = result
            else:
                shard.reasons[number] = (reason, str(result))
            show.add(1, int(reason is not None), 0 if reason else len(shard.found[number].cuts) or 1)
            if shard.whole:
                whole.append(shard)
            if reason == "missing":
                media.lost(result)
                media.check()
            else:
                media.found = True
            write(WRITING)
        media.end()
        write(0)
    finally:
        pool.close()
        listing.close()
        writer.shutdown(cancel_futures=True)
        show.end()
    return made


def _shards_of_part(options: PrepareOptions, listing: Listing) -> Iterator[tuple[str, list[Row]]]:
    turn, parts = options.part or (1, 1)
    names = None if listing.counts is None else set(_shard_names(options, listing.counts))
    for ordinal, (name, rows) in enumerate(_shards(listing.rows(), options.shard_clips or 1)):
        listing.look()
        if names is not None and name not in names:  # the end of the list would tell as well, after all the work
            raise DataError(
                f"{options.source} lists more than {listing.counts}, as it did when {options.out} was begun; prepare it into another --out"
            )
        if ordinal % parts == turn - 1:
            yield name, rows


RETRY = "retry.json"
"""The reasons of a retry that goes on. What is younger than this file has been made anew already, by a run that was interrupted."""


class _Media:
    """Whether the media are where they are looked for: a wrong folder, or one that is not mounted, would make every clip bad for good."""

    def __init__(self, options: PrepareOptions, found: bool) -> None:
        self.found = found or bool(options.retry)
        """Any file; before that, no shard is written."""
        self._options, self._missing, self._first = options, 0, ""
        root = options.videos or (options.source if options.source.is_dir() else options.source.parent) / "videos"
        self._root = root if _holds_something(root) else None

    def check(self) -> None:
        """DataError where the folder of the videos, which held something at the start, does not any more."""
        if self._root is not None and not _holds_something(self._root):
            raise DataError(
                f"{self._root} has become empty: is the storage still mounted here? When it is, the same command continues"
            )

    def lost(self, detail: object) -> None:
        """A file is missing. DataError after NOTHING_FOUND of them."""
        self._missing += 1
        self._first = self._first or str(detail)
        if self._missing >= NOTHING_FOUND:
            self._refuse()

    def end(self) -> None:
        """After the last file. DataError where all of the source's are missing; a small part may have drawn the missing ones."""
        if self._missing and self._options.part is None:
            self._refuse()
        self.found = True

    def _refuse(self) -> None:
        if not self.found:
            raise DataError(
                f"none of the first {self._missing:,} files that {self._options.source} lists is there (first: {self._first}), and nothing was "
                "written of them. Is the storage mounted here, and does --videos name the right folder?"
            )


def _holds_something(folder: Path) -> bool:
    try:
        return next(folder.iterdir(), None) is not None
    except OSError:
        return False


def _standing(out: Path) -> tuple[frozenset[str], dict[str, list[Path]]]:
    """Shards whose tar and fragments stand, and unfinished files by shard. Each folder is listed once: it may hold a hundred thousand files."""
    tars, fragments, leftovers = set[str](), set[str](), dict[str, list[Path]]()
    for folder, names in (("shards", tars), ("parts", fragments)):
        for path in (out / folder).iterdir():
            if path.name.startswith(TEMPORARY):
                leftovers.setdefault(path.name.removeprefix(TEMPORARY).partition(".")[0], []).append(path)
            else:
                names.add(path.name)
    whole = (name.removesuffix(".tar") for name in tars)
    return frozenset(name for name in whole if all(path.name in fragments for path in fragment_paths(out, name))), leftovers


def _begin_retry(options: PrepareOptions) -> None:
    reasons, marker = sorted(options.retry), options.out / RETRY
    if reasons and not (marker.exists() and json.loads(marker.read_text()) == reasons):
        write_atomic(marker, json.dumps(reasons) + "\n")


def _to_retry(options: PrepareOptions, name: str, rows: list[Row]) -> bool:
    """Whether a shard that stands holds what --retry names, and was not made anew for it already."""
    if not options.retry:
        return False
    fragment = fragment_paths(options.out, name)[1]
    if fragment.stat().st_mtime_ns > (options.out / RETRY).stat().st_mtime_ns:
        return False
    lost = {key: reason for key, reason in bad_files(options.out, name).items() if reason in options.retry}
    here = (row for row in rows if row.reason is None and lost.get(f"{row.split}/{row.id}") == "missing")
    return bool(set(lost.values()) - {"missing"}) or any(path.is_file() for row in here for path in (row.path, *row.others))


def _stands(options: PrepareOptions) -> bool:
    """Whether a finished folder needs nothing: no index is to be made anew, no shard is gone, none is to be tried again."""
    if options.merge or options.retry:
        return False
    counts, tars = json.loads((options.out / "plan.json").read_text()), {path.name for path in (options.out / "shards").iterdir()}
    return tars.issuperset(f"{name}.tar" for name in _shard_names(options, counts))


def _write_shard(options: PrepareOptions, shard: _Shard) -> None:
    """Tar first, fragment second: a fragment stands only beside a whole tar."""
    out, name, found = options.out, shard.name, shard.found
    videos: list[Video] = []
    clips: list[Clip] = []
    with (
        atomic_path(out / "shards" / f"{name}.tar") as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for number, row in enumerate(shard.rows):
            if number not in found:
                reason, detail = shard.reasons[number]
                captions = list(row.captions)
                clips.append(Clip(f"{row.split}/{row.id}", row.split, captions, row.source, reason=reason, detail=detail))
                continue
            cuts = clips_of(row, found[number], len(videos))
            video = Video(f"shards/{name}.tar", row.source, **found[number].columns)
            _add_video(archive, f"{name}-{number:05d}", row, found[number], video, cuts)
            videos.append(video)
            clips += cuts
    for number in found:
        _unfinished(out, name, number).unlink(missing_ok=True)
    write_fragment(out, name, videos, clips)


def _unfinished(out: Path, name: str, number: int) -> Path:
    """Where the number-th file of a shard is encoded to."""
    return out / "shards" / f"{TEMPORARY}{name}.{number:05d}"


def _task(options: PrepareOptions, name: str, number: int, row: Row) -> Task:
    target = _unfinished(options.out, name, number)
    return Task((row.path, *row.others), row.offset, row.size, row.extension, row.narration, options.encoding, target)


def clips_of(row: Row, found: Found, video: int) -> list[Clip]:
    """A file's clips: itself with all its captions, or a window for each line of its narration."""
    key = f"{row.split}/{row.id}"
    if row.narration is None:
        return [Clip(key, row.split, list(row.captions), row.source, video)]
    return [
        Clip(
            f"{key}#{number}",
            row.split,
            [cut.caption],
            row.source,
            video,
            None if cut.reason else cut.first,
            None if cut.reason else cut.last,
            cut.reason,
            cut.detail,
        )
        for number, cut in enumerate(found.cuts)
    ]


def _add_video(archive: tarfile.TarFile, key: str, row: Row, found: Found, video: Video, clips: list[Clip]) -> None:
    with found.path.open("rb") as file:
        file.seek(found.offset)
        content = file.read() if found.size is None else file.read(found.size)
    archive.addfile(*_member(f"{key}.{found.extension}", content))
    video.size = len(content)
    video.hash = content_hash(content)
    video.offset = archive.offset - -(-len(content) // 512) * 512  # the archive stands behind the padded content now
    good = [clip for clip in clips if clip.reason is None]
    facts: dict[str, Any] = {"key": f"{row.split}/{row.id}", "width": video.width, "height": video.height, "frames": video.frames}
    if row.narration is None:
        archive.addfile(*_member(f"{key}.txt", row.captions[0].encode()))
        facts["captions"] = row.captions
    else:
        facts["clips"] = [[clip.first_frame, clip.last_frame, *clip.captions] for clip in good]
    archive.addfile(*_member(f"{key}.json", json.dumps(facts).encode()))


def _member(name: str, content: bytes) -> tuple[tarfile.TarInfo, io.BytesIO]:
    info = tarfile.TarInfo(name)  # owner 0, time 0: equal input gives equal bytes
    info.size = len(content)
    return info, io.BytesIO(content)


def _official(options: PrepareOptions, counts: dict[str, int], merged: Merged) -> list[str]:
    """What is listed against the official numbers, one line per split of a known file, or for the whole of a source."""
    lines = []
    known = FORMATS[options.kind]
    here = {
        "videos": f"{sum(counts.values()):,} videos listed, {merged.files[0]:,} of them stored",
        "captions": f"{merged.captions[1]:,} captions of the stored videos, {merged.captions[0]:,} of them good",
    }
    lines += [f"{here[what]}; officially about {number:,}" for what, number in known.whole.items()]
    for path in known.files(options.source) if known.official else ():
        for split, (rows, exact) in known.official.get(path.name, {}).items():
            listed = counts.get(split, 0)
            close = listed == rows if exact else abs(listed - rows) <= 0.02 * rows
            relation = "as" if close else "but"
            lines.append(f"{path.name}, {split}: {listed:,} rows, {relation} officially {'' if exact else 'about '}{rows:,}")
    return lines


class _Progress:
    """done/total, bad, clips/s, ETA: one line on a terminal, a line every 10 s elsewhere."""

    def __init__(self, listing: Listing, parts: int, on: bool) -> None:
        self._listing, self._parts, self._on = listing, parts, on
        self._done = self._bad = self._clips = self._skipped = 0
        self._start = self._shown = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def skip(self, done: int) -> None:
        """Files of an earlier run: they count as done, not for the rate."""
        self._skipped += done

    def add(self, done: int, bad: int, clips: int = 0) -> None:
        self._done += done
        self._bad += bad
        self._clips += clips
        now = time.monotonic()
        if self._on and now - self._shown >= (0.2 if self._terminal else 10):
            self._shown = now
            seconds, ready = max(now - self._start, 1e-9), self._done + self._skipped
            rate = self._done / seconds
            text = f"bad {self._bad:,}  {rate:.3g} files/s  {self._clips / seconds:.3g} clips/s"
            if (counts := self._listing.look()) is None:
                text = f"{ready:,} files  {text}  the list is still being counted"
            else:
                total = -(-sum(counts.values()) // self._parts)
                text = f"{ready:,}/{total:,} files  {text}  ETA {duration(max(total - ready, 0) / max(rate, 1e-9))}"
            print(f"\r\033[K{text}" if self._terminal else text, end="" if self._terminal else "\n", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._on and self._terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
