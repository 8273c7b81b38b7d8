"""Source → shards + index.

A preparation can be continued: a shard whose tar and fragment exist is not made again, unless
--retry asks for it; dataset.json is written last. Any number of parts may work on one folder at the
same time, each on its own shards (--part i/n); --merge then makes the index. A run without parts
does both.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

from allinone.common.atomic_io import TEMPORARY, write_atomic
from allinone.common.errors import FULL, DataError
from allinone.common.formatting import size
from allinone.common.object_storage import remote_url
from allinone.common.processes import refuse_to_start_again
from allinone.data.index import dataset_facts
from allinone.data.prepare.decode_cost import slow_to_decode
from allinone.data.prepare.existing import RETRY, record_retry
from allinone.data.prepare.listing import LISTING, PLAN, Counts, open_listing, read_plan
from allinone.data.prepare.locks import claim_part
from allinone.data.prepare.merge import DatasetCounts, merge_fragments, write_facts
from allinone.data.prepare.options import PrepareOptions, shard_names
from allinone.data.prepare.remote_out import RemoteOut
from allinone.data.prepare.shards import ShardCounts, make_shards
from allinone.data.sources import FORMATS, excluded_ids

NAMED = 10
"""Ids of --exclude that a warning names."""

__all__ = ["PrepareOptions", "PrepareSummary", "prepare"]


@dataclass(frozen=True)
class PrepareSummary:
    """Result of a preparation."""

    clips: dict[str, int]
    """Good clips per split."""
    bad: dict[str, int]
    """Bad files and captions per reason."""
    kept_share: float
    """Share of the listed clips that can be used."""
    bytes: int
    """Size of all shards."""
    seconds: float
    done_before: bool = False
    """Whether there was nothing to do."""
    part: str | None = None
    """What this part of an array has made. There is no index yet: `clips` is empty, and `bad`
    counts files of the shards that it made."""
    official: tuple[str, ...] = ()
    """Comparison with the official numbers, one sentence per split."""
    warnings: tuple[str, ...] = ()
    """What may be a mistake of the user, a sentence each."""

    @property
    def bad_share(self) -> float:
        """Share of the listed clips that cannot be used."""
        return 1 - self.kept_share


def prepare(options: PrepareOptions, progress: bool = True) -> PrepareSummary:
    """Prepare a source; called again after an interruption, it continues.

    Args:
        options: What to prepare.
        progress: Whether to show the progress.

    Returns:
        What the folder holds, or what this part has made.

    Raises:
        DataError: The options, the source or the storage cannot be used.
    """
    refuse_to_start_again()
    start = time.monotonic()
    options = options.resolved()
    remote = None
    if (url := remote_url(options.out)) is not None:
        remote = RemoteOut(url)
        remote.pull()
        options = replace(options, out=remote.local)
    if (options.out / "dataset.json").exists():
        _require_same_options(options)
        if _is_complete(options):
            return _summary(options.out)
    _claim_folder(options)
    with claim_part(options):
        return _prepare(options, progress, start, remote)


def _prepare(
    options: PrepareOptions, progress: bool, start: float, remote: RemoteOut | None
) -> PrepareSummary:
    """Prepare into a claimed folder.

    Args:
        options: Resolved options.
        progress: Whether to show the progress.
        start: Of time.monotonic.
        remote: The object storage that `options.out` stands for.
    """
    try:
        # From here on, loaders refuse the folder until its index agrees with its shards again.
        (options.out / "dataset.json").unlink(missing_ok=True)
        if remote:
            remote.begin()
        record_retry(options)
        made, counts = ShardCounts(), None
        if not options.merge:
            listing = open_listing(options)
            counts = listing.counts
            if remote:
                remote.push_plan()
            made = make_shards(options, listing, progress, remote.push_shard if remote else None)
        if options.part is not None:
            return _part_summary(options.part, made, time.monotonic() - start)
        counts = counts or _counts(options)
        merged = merge_fragments(options.out, shard_names(options, counts))
        # Only now: an interrupted retry finds by this file's time which shards it has made.
        (options.out / RETRY).unlink(missing_ok=True)
        official = _compare_official(options, counts, merged)
        warnings = [*_unmatched_exclusions(options), *slow_to_decode(options.out)]
        write_facts(options.out, merged, options.format, options.fingerprint(), official, warnings)
        (options.out / LISTING).unlink(missing_ok=True)
        if remote:
            remote.finish()
    except OSError as error:
        free = size(shutil.disk_usage(options.out).free)
        full = error.errno in FULL
        what = "write below" if full else f"read {options.source} or write below"
        remedy = "Free space, then" if full else "Once the storage works again,"
        raise DataError(
            f"cannot {what} {options.out}: {error} ({free} free). {remedy} the same command"
            " continues"
        ) from error
    return replace(_summary(options.out), seconds=time.monotonic() - start, done_before=False)


def _counts(options: PrepareOptions) -> Counts:
    plan = options.out / PLAN
    return read_plan(plan) if plan.exists() else open_listing(options).counts


def _part_summary(part: tuple[int, int], made: ShardCounts, seconds: float) -> PrepareSummary:
    bad = made.bad.total()
    text = (
        f"part {part[0]} of {part[1]}: {made.shards} shards made of {made.files:,} files,"
        f" {made.files - bad:,} of them good; when all parts are done, run with --merge"
    )
    return PrepareSummary({}, dict(made.bad), 1 - bad / max(made.files, 1), 0, seconds, part=text)


def _summary(out: Path) -> PrepareSummary:
    """Summary of a finished folder."""
    facts = dataset_facts(out)
    counts = DatasetCounts(
        facts["clips"],
        facts["bad"],
        tuple(facts["files"]),
        tuple(facts["captions"]),
        facts["bytes"],
    )
    return PrepareSummary(
        counts.clips,
        counts.bad,
        counts.kept_share,
        counts.bytes,
        0.0,
        done_before=True,
        official=tuple(facts["official"]),
        warnings=tuple(facts.get("warnings", ())),
    )


def _require_same_options(options: PrepareOptions) -> None:
    path = options.out / "prepare.json"
    try:
        old = json.loads(path.read_bytes())
        if not isinstance(old, dict):
            raise TypeError("it is not a dictionary")
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} is damaged ({error}), so that the folder's options are unknown; give another"
            " --out, or delete the file and the folder's shards/ and parts/"
        ) from error
    new = json.loads(json.dumps(options.fingerprint()))  # tuples become lists, as in the file
    # "videos" may differ: the media may have been moved, or searched in a wrong folder
    changes = [
        f"{'format' if key == 'kind' else key}: {old.get(key)} → {new[key]}"
        for key in new
        # earlier versions do not record every option
        if key != "videos" and old.get(key, new[key]) != new[key]
    ]
    if changes:
        raise DataError(
            f"{options.out} was prepared with other options ({'; '.join(changes)}); give the same"
            " ones, or another --out"
        )


def _claim_folder(options: PrepareOptions) -> None:
    """Create the folder, or check that it belongs to the same preparation."""
    marker = options.out / "prepare.json"
    foreign = options.out.exists() and any(
        not path.name.startswith(TEMPORARY) for path in options.out.iterdir()
    )
    # The marker is checked after listing the folder: another part may have begun in between, and
    # the marker is the first file that it writes.
    if marker.exists():
        _require_same_options(options)
    elif foreign:
        raise DataError(
            f"{options.out} is not empty and holds no prepared data; give another --out"
        )
    try:
        # Parts of an array start together: each writes the same bytes, and a rename replaces the
        # file of another part without a moment in which it is missing or incomplete.
        write_atomic(marker, json.dumps(options.fingerprint(), indent=1) + "\n")
        for folder in ("shards", "parts"):
            (options.out / folder).mkdir(exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write to {options.out}: {error}") from error


def _is_complete(options: PrepareOptions) -> bool:
    """Whether a finished folder needs nothing: no new index, no lost shard, no retry."""
    if options.merge or options.retry:
        return False
    plan = options.out / PLAN
    if not plan.exists():  # a copy of the files that training needs
        return True
    # one listing instead of a look-up per shard: HowTo100M has 12,000, YT-Temporal 60,000
    tars = {path.name for path in (options.out / "shards").glob("*.tar")}
    names = shard_names(options, read_plan(plan))
    return tars.issuperset(f"{name}.tar" for name in names)


def _unmatched_exclusions(options: PrepareOptions) -> list[str]:
    """A sentence if ids of --exclude match no row: a misspelled id is in the training data."""
    ids = excluded_ids(options.exclude, options.source, options.format)
    missing = set(ids)
    if ids:
        with (options.out / "bad_clips.jsonl").open(encoding="utf-8") as file:
            for line in file:
                missing.discard(json.loads(line)["key"].partition("/")[2])
    if not missing:
        return []
    first = ", ".join(sorted(missing)[:NAMED])
    more = f" and {len(missing) - NAMED:,} more" if len(missing) > NAMED else ""
    return [
        f"--exclude {options.exclude}: {len(missing):,} of {len(ids):,} ids match no row and"
        f" exclude nothing: {first}{more}"
    ]


def _compare_official(
    options: PrepareOptions, counts: dict[str, int], merged: DatasetCounts
) -> list[str]:
    """Compare what is listed with the official numbers.

    Args:
        options: Resolved options.
        counts: Listed rows per split.
        merged: What was stored.

    Returns:
        A line per split of a known file, or for the complete source.
    """
    known = FORMATS[options.format]
    here = {
        "videos": f"{sum(counts.values()):,} videos listed, {merged.files[0]:,} of them stored",
        "captions": (
            f"{merged.captions[1]:,} captions of the stored videos, {merged.captions[0]:,} of them"
            " good"
        ),
    }
    lines = [
        f"{here[what]}; officially about {number:,}"
        for what, number in known.official_totals.items()
    ]
    for path in known.files(options.source) if known.official else ():
        for split, (rows, exact) in known.official.get(path.name, {}).items():
            listed = counts.get(split, 0)
            # 2 %: a number that is not exact was rounded in its paper or page, like 2.5 M
            close = listed == rows if exact else abs(listed - rows) <= 0.02 * rows
            lines.append(
                f"{path.name}, {split}: {listed:,} rows, {'as' if close else 'but'} officially"
                f" {'' if exact else 'about '}{rows:,}"
            )
    return lines
