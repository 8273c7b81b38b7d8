#!/usr/bin/env python3
"""Check a prepared folder and show what is in it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import indent, shorten
from typing import TYPE_CHECKING, Annotated, Literal

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tyro.conf import Positional, arg

from allinone.common.command_line import parse, run_command
from allinone.common.errors import DataError, InputError
from allinone.common.object_storage import require_local
from allinone.common.tables import plain_table

if TYPE_CHECKING:
    from allinone.data.config import ClipConfig, DataConfig
    from allinone.data.loading.batch import Batch
    from allinone.pretrain.config import PretrainConfig

DESCRIPTION = """\
Check a prepared folder and show what is in it.

Compares the index with the tars (offsets, sizes, members), hashes every file and decodes random
ones completely. Writes samples.png, random samples as the model gets them (from the same code as
training), and distributions.png. --run or --recipe takes frames, resolution, text length and
augmentation of a training; without them, samples have 3 frames, 224 px and 40 tokens. Exit code 1:
something is damaged."""
VIEWS = {"train": "training", "eval": "evaluation"}
WIDEST = 60
"""Characters of a caption that are printed."""
MAX_PRINTED = 50
"""Problems that are printed; further ones are counted."""


@dataclass(frozen=True)
class CheckOptions:
    """Options of the command."""

    folder: Positional[Annotated[Path, arg(metavar="DIR")]]
    """Folder written by tools/prepare.py."""
    out: Path | None = None
    """Folder of the pictures; None: check/ in the prepared folder."""
    quick: bool = False
    """Leave out the hashes, which read every byte."""
    decodes: int = 64
    """Random files to decode completely."""
    split: str | None = None
    """Split of the samples; None: the first."""
    view: Literal["train", "eval"] = "train"
    """Samples as training or as evaluation sees them."""
    samples: int = 12
    """Samples in the picture."""
    run: Path | None = None
    """Folder of a pre-training run: show what it reads."""
    recipe: str | None = None
    """Name of a recipe of `allinone train`: show what it would read."""
    frames: int | None = None
    """Frames per sample; None: those of --run or --recipe, else 3."""
    image_size: int | None = None
    """Side of the crop, pixels; None: that of --run or --recipe, else 224."""
    text_len: int | None = None
    """Tokens per caption; None: those of --run or --recipe, else 40."""
    max_pixels: int | None = None
    """Most pixels of a frame or image; 0: any number; None: as the folder was prepared."""
    seed: int = 0
    """Of the choice of samples and files."""
    workers: int = 2
    """Threads for hashes, processes for decoding."""


def _training(options: CheckOptions) -> tuple[ClipConfig, DataConfig]:
    """Shape of the samples and options of the data path.

    Raises:
        InputError: Both --run and --recipe are given, or there is no such run or recipe.
    """
    from allinone.data.config import ClipConfig, DataConfig

    clip, loader = ClipConfig(3, 224, 40), DataConfig()
    if options.run is not None or options.recipe is not None:
        config = _pretraining(options)
        clip, loader = config.clip(config.model_config()), config.loader
    given = {
        "num_frames": options.frames,
        "image_size": options.image_size,
        "max_text_len": options.text_len,
    }
    clip = replace(clip, **{name: value for name, value in given.items() if value is not None})
    return clip, replace(loader, workers=0, dali_threads=1, max_bad_share=1.0)


def _pretraining(options: CheckOptions) -> PretrainConfig:
    from allinone.common.command_line.config_file import config_from_file
    from allinone.pretrain.config import NO_VAL, PretrainConfig
    from allinone.pretrain.own_data import resolve
    from allinone.pretrain.recipes import RECIPES

    if options.run is not None and options.recipe is not None:
        raise InputError("--run and --recipe exclude each other; give one of them")
    if options.run is not None:
        config: PretrainConfig = config_from_file(options.run / "run.json", PretrainConfig)
        return config
    if options.recipe not in RECIPES:
        raise InputError(f"no recipe {options.recipe!r}; recipes: {', '.join(RECIPES)}")
    recipe = RECIPES[options.recipe][1]
    data = (str(options.folder),)
    # an empty folder of the run: nothing that was recorded for another data set counts
    recipe = replace(recipe, data=data, val=(NO_VAL,), out=options.folder / "check")
    return resolve(recipe, "cpu", 1)


def _batch(options: CheckOptions, split: str, clip: ClipConfig, config: DataConfig) -> Batch:
    import torch

    from allinone.data import EvalSet, TrainStream
    from allinone.data.config import DatasetSpec

    spec = DatasetSpec(options.folder, split)
    device = torch.device("cpu")
    size = options.samples
    if options.view == "eval":
        evaluation = EvalSet(spec, clip, config)
        return next(iter(evaluation.batches(rank=0, world=1, batch_size=size, device=device)))
    stream = TrainStream([spec], clip, config, seed=options.seed)
    batches = stream.batches(first=0, rank=0, world=1, micro_batch=size, device=device)
    # closing the generator ends its reading threads
    try:
        return next(batches)
    finally:
        batches.close()


def _show(options: CheckOptions) -> list[str]:
    """Print the table and write the pictures; return the problems with the samples."""
    import numpy as np

    from allinone.data.captions import caption_lengths
    from allinone.data.index import choose_split, dataset_facts
    from allinone.data.prepare.verify import decode_limits, distributions
    from allinone.tools.inspection.pictures import contact_sheet, plot_distributions

    out = options.out or options.folder / "check"
    name = options.folder.name
    facts = dataset_facts(options.folder)
    split = choose_split(options.folder, facts["clips"], options.split)
    values = distributions(options.folder)
    print(f"  {'':<22}{'min':>10}{'5 %':>10}{'median':>10}{'95 %':>10}{'max':>12}")
    for title, data in values.items():
        finite = data[np.isfinite(data)]
        if finite.size < data.size:
            print(f"  {title:<22}{data.size - finite.size:>10,} values are not finite")
        if finite.size:
            low, five, middle, most, high = np.percentile(finite, [0, 5, 50, 95, 100])
            row = f"{low:>10,.4g}{five:>10,.4g}{middle:>10,.4g}{most:>10,.4g}{high:>12,.6g}"
            print(f"  {title:<22}{row}")
    stored, clips = facts["files"][0], sum(facts["clips"].values())
    title = f"{name}: {clips:,} clips in {stored:,} files"
    plot_distributions(out / "distributions.png", values, title)
    clip, config = _training(options)
    config = replace(config, max_pixels=decode_limits(facts, options.max_pixels).max_pixels)
    batch = _batch(options, split, clip, config)
    lengths = caption_lengths(options.folder, split).describe(clip.max_text_len)
    print(f"  split {split}: {lengths}")
    print(indent(plain_table(_token_rows(batch)), "  "))
    title = f"{name}, split {split}: {len(batch)} samples as {VIEWS[options.view]} sees them"
    contact_sheet(out / "samples.png", batch, config, title)
    print(f"  pictures: {out / 'samples.png'}, {out / 'distributions.png'}")
    return [f"{bad.dataset} {bad.clip} cannot be used: {bad.reason}" for bad in batch.bad]


def _token_rows(batch: Batch) -> list[tuple[str, ...]]:
    """A row per sample: what the model reads, tokens of the caption, how many are cut, the clip."""
    from allinone.data.text import Tokenizer

    tokenizer = Tokenizer()
    rows: list[tuple[str, ...]] = [("caption as the model reads it", "tokens", "cut", "clip")]
    for row, (name, caption) in enumerate(zip(batch.clips, batch.captions, strict=True)):
        total, read = len(tokenizer.ids(caption)) + 2, int(batch.text_mask[row].sum())
        kept = tokenizer.decode(batch.text_ids[row, 1 : read - 1].tolist())
        rows.append((shorten(kept, WIDEST), f"{total}", f"{total - read or '–'}", name))
    return rows


def _problems(options: CheckOptions) -> list[str]:
    from allinone.data.prepare.verify import check

    problems = check(
        options.folder,
        hashes=not options.quick,
        decodes=options.decodes,
        seed=options.seed,
        workers=max(1, options.workers),
        max_pixels=options.max_pixels,
        progress=True,
    )
    try:
        return problems + _show(options)
    except (DataError, OSError, ValueError, IndexError) as error:
        # without other findings, the error itself is what the user must see
        if not problems:
            raise
        # a damaged index can break anything that reads it
        return [*problems, f"no pictures: {error}"]


def _run(options: CheckOptions) -> int:
    require_local(options.folder, "the prepared folder")
    try:
        problems = _problems(options)
    except OSError as error:
        raise DataError(f"cannot check {options.folder}: {error}") from error
    for problem in problems[:MAX_PRINTED]:
        print(f"  damaged: {problem}")
    if len(problems) > MAX_PRINTED:
        print(f"  … and {len(problems) - MAX_PRINTED:,} more")
    print(f"  {len(problems):,} damaged" if problems else "  no damage found")
    return 1 if problems else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; exit code 1: something is damaged."""
    arguments = sys.argv[1:] if argv is None else argv
    options = parse(CheckOptions, arguments, prog="allinone check", description=DESCRIPTION)
    return run_command(lambda: _run(options))


if __name__ == "__main__":
    sys.exit(main())
