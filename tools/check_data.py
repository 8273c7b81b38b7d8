#!/usr/bin/env python3
"""Check a prepared folder and show what is in it.

Index against tars (offsets, sizes, members), every file's hash, random files decoded to their end.
Writes samples.png, random samples exactly as the model gets them (the batches are training's own),
and distributions.png. Exit code: 0 all is well, 1 something is damaged, 2 an error that you can
mend.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch

from allinone.common.errors import DataError
from allinone.data import EvalSet, TrainStream
from allinone.data.config import ClipConfig, DataConfig, DatasetSpec
from allinone.data.loading.batch import Batch
from allinone.data.loading.index import dataset_facts
from allinone.data.prepare.verify import check, distributions, require_splits
from allinone.tools.inspection.pictures import contact_sheet, plot_distributions

VIEWS = {"train": "training", "eval": "evaluation"}
SHOWN = 50
"""Damages that are printed; the rest is counted."""


def _batch(options: argparse.Namespace, split: str, config: DataConfig) -> Batch:
    clip, spec, device = (
        ClipConfig(options.frames, options.image_size, options.text_len),
        DatasetSpec(options.folder, split),
        torch.device("cpu"),
    )
    if options.view == "eval":
        evaluation = EvalSet(spec, clip, config)
        return next(
            iter(evaluation.batches(rank=0, world=1, batch_size=options.samples, device=device))
        )
    stream = TrainStream([spec], clip, config, seed=options.seed)
    batches = stream.batches(first=0, rank=0, world=1, micro_batch=options.samples, device=device)
    try:
        return next(batches)
    finally:
        batches.close()


def _show(options: argparse.Namespace) -> list[str]:
    """Pictures and the table; returns what went wrong with the samples."""
    out: Path = options.out or options.folder / "check"
    facts, split = dataset_facts(options.folder), require_splits(options.folder, options.split)
    values = distributions(options.folder)
    print(f"  {'':<22}{'least':>10}{'5 %':>10}{'median':>10}{'95 %':>10}{'most':>12}")
    for name, data in values.items():
        if data.size:
            low, five, middle, most, high = np.percentile(data, [0, 5, 50, 95, 100])
            print(
                f"  {name:<22}{low:>10,.4g}{five:>10,.4g}{middle:>10,.4g}{most:>10,.4g}{high:>12,.6g}"
            )
    stored, clips = facts["files"][0], sum(facts["clips"].values())
    plot_distributions(
        out / "distributions.png",
        values,
        f"{options.folder.name}: {clips:,} clips in {stored:,} files",
    )
    config = DataConfig(workers=0, dali_threads=1, max_bad_share=1.0)
    batch = _batch(options, split, config)
    contact_sheet(
        out / "samples.png",
        batch,
        config,
        f"{options.folder.name}, split {split}: {len(batch)} samples as {VIEWS[options.view]} sees"
        " them",
    )
    print(f"  pictures: {out / 'samples.png'}, {out / 'distributions.png'}")
    return [f"{bad.dataset} {bad.clip} cannot be used: {bad.reason}" for bad in batch.bad]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/check_data.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="folder written by tools/prepare.py")
    add("--out", type=Path, metavar="DIR", help="where the pictures go (default: DIR/check)")
    add("--quick", action="store_true", help="leave out the hashes, which read every byte")
    add(
        "--decodes",
        type=int,
        default=64,
        help="random files decoded to their end (default: %(default)s)",
    )
    add("--split", help="split that the samples are from (default: the first)")
    add(
        "--view",
        choices=tuple(VIEWS),
        default="train",
        help="samples as training or as evaluation sees them",
    )
    add("--samples", type=int, default=12, help="samples in the picture (default: %(default)s)")
    add("--frames", type=int, default=3, help="frames per sample (default: %(default)s)")
    add(
        "--image-size",
        type=int,
        default=224,
        help="side of the crop, pixels (default: %(default)s)",
    )
    add("--text-len", type=int, default=40, help="tokens per caption (default: %(default)s)")
    add("--seed", type=int, default=0, help="which samples and files (default: %(default)s)")
    add(
        "--workers",
        type=int,
        default=2,
        help="threads for hashes, processes for decoding (default: %(default)s)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    options = _parser().parse_args(argv)
    terminal = sys.stderr.isatty()

    def progress(text: str) -> None:
        if terminal:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    try:
        problems = check(
            options.folder,
            hashes=not options.quick,
            decodes=options.decodes,
            seed=options.seed,
            workers=max(1, options.workers),
            progress=progress,
        )
        progress("")
        try:
            problems += _show(options)
        except (
            DataError,
            OSError,
            ValueError,
            IndexError,
        ) as error:  # what a damaged index leads to
            if not problems:
                raise
            problems.append(f"no pictures: {error}")
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for problem in problems[:SHOWN]:
        print(f"  damaged: {problem}")
    if len(problems) > SHOWN:
        print(f"  … and {len(problems) - SHOWN:,} more")
    print(f"  {len(problems):,} damaged" if problems else "  all is well")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
