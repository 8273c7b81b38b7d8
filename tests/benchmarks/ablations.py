#!/usr/bin/env python3
"""Ablations at the scale of the demo: what each choice of the recipes gives, with several seeds.

    python tests/benchmarks/ablations.py --out runs/ablations [--only exchange direction]

Every run trains nano on the embedded clips, or on clips made from them, for the same number of
steps, except variants of equal compute. It differs from the experiment's first variant in one
option. Finished runs are kept: the same command continues, and --table prints what is there. The
experiments:

exchange: how frames exchange information: roll, average (nothing is exchanged), flatten, channel.
order: which patches roll: random ones (shuffled), or those of the first and last rows (raster).
wpa: word-patch alignment with the original's weight 0.1, or none.
negatives: the clips as two data sets, each with its mark in a corner. Negatives of VTM come from
    the same data set, or from any, so that the mark alone often gives the answer. Evaluated with
    pairs inside a data set.
geometry: pictures of 2.4:1 with one clip at each end and a caption that names both: squashed to a
    square, or cropped to one.
direction: every clip forwards and backwards; the caption's last word says which. Evaluated on other
    skin tones of the same figures, with that word hidden. Clips whose first and last third look
    alike are left out, because they look the same in both directions.
patch-keep: all patches, or half of them in 95 % of the steps: for the same number of steps, and for
    the same FLOPs, that is for more steps.
hard-negatives: negatives of VTM drawn uniformly, or by the similarities of VTC.
vtc: no contrastive loss, or one of weight 1. Without it, R@10 is that of untrained projections.

Scores are percentages: VTM accuracy and MLM accuracy on held-out clips, R@10 text to video by the
contrastive embeddings, and accuracy of the direction word; chance is stated. The spread is the
standard deviation over seeds; p is that of Welch's t-test against the experiment's first variant.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
from numpy.typing import NDArray

from allinone.common.atomic_io import write_atomic
from allinone.common.command_line import parse, run_command
from allinone.common.paths import ROOT
from allinone.common.tables import markdown_table

CLIPS = ROOT / "data" / "demo"
Frames = list[NDArray[np.uint8]]
BASE = {"--roll": "roll", "--patch-order": "shuffled", "--wpa": "0.1", "--vtm-negatives": "dataset"}
"""The paper's values; the demo's recipe gives the rest."""
DIRECTIONS = ("forwards", "backwards")
"""Last words of the captions of `direction`; one word piece each."""
MARKS = {"red": (220, 30, 30), "blue": (40, 60, 220)}
MOVED = 10.0
"""Least mean difference between the first and last third of a clip, levels of 255."""


MOST_SEEDS = 10
"""Seeds whose results the tables look for."""


@dataclass(frozen=True)
class Experiment:
    """Variants that differ in one option."""

    data: tuple[str, ...]
    """Names of the data sets, below OUT/data."""
    variants: dict[str, dict[str, str]]
    """Name → options; the first one is the paper's."""
    scores: tuple[str, ...] = ("vtm", "mlm", "r10")
    options: dict[str, str] | None = None
    """Options of all variants."""
    equal_compute: tuple[str, ...] = ()
    """Variants that train for the FLOPs of the first one instead of its steps."""


PATCH_KEEP = {
    "1.0": {},
    "0.5, equal steps": {"--patch-keep": "0.5"},
    "0.5, equal compute": {"--patch-keep": "0.5"},
}
EXPERIMENTS = {
    "negatives": Experiment(
        tuple(f"marked-{mark}" for mark in MARKS),
        {"within": {"--vtm-negatives": "dataset"}, "across": {"--vtm-negatives": "any"}},
        scores=("vtm", "mlm"),
    ),
    "direction": Experiment(
        ("direction",),
        {name: {"--roll": name} for name in ("roll", "average", "flatten")},
        scores=("direction", "mlm"),
        options={"--vtc": "0", "--max-text-len": "20"},
    ),
    "exchange": Experiment(
        ("clips",),
        {name: {"--roll": name} for name in ("roll", "average", "flatten", "channel")},
    ),
    "order": Experiment(
        ("clips",), {name: {"--patch-order": name} for name in ("shuffled", "raster")}
    ),
    "wpa": Experiment(("clips",), {"0.1": {}, "0": {"--wpa": "0"}}),
    "geometry": Experiment(
        ("wide",),
        {name: {"--geometry": name} for name in ("squash", "crop")},
        options={"--max-text-len": "24"},
    ),
    "hard-negatives": Experiment(
        ("clips",), {name: {"--vtm-negatives": name} for name in ("dataset", "hard")}
    ),
    "vtc": Experiment(("clips",), {"0": {"--vtc": "0"}, "1": {}}),
    "patch-keep": Experiment(("clips",), PATCH_KEEP, equal_compute=("0.5, equal compute",)),
}
TITLES = {
    "vtm": "VTM accuracy (chance 50)",
    "mlm": "MLM accuracy",
    "r10": "R@10 text → video",
    "direction": "direction word (chance 50)",
}


@dataclass(frozen=True)
class AblationOptions:
    """Options of the ablations."""

    out: Path = Path("runs/ablations")
    """Folder of the data, the runs and the results."""
    only: tuple[str, ...] = ()
    """Experiments to run; all by default."""
    seeds: int = 3
    """Seeds of each variant."""
    steps: int = 400
    """Steps of each run, of 32 clips; variants of equal compute take more."""
    jobs: int = 2
    """Runs at the same time, with one thread each."""
    table: bool = False
    """Print the results so far, and run nothing."""


@dataclass(frozen=True)
class EmbeddedClip:
    """An embedded clip."""

    number: int
    split: str
    name: str
    base: str
    path: Path


def embedded_clips() -> list[EmbeddedClip]:
    """The clips of the demo's splits train and val."""
    with (CLIPS / "attributes.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] in ("train", "val")]
    folders = {path.stem: path for path in (CLIPS / "videos").glob("*/*.mp4")}
    return [
        EmbeddedClip(
            int(row["videoid"]),
            row["split"],
            row["name"],
            row["base_name"],
            folders[row["videoid"]],
        )
        for row in rows
    ]


def decode(clip: EmbeddedClip) -> Frames:
    """All frames, RGB [128, 128, 3]."""
    import av

    with av.open(str(clip.path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def encode(path: Path, frames: Frames) -> None:
    """Write frames as H.264 without a visible loss, 12 frames per second."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12, options={"crf": "14", "preset": "fast"})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


Made = Iterator[tuple[str, str, Frames]]
"""(split, caption, frames)"""


def marked(colour: str) -> Made:
    """Half of the clips, with a square of this colour in the upper left corner."""
    for clip in embedded_clips():
        if clip.number % len(MARKS) == list(MARKS).index(colour):
            frames = decode(clip)
            for picture in frames:
                picture[4:28, 4:28] = MARKS[colour]
            yield clip.split, clip.name, frames


def wide() -> Made:
    """A clip at each end of a white picture of 306 x 128."""
    clips = [clip for clip in embedded_clips() if len(clip.name.split()) <= 4]
    random = np.random.default_rng(0)
    for split, number in (("train", 1200), ("val", 240)):
        part = [clip for clip in clips if clip.split == split] or clips
        for _ in range(number):
            left, right = (part[index] for index in random.choice(len(part), 2, replace=False))
            pairs = zip(decode(left), decode(right), strict=False)
            frames = []
            for one, other in pairs:
                picture = np.full((128, 306, 3), 255, np.uint8)
                picture[:, :128], picture[:, -128:] = one, other
                frames.append(picture)
            yield split, f"{left.name} and {right.name}", frames


def direction() -> Made:
    """Each clip forwards and backwards, where the two differ."""
    for clip in embedded_clips():
        frames = decode(clip)
        sixth = len(frames) // 6
        first, last = frames[sixth].astype(int), frames[-1 - sixth].astype(int)
        if abs(first - last).mean() >= MOVED:
            for way, shown in zip(DIRECTIONS, (frames, frames[::-1]), strict=True):
                yield clip.split, f"{clip.name} {way}", shown


MAKERS: dict[str, Callable[[], Made]] = {
    **{f"marked-{colour}": functools.partial(marked, colour) for colour in MARKS},
    "wide": wide,
    "direction": direction,
}


def make_data(out: Path, name: str) -> None:
    """Prepare a data set below OUT/data, unless it is there."""
    prepared, source = out / "data" / name, CLIPS
    if (prepared / "index.parquet").exists():
        return
    if name != "clips":
        source = out / "sources" / name
        rows: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
        for number, (split, caption, frames) in enumerate(MAKERS[name](), 1):
            encode(source / "videos" / "p" / f"{number}.mp4", frames)
            row = {"videoid": number, "contentUrl": "", "duration": "", "page_dir": "p"}
            rows[split].append(row | {"name": caption})
        for split, lines in rows.items():
            with (source / f"results_{name}_{split}.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, list(lines[0]))
                writer.writeheader()
                writer.writerows(lines)
        print(f"{name}: {len(rows['train'])} training and {len(rows['val'])} held-out clips")
    command = [sys.executable, "tools/prepare.py", str(source), "--out", str(prepared)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


@dataclass(frozen=True)
class AblationRun:
    """One run: a variant with a seed."""

    out: Path
    experiment: str
    variant: str
    seed: int
    steps: int

    @property
    def folder(self) -> Path:
        """The run's folder. Variants with the same data and options share it."""
        key = json.dumps([EXPERIMENTS[self.experiment].data, sorted(self.options().items())])
        digest = hashlib.sha256(key.encode()).hexdigest()[:12]
        return self.out / f"{digest}-{self.steps}-seed{self.seed}"

    @property
    def result(self) -> Path:
        """File of the scores; exists once the run is done."""
        return self.folder / "scores.json"

    def options(self) -> dict[str, str]:
        """Options that the variant gives."""
        experiment = EXPERIMENTS[self.experiment]
        return BASE | (experiment.options or {}) | experiment.variants[self.variant]

    def command(self) -> list[str]:
        """The training command."""
        options = {
            **self.options(),
            "--out": str(self.folder),
            "--steps": str(self.steps),
            "--seed": str(self.seed),
            "--workers": "0",
            "--save-every": str(self.steps),
            "--eval-every": "0",
        }
        names = EXPERIMENTS[self.experiment].data
        data = [f"{self.out / 'data' / name}:train" for name in names]
        flat = [word for pair in options.items() for word in pair]
        return [
            sys.executable,
            "pretrain/train.py",
            "demo",
            *flat,
            "--data",
            *data,
            "--val",
            "none",
        ]


@functools.cache
def flops_per_step(name: str, variant: str) -> float:
    """Training FLOPs of a clip in a variant, averaged over the steps."""
    from allinone.pretrain.cost import training_cost
    from allinone.pretrain.train import parse as parse_run

    options = AblationRun(Path("runs"), name, variant, seed=0, steps=1).options()
    config, _ = parse_run(["demo", *(word for pair in options.items() for word in pair)])
    return training_cost(config).total


def ablation_run(out: Path, name: str, variant: str, seed: int, steps: int) -> AblationRun:
    """A run of `steps` steps, or of as many as have the FLOPs of the experiment's first variant.

    Args:
        out: Folder of the ablations.
        name: Experiment.
        variant: One of its variants.
        seed: Seed of the run.
        steps: Steps of the experiment's first variant.
    """
    experiment = EXPERIMENTS[name]
    if variant in experiment.equal_compute:
        first = next(iter(experiment.variants))
        steps = round(steps * flops_per_step(name, first) / flops_per_step(name, variant))
    return AblationRun(out, name, variant, seed, steps)


def train_and_score(job: AblationRun) -> dict[str, float]:
    """Train, evaluate and record a job."""
    log = job.folder.with_suffix(".log")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    with log.open("w") as file:
        done = subprocess.run(
            job.command(), cwd=ROOT, env=env, stdout=file, stderr=file, check=False
        )
    if done.returncode:
        raise RuntimeError(f"{job.folder.name} ended with exit code {done.returncode}, see {log}")
    scores = evaluate_job(job)
    write_atomic(job.result, json.dumps(scores) + "\n")
    return scores


def evaluate_job(job: AblationRun) -> dict[str, float]:
    """Scores of a finished run on the held-out clips, averaged over the data sets."""
    import torch

    from allinone.data import EvalSet
    from allinone.data.config import DatasetSpec
    from allinone.engine import newest_weights
    from allinone.pretrain.config import PretrainConfig
    from allinone.pretrain.evaluation import evaluate
    from allinone.tools.inspection.checkpoints import load_checkpoint

    torch.set_num_threads(1)
    experiment = EXPERIMENTS[job.experiment]
    model = load_checkpoint(newest_weights(job.folder), "cpu").model
    config = parse(PretrainConfig, ["--config", str(job.folder / "run.json")], prog="ablations")
    found: dict[str, list[float]] = {name: [] for name in experiment.scores}
    for name in experiment.data:
        spec = DatasetSpec(job.out / "data" / name, "val")
        items = EvalSet(spec, config.clip(model.config), config.loader)
        output = evaluate(model, items, torch.device("cpu"))
        measured = {"vtm": output.accuracy("vtm"), "mlm": output.accuracy("mlm")}
        if "r10" in found:
            measured["r10"] = output.retrieval_table()["text_to_video"]["R@10"]
        if "direction" in found:
            measured["direction"] = direction_accuracy(model, items)
        for score in found:
            found[score].append(measured[score])
    return {score: statistics.fmean(values) for score, values in found.items()}


def direction_accuracy(model: Any, items: Any) -> float:
    """Percent of the clips whose hidden direction word scores above the other one."""
    import torch

    from allinone.data.text import Tokenizer

    tokenizer, correct, total = Tokenizer(), 0, 0
    ways = torch.tensor([tokenizer.ids(way)[0] for way in DIRECTIONS])
    with torch.inference_mode():
        for batch in items.batches(rank=0, world=1, batch_size=64, device=torch.device("cpu")):
            rows = torch.arange(len(batch))
            place = batch.text_mask.sum(1) - 2  # the last word; [SEP] follows
            right = batch.text_ids[rows, place]
            hidden = batch.text_ids.index_put((rows, place), torch.tensor(tokenizer.mask_id))
            text = model(batch.pixels, hidden, batch.text_mask).text
            scores = model.mlm_head(text[rows, place])[:, ways]
            correct += int((ways[scores.argmax(1)] == right).sum())
            total += len(batch)
    return 100 * correct / total


def cell(values: Sequence[float], first: Sequence[float]) -> str:
    """Mean, spread and the p-value of the difference from the first variant's values."""
    if not values:
        return "-"
    text = f"{statistics.fmean(values):.1f}"
    if len(values) < 2:
        return text
    text += f" ± {statistics.stdev(values):.1f}"
    if values is first or len(first) < 2 or not statistics.stdev([*values, *first]):
        return text
    from scipy import stats

    p = stats.ttest_ind(values, first, equal_var=False).pvalue
    return f"{text}, p {'< 0.01' if p < 0.01 else f'{p:.2f}'}"


def table(out: Path, steps: int, names: Iterable[str]) -> str:
    """All finished runs as Markdown, one table per experiment."""
    parts = []
    for name in names:
        experiment = EXPERIMENTS[name]
        rows = [[name, *(TITLES[score] for score in experiment.scores), "seeds"]]
        first: dict[str, list[float]] = {}
        for variant in experiment.variants:
            jobs = [ablation_run(out, name, variant, seed, steps) for seed in range(MOST_SEEDS)]
            results = [json.loads(job.result.read_text()) for job in jobs if job.result.exists()]
            found = {score: [result[score] for result in results] for score in experiment.scores}
            first = first or found
            cells = [cell(found[score], first[score]) for score in experiment.scores]
            label = variant if jobs[0].steps == steps else f"{variant}, {jobs[0].steps} steps"
            rows.append([label, *cells, str(len(results))])
        parts.append(markdown_table(rows))
    return "\n\n".join(parts)


def run(options: AblationOptions) -> int:
    """Make the data, run what is missing and print the tables."""
    names = options.only or tuple(EXPERIMENTS)
    out = options.out if options.out.is_absolute() else ROOT / options.out
    if not options.table:
        for data in dict.fromkeys(data for name in names for data in EXPERIMENTS[name].data):
            make_data(out, data)
        jobs = [
            ablation_run(out, name, variant, seed, options.steps)
            for seed in range(options.seeds)  # all variants once before the next seed
            for name in names
            for variant in EXPERIMENTS[name].variants
        ]
        missing = {job.folder: job for job in jobs if not job.result.exists()}
        waiting = list(missing.values())
        print(f"{len(waiting)} of {len(jobs)} runs to do", flush=True)
        with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
            futures = {pool.submit(train_and_score, job): job for job in waiting}
            for future in as_completed(futures):
                scores = ", ".join(f"{k} {v:.1f}" for k, v in future.result().items())
                job = futures[future]
                print(f"{job.experiment} {job.variant} {job.seed}: {scores}", flush=True)
    print(table(out, options.steps, names))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    return run_command(
        lambda: run(parse(AblationOptions, arguments, prog="ablations.py", description=__doc__))
    )


if __name__ == "__main__":
    sys.exit(main())
