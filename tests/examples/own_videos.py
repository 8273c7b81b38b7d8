"""From a folder of videos to a search page, with the commands that a user types; by hand.

    python -m tests.examples.own_videos --out /tmp/own
    python -m tests.examples.own_videos --out /tmp/own --browser      # and the page in Chromium

Clips of data/demo under other names are somebody's folder. It prepares, trains, fine-tunes on
questions, answers, indexes and searches, prints each command's seconds, and ends where one fails.
OUT/terminal.txt keeps what the commands print. Search must give the R@K of the training's own
evaluation. --browser needs playwright and the extra `app`, and keeps screenshots in OUT/pictures.

Run to its end with --clips 60 --steps 10 --init-from runs/demo/train --browser: 69 s of CPU time,
18 minutes on a busy machine. The default of 600 clips from random weights was not timed.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import resource
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from allinone.common.paths import ROOT

DEMO = ROOT / "data" / "demo"
QUERY = "woman with dark skin tone"
QUESTION = "what is the skin tone?"
SMALL = "--size nano --image-size 64"
"""A model that a CPU trains in minutes, as in `make demo`; without it, `own` trains tiny at 224."""
LR, LR_OF_TRAINED = "2e-3", "5e-4"
"""Learning rates of random weights, the demo's, and of weights that --init-from names."""
SMALL_TASK = "--epochs 10 --lr 1e-3 --global-batch 16 --micro-batch 16 --eval-batch 32"


def commands(steps: int, init_from: Path | None) -> list[str]:
    """What a user types. Shorter by `steps` (0: as the recipes say), or from other weights."""
    more = f" --steps {steps}" if steps else ""
    weights = f" --lr {LR}"
    if init_from is not None:
        weights = f" --lr {LR_OF_TRAINED} --init-from {shlex.quote(str(init_from.absolute()))}"
    return [
        "allinone prepare my.csv --out prepared/mine --val-share 0.1",
        f"allinone train own --data prepared/mine --out runs/mine {SMALL}{weights}{more}",
        "allinone report runs/mine",
        "allinone finetune own --task qa --annotations qa.csv --media holiday"
        f" --checkpoint runs/mine --out runs/qa {SMALL_TASK}{more}",
        "allinone predict answer --checkpoint runs/qa --videos questions.csv --out answers.html",
        "allinone index holiday --checkpoint runs/mine --out index --precision fp32",
        f'allinone search "{QUERY}" --index index',
    ]


def write_folder(out: Path, clips: int) -> dict[str, str]:
    """Write the first clips of the demo as holiday/clip-0001.mp4, …, and the three tables.

    Returns:
        File → caption.
    """
    with (DEMO / "attributes.csv").open(encoding="utf-8") as file:
        listed = [row for row in csv.DictReader(file) if row["split"] == "train"]
    captions, questions = {}, []
    (out / "holiday").mkdir(parents=True)
    # those with a skin tone, so that questions have an answer
    chosen = sorted(listed, key=lambda row: not row["tones"])[:clips]
    for number, row in enumerate(chosen, start=1):
        video = next((DEMO / "videos").glob(f"*/{row['videoid']}.mp4"))
        name = f"clip-{number:04d}.mp4"
        shutil.copy(video, out / "holiday" / name)
        captions[name] = row["name"]
        if row["tones"].endswith("skin tone"):
            questions.append((name, QUESTION, row["tones"].removesuffix(" skin tone")))
    tables = {
        "my.csv": [("path", "caption"), *((f"holiday/{n}", text) for n, text in captions.items())],
        "qa.csv": [("path", "question", "answer"), *questions],
        "questions.csv": [
            ("path", "question"),
            *((f"holiday/{name}", question) for name, question, _ in questions[:12]),
        ],
    }
    for table, rows in tables.items():
        with (out / table).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
    return captions


def cpu_seconds() -> float:
    """CPU time of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(command: str, out: Path, log: Path) -> tuple[float, float]:
    """Run one command in `out`; print and keep its output.

    Returns:
        Its seconds, and those of CPU time: on a busy machine the first says little.
    """
    print(f"\n$ {command}", flush=True)
    start, before = time.monotonic(), cpu_seconds()
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(command)],
        cwd=out,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - start
    # of a progress bar, its last state
    lines = [line.rpartition("\r")[2] for line in done.stdout.split("\n")]
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {command}\n" + "\n".join(lines) + "\n")
    print("\n".join(lines[-12:]))
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode} of: {command}\n{done.stdout}")
    return seconds, cpu_seconds() - before


def check_recall(out: Path, captions: dict[str, str]) -> dict[str, float]:
    """Compare R@K of the index among the clips of val with the evaluation of the run's best step.

    Raises:
        SystemExit: They differ.
    """
    from allinone.common.retrieval_metrics import retrieval_metrics
    from allinone.data.index import Index
    from allinone.tools.inspection.checkpoints import load_checkpoint
    from allinone.tools.video_index.search import Searcher
    from allinone.tools.video_index.store import VideoIndex

    loaded = load_checkpoint(out / "runs" / "mine", "cpu")
    searcher = Searcher(loaded, VideoIndex(out / "index"))
    val = Index(out / "prepared" / "mine", "val")
    names = [Path(val[item]["source"]).name for item in range(len(val))]
    place = {searcher.index.row(int(row)).path: k for k, row in enumerate(searcher.index.clips)}
    columns = [place[name] for name in names]
    scores = torch.stack(
        [
            torch.from_numpy(searcher.scores(searcher.embed(captions[name])))[columns]
            for name in names
        ]
    )
    found = retrieval_metrics(scores)
    step = int(re.findall(r"step (\d+)", loaded.what)[0])
    lines = (out / "runs" / "mine" / "history.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    recorded = next(
        record["evaluation"]
        for record in records
        if record["step"] == step and "evaluation" in record
    )
    for name, value in found.items():
        expected = recorded.get(f"mine_val/text_to_video_{name}")
        print(f"{name}: {value:.2f} by search, {expected} by the evaluation of step {step}")
        if expected is not None and abs(value - expected) > 1e-6:
            raise SystemExit(f"search and evaluation differ in {name}")
    return found


@contextmanager
def page(out: Path) -> Iterator[str]:
    """The page of the index, on a free port; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["allinone", "app", "--index", "index", "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=out,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()  # the address, once everything is loaded
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a folder that does not exist")
    parser.add_argument("--clips", type=int, default=600)
    parser.add_argument("--steps", type=int, default=0, help="of both trainings; 0: the recipes'")
    parser.add_argument("--init-from", type=Path, help="weights of the size nano at 64 px")
    parser.add_argument("--browser", action="store_true")
    options = parser.parse_args()
    out: Path = options.out.absolute()
    captions = write_folder(out, options.clips)
    log = out / "terminal.txt"
    typed = commands(options.steps, options.init_from)
    seconds = {command: run(command, out, log) for command in typed}
    check_recall(out, captions)
    if options.browser:
        from tests.tools.video_index import browser_check

        start, before = time.monotonic(), cpu_seconds()
        with page(out) as url:
            browser_check.main([url, "--query", QUERY, "--out", str(out / "pictures")])
        used = time.monotonic() - start, cpu_seconds() - before
        seconds["the page in a browser"] = used
    print("\n seconds  of CPU time")
    for command, (wall, cpu) in seconds.items():
        print(f"{wall:8.1f}{cpu:8.1f}  {command}")
    totals = [sum(column) for column in zip(*seconds.values(), strict=True)]
    print(f"{totals[0]:8.1f}{totals[1]:8.1f}  in all")


if __name__ == "__main__":
    main()
