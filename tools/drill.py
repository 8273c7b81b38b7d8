#!/usr/bin/env python3
"""Fault drills: short trainings in which one thing goes wrong.

    python tools/drill.py [--only kill hang] [--ranks 2] [--out DIR] [--json]

Each drill runs pretrain/train.py (nano, 32 pixels, 14 steps of embedded clips) on this machine's
CPU with two ranks, causes its fault, runs the same command again where it ended, and compares
losses, clips and final weights with an undisturbed run, bit by bit. The exit code is 0 only if
every drill met its expectations. About 3 minutes on two idle cores.
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.common.command_line import parse, run_command
from allinone.common.console import setup_logging
from allinone.common.errors import InputError
from allinone.common.formatting import duration
from allinone.tools.cluster.drill_faults import DRILLS
from allinone.tools.cluster.drill_site import (
    LIMIT_S,
    STEPS,
    DrillOutcome,
    DrillSite,
    prepare_clips,
)
from allinone.tools.cluster.rank_server import preload

log = logging.getLogger("allinone.tools.drill")
Fault = Literal["kill", "hang", "nan", "corrupt", "shard", "disk", "sigterm"]


@dataclass(frozen=True)
class DrillOptions:
    """Options of tools/drill.py."""

    only: tuple[Fault, ...] = ()
    """Run only these drills; all by default."""
    ranks: int = 2
    """Ranks of each training, at least 2."""
    out: Path | None = None
    """Empty folder that keeps all runs and logs; without it they are deleted."""
    seed: int = 0
    """Seed of the random victims and times."""
    json: bool = False
    """Print JSON instead of a table."""
    markdown: bool = False
    """Print the Markdown table (the default)."""

    def check(self) -> None:
        """Raise InputError for values that cannot be used."""
        if self.ranks < 2:
            raise InputError(
                f"--ranks must be at least 2, got {self.ranks}: a fault of one rank must be noticed"
                " by another"
            )
        if self.json and self.markdown:
            raise InputError("give either --json or --markdown, not both")
        if self.out is not None and self.out.exists() and any(self.out.iterdir()):
            raise InputError(f"--out {self.out} is not empty; give a new folder")


def drill(names: Sequence[str], out: Path, world: int, seed: int) -> list[DrillOutcome]:
    """Run the undisturbed training, then drills.

    Args:
        names: Which drills.
        out: Empty folder.
        world: Ranks of each training.
        seed: Seed of the random victims and times.

    Raises:
        RuntimeError: The clips cannot be prepared, or the undisturbed training fails.
    """
    # ranks share this machine's cores
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", DS_ACCELERATOR="cpu")
    start = time.monotonic()
    data = prepare_clips(out)
    preload()
    log.info("imports and clips: %s", duration(time.monotonic() - start))
    site = DrillSite(out, data, world, random.Random(seed), out / "undisturbed")
    ranks = site.start(site.reference)
    if any(ranks.finish(LIMIT_S)):
        raise RuntimeError(f"the undisturbed run failed: {ranks.output()[-3000:]}")
    site = replace(site, reference_s=time.monotonic() - ranks.started)
    log.info("undisturbed run: %s, %d steps, %d ranks", duration(site.reference_s), STEPS, world)
    found = []
    for name in names:
        begin = time.monotonic()
        # a generator per drill: --only must not change the victims of the others
        outcome = _one_drill(name, replace(site, random=random.Random(f"{seed} {name}")))
        result = f"WRONG: {'; '.join(outcome.wrong)}" if outcome.wrong else "as expected"
        log.info("%s: %s (%s)", name, result, duration(time.monotonic() - begin))
        found.append(outcome)
    return found


def _one_drill(name: str, site: DrillSite) -> DrillOutcome:
    """Run one drill; an error becomes its outcome, so that the other drills still run."""
    try:
        return DRILLS[name](site, site.out / name)
    except (RuntimeError, OSError) as error:
        problem = f"{type(error).__name__}: {error}"
        return DrillOutcome(name, str(DRILLS[name].__doc__), None, "", None, "", [problem])


def table(found: Sequence[DrillOutcome]) -> str:
    """The outcomes as a Markdown table."""
    lines = [
        "| fault | detected after | how | steps lost | resumed run equal | as expected |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in found:
        after = "–" if one.detected_s is None else duration(one.detected_s)
        fine = "yes" if not one.wrong else "no: " + "; ".join(one.wrong)
        cells = (one.fault, after, one.noticed_by, str(one.steps_lost), one.equal, fine)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _run(argv: Sequence[str]) -> int:
    options = parse(DrillOptions, argv, prog="tools/drill.py", description=__doc__ or "")
    options.check()
    setup_logging(stderr=True)  # stdout holds the table or the JSON
    out = options.out
    folder = Path(tempfile.mkdtemp(prefix="drill-")) if out is None else out.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    try:
        found = drill(options.only or list(DRILLS), folder, options.ranks, options.seed)
    finally:
        if out is None:
            shutil.rmtree(folder)
    if options.json:
        print(json.dumps([asdict(one) for one in found], indent=1))
    else:
        print(table(found))
    log.info("%d drills in %s", len(found), duration(time.monotonic() - start))
    return int(any(one.wrong for one in found))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    return run_command(lambda: _run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
