#!/usr/bin/env python3
"""Evaluate a checkpoint on several retrieval benchmarks without training, and print one table.

    tools/zero_shot.py benchmarks.yaml --checkpoint runs/webvid-howto --out runs/zero-shot

benchmarks.yaml names the benchmarks with their folders, relative to the file, and other options by
their dotted names:

    msrvtt_retrieval: {annotations: MSRVTT, media: MSRVTT/videos, variant: 9k}
    vatex_retrieval: {annotations: VATEX, media: VATEX/clips, views: 3, loader.workers: 4}

Each benchmark has its results and predictions in OUT/NAME, the table is OUT/zero_shot.md. Repeating
the command takes finished batches from the cache.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import tyro

from allinone.common.access import require_writable
from allinone.common.atomic_io import write_atomic
from allinone.common.command_line import parse, run_command
from allinone.common.console import setup_logging
from allinone.common.errors import InputError
from allinone.common.options import with_values
from allinone.common.validation import COUNT, require
from allinone.engine.distributed import launch
from allinone.finetune.benchmark import Benchmark
from allinone.finetune.benchmarks import benchmark_names, load_benchmark
from allinone.finetune.config import FinetuneConfig

if TYPE_CHECKING:
    from allinone.finetune.evaluation.results import EvaluationResult

log = logging.getLogger("allinone.tools.zero_shot")  # not __name__, which is __main__ in a script

PATHS = ("annotations", "media")
COLUMNS = ("R@1", "R@5", "R@10", "MdR")
Job = tuple[Benchmark, FinetuneConfig]


@dataclass(frozen=True)
class ZeroShotOptions:
    """Options of the zero-shot table."""

    benchmarks: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="BENCHMARKS.yaml")]
    """YAML file: name of a benchmark → annotations, media and other options."""
    checkpoint: Path
    """Source of the weights, as for `allinone finetune`."""
    out: Path
    """Folder of the results; each benchmark gets a folder inside."""
    frames: int = 3
    """Frames per view, unless the file gives another number."""
    views: int = 1
    """Views per clip, unless the file gives another number."""
    dual_softmax: bool = False
    """Add scores with a dual softmax, in columns of their own; see `allinone finetune
    msrvtt_retrieval --help`."""
    device: str = "auto"
    """Device: auto, cpu or cuda."""

    def __post_init__(self) -> None:
        require(self, COUNT, ("frames", "views"))


def jobs(options: ZeroShotOptions) -> list[Job]:
    """The evaluations that the file asks for.

    Raises:
        InputError: The file is missing or damaged, or names an unknown benchmark or option, or one
            that is no retrieval.
    """
    import yaml

    try:
        content = yaml.safe_load(options.benchmarks.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{options.benchmarks} cannot be read: {error}") from error
    if not isinstance(content, dict) or not content:
        raise InputError(
            f"{options.benchmarks} holds no benchmarks; write for example\n"
            "  msrvtt_retrieval: {annotations: DIR, media: DIR}"
        )
    return [_job(options, str(name), entry) for name, entry in content.items()]


def _job(options: ZeroShotOptions, name: str, entry: Any) -> Job:
    place = f"{options.benchmarks}, {name}"
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in PATHS):
        raise InputError(f"{place}: give {' and '.join(PATHS)}, two folders")
    benchmark = load_benchmark(name)
    if benchmark.task != "retrieval":
        known = [n for n in benchmark_names() if load_benchmark(n).task == "retrieval"]
        raise InputError(f"{place} is no retrieval benchmark; choose among {', '.join(known)}")
    values = {
        "frames": options.frames,
        "views": options.views,
        "checkpoint": options.checkpoint,
        "out": options.out / name,
        "eval_only": True,
        "task.dual_softmax": options.dual_softmax,
        "train.device": options.device,
        **entry,
        **({"cache": Path(entry["cache"])} if "cache" in entry else {}),
        **{key: options.benchmarks.parent / Path(entry[key]).expanduser() for key in PATHS},
    }
    try:
        config = benchmark.defaults(benchmark.config, str(entry.get("variant", "")))
        return benchmark, with_values(config, values)
    except (TypeError, AttributeError) as error:
        raise InputError(f"{place}: an option cannot be used ({error})") from error


def evaluate(found: Sequence[Job], out: Path) -> list[EvaluationResult]:
    """Run all evaluations and write the table. Collective.

    Args:
        found: Benchmarks with their options.
        out: Folder of the table.
    """
    from allinone.engine.distributed.collectives import run_on_rank0
    from allinone.finetune.run import run_benchmark  # imports torch and DeepSpeed

    results = [run_benchmark(benchmark, config) for benchmark, config in found]
    text = table(results)
    run_on_rank0(lambda: write_atomic(out / "zero_shot.md", text))
    log.info("%s\nwrote %s", text, out / "zero_shot.md")
    return results


def table(results: Sequence[EvaluationResult]) -> str:
    """The results as a Markdown table, one row per benchmark and way of scoring.

    A score with a dual softmax has a row of its own, which says so.
    """
    heads = [f"{way} {name}" for way in ("t2v", "v2t") for name in COLUMNS]
    lines = [
        "| " + " | ".join(["benchmark", "scored by", "items", *heads]) + " |",
        "| " + " | ".join(["---"] * (3 + len(heads))) + " |",
    ]
    for result in results:
        items = f"{result.items:,}"
        if result.official_items is not None:
            items += ", official" if result.official else f" of {result.official_items:,}"
        zero_shot = "" if result.zero_shot else " (fine-tuned on it)"
        for prefix, scored in (("", "cosine"), ("dual-softmax/", "dual softmax")):
            names = [f"{prefix}{way}/{name}" for way in ("t2v", "v2t") for name in COLUMNS]
            if not set(names) & result.scores.keys():
                continue
            values = [
                f"{result.scores[name].value:.1f}" if name in result.scores else "–"
                for name in names
            ]
            title = " ".join(filter(None, (result.benchmark, result.variant))) + zero_shot
            lines.append("| " + " | ".join([title, scored, items, *values]) + " |")
    settings = {(r.frames, r.views, r.image_size, r.checkpoint) for r in results}
    lines += [
        "",
        *(
            f"{views} × {frames} frames of {size} pixels, {checkpoint}"
            for frames, views, size, checkpoint in sorted(settings)
        ),
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    arguments = launch.without_launcher_arguments(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: _run(arguments))


def _run(argv: Sequence[str]) -> int:
    options: ZeroShotOptions = parse(
        ZeroShotOptions, argv, prog="tools/zero_shot.py", description=__doc__ or ""
    )
    found = jobs(options)
    require_writable(options.out)
    rank = launch.find_rank_info(os.environ).rank
    setup_logging(terminal=rank == 0)
    log.info("loading PyTorch and DeepSpeed (about 10 s) …")
    return launch.main(lambda: evaluate(found, options.out), found[0][1].train)


if __name__ == "__main__":
    sys.exit(main())
