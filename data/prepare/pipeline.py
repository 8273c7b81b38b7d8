"""Source → shards + index. Resumable: a shard whose tar and fragment stand is not made again,
unless --retry asks; dataset.json is written last.

Any number of parts may work on one folder at the same time, each on its own shards (--part i/n);
--merge then makes the index. An unparted run is both.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from allinone.common.atomic_io import TEMPORARY, write_atomic
from allinone.common.errors import FULL, DataError
from allinone.common.formatting import size
from allinone.common.processes import refuse_to_start_again
from allinone.data.loading.index import dataset_facts
from allinone.data.prepare.existing import RETRY
from allinone.data.prepare.listing import Listing
from allinone.data.prepare.merge import Merged, merge_fragments, write_facts
from allinone.data.prepare.options import OUTSIDE, RETRIED, PrepareOptions, rows_of, shard_names
from allinone.data.prepare.shards import Made, make_shards
from allinone.data.sources import FORMATS

__all__ = ["OUTSIDE", "RETRIED", "PrepareOptions", "PrepareSummary", "prepare"]


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
    """Of an array: what this part did. There is no index yet: no clips, and what is bad are files
    of the shards that it made."""
    official: tuple[str, ...] = ()

    @property
    def bad_share(self) -> float:
        """Share of the listed clips that cannot be used."""
        return 1 - self.kept_share


def prepare(options: PrepareOptions, progress: bool = True) -> PrepareSummary:
    """Prepare a source; raises DataError for what a user can mend. Run again after any
    interruption: it continues."""
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
        listing = Listing(options.source, partial(rows_of, options), options.out / "plan.json")
        made = Made() if options.merge else make_shards(options, listing, progress)
        if options.part is not None:
            text = (
                f"part {options.part[0]} of {options.part[1]}: {made.shards} shards made of"
                f" {made.files:,} files, {made.files - made.bad.total():,} of them good; when all"
                " parts are done, run with --merge"
            )
            kept = 1 - made.bad.total() / max(made.files, 1)
            return PrepareSummary({}, dict(made.bad), kept, 0, time.monotonic() - start, part=text)
        counts = listing.counted()
        merged = merge_fragments(options.out, shard_names(options, counts))
        (options.out / RETRY).unlink(missing_ok=True)
        official = _official(options, counts, merged)
        write_facts(options.out, merged, options.kind, options.fingerprint(), official)
    except OSError as error:
        free = size(shutil.disk_usage(options.out).free)
        what = "write below" if error.errno in FULL else f"read {options.source} or write below"
        remedy = "Free space, then" if error.errno in FULL else "When the storage is well again,"
        raise DataError(
            f"cannot {what} {options.out}: {error} ({free} free). {remedy} the same command"
            " continues"
        ) from error
    return replace(_done(options.out), seconds=time.monotonic() - start, done_before=False)


def _done(out: Path) -> PrepareSummary:
    facts = dataset_facts(out)
    merged = Merged(
        facts["clips"],
        facts["bad"],
        tuple(facts["files"]),
        tuple(facts["captions"]),
        facts["bytes"],
    )
    return PrepareSummary(
        merged.clips,
        merged.bad,
        merged.kept_share,
        merged.bytes,
        0.0,
        done_before=True,
        official=tuple(facts["official"]),
    )


def _check_same(options: PrepareOptions) -> None:
    old, new = (
        json.loads((options.out / "prepare.json").read_text()),
        json.loads(json.dumps(options.fingerprint())),
    )
    # the media may have been moved, or looked for in a wrong place
    changes = [
        f"{key}: {old.get(key)} → {new[key]}"
        for key in new
        if key != "videos" and old.get(key) != new[key]
    ]
    if changes:
        raise DataError(
            f"{options.out} was prepared with other options ({'; '.join(changes)}); give the same"
            " ones, or another --out"
        )


def _claim(options: PrepareOptions) -> None:
    marker = options.out / "prepare.json"
    foreign = options.out.exists() and any(
        not path.name.startswith(TEMPORARY) for path in options.out.iterdir()
    )
    # looked for after the folder was: another part may have begun it meanwhile, and the marker
    # comes first
    if marker.exists():
        _check_same(options)
    elif foreign:
        raise DataError(
            f"{options.out} is not empty and holds no prepared data; give another --out"
        )
    try:
        write_atomic(marker, json.dumps(options.fingerprint(), indent=1) + "\n")
        for folder in ("shards", "parts"):
            (options.out / folder).mkdir(exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write to {options.out}: {error}") from error


def _stands(options: PrepareOptions) -> bool:
    """Whether a finished folder needs nothing: no index is to be made anew, no shard is gone, none
    is to be tried again."""
    if options.merge or options.retry:
        return False
    plan = options.out / "plan.json"
    if not plan.exists():  # a copy of what training needs
        return True
    tars = {path.name for path in (options.out / "shards").glob("*.tar")}
    return tars.issuperset(
        f"{name}.tar" for name in shard_names(options, json.loads(plan.read_text()))
    )


def _official(options: PrepareOptions, counts: dict[str, int], merged: Merged) -> list[str]:
    """What is listed against the official numbers, one line per split of a known file, or for the
    whole of a source."""
    lines = []
    known = FORMATS[options.kind]
    here = {
        "videos": f"{sum(counts.values()):,} videos listed, {merged.files[0]:,} of them stored",
        "captions": (
            f"{merged.captions[1]:,} captions of the stored videos, {merged.captions[0]:,} of them"
            " good"
        ),
    }
    lines += [f"{here[what]}; officially about {number:,}" for what, number in known.whole.items()]
    for path in known.files(options.source) if known.official else ():
        for split, (rows, exact) in known.official.get(path.name, {}).items():
            listed = counts.get(split, 0)
            close = listed == rows if exact else abs(listed - rows) <= 0.02 * rows
            relation = "as" if close else "but"
            lines.append(
                f"{path.name}, {split}: {listed:,} rows, {relation} officially"
                f" {'' if exact else 'about '}{rows:,}"
            )
    return lines
