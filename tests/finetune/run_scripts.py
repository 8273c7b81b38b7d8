"""Starts entry scripts as files and as __main__, each in a fork of this process: `python -m tests.finetune.run_scripts OUT NAME…`.

Each is asked for --help, then trained for two steps and evaluated on the made-up official files with a model of two tiny layers. What it printed is
in OUT/NAME.log and OUT/NAME.help, its exit codes in OUT/NAME.json, its run in OUT/NAME.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.finetune.official import WRITERS

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Script:
    """How a script is run and what must come out."""

    sample: str
    """The made-up benchmark."""
    items: int
    scores: tuple[str, ...]
    options: tuple[str, ...] = ()
    train: bool = True


QA, RETRIEVAL, CHOICE = ("accuracy", "accuracy_answerable", "coverage"), ("t2v/R@1", "t2v/MdR", "v2t/R@1"), ("accuracy",)
SCRIPTS = {
    "msrvtt_retrieval": Script("msrvtt", 2, RETRIEVAL, ("--variant", "7k")),
    "msrvtt_qa": Script("msrvtt", 8, QA),
    "msvd_qa": Script("msvd", 4, QA),
    "msvd_retrieval": Script("msvd", 2, RETRIEVAL, ("--rerank", "1")),
    "tgif_frameqa": Script("tgif", 2, QA),
    "lsmdc_retrieval": Script("lsmdc", 2, RETRIEVAL),
    "activitynet_retrieval": Script("activitynet", 2, RETRIEVAL),
    "didemo_retrieval": Script("didemo", 2, RETRIEVAL),
    "vqav2": Script("vqav2", 15, CHOICE, ("--variant", "val")),
    "coco_retrieval": Script("coco", 2, RETRIEVAL),
    "flickr30k_retrieval": Script("flickr30k", 2, RETRIEVAL, ("--rerank", "all")),
}
COMMON = (
    *("--steps", "2", "--global-batch", "2", "--micro-batch", "2", "--eval-every", "2"),
    *("--ds-config", "zero1_fp32", "--workers", "0", "--dali-threads", "1"),
)


def write_model(folder: Path) -> Path:
    """A pre-trained model of two layers, 32 pixels."""
    from model import AllInOneConfig, AllInOneForPreTraining

    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "projection_dim": 8}
    AllInOneForPreTraining(AllInOneConfig.from_size("nano", **shape)).save_pretrained(folder)
    return folder


def run(path: Path, argv: list[str]) -> int:
    """Exit code of a script that is started as a file."""
    before = sys.argv, list(sys.path)
    try:
        sys.argv = [str(path), *argv]
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.argv, sys.path[:] = before
    return 0


def forked(work: Callable[[], int], log: Path) -> int:
    """Exit code of `work` in a child, with its output in a file: a process can start DeepSpeed's groups only once."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        with log.open("w", encoding="utf-8") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            code = work()
            sys.stdout.flush()
            sys.stderr.flush()
    finally:
        os._exit(code)


def main(out: Path, names: list[str]) -> None:
    """Run the scripts, each into its own folder."""
    import deepspeed  # noqa: F401 - what a script imports, once for all
    import torch

    import finetune.run  # noqa: F401

    torch.set_num_threads(1)  # no thread may run when this process forks
    model = write_model(out / "model")
    for name in names:
        script, path = SCRIPTS[name], ROOT / "finetune" / f"{name}.py"
        sample = out / "samples" / script.sample
        if not sample.is_dir():
            WRITERS[script.sample](sample)
        argv = ["--annotations", str(sample / "annotations"), "--media", str(sample / "media"), "--checkpoint", str(model)]
        argv += ["--out", str(out / name), "--cache", str(out / "cache"), *COMMON, *script.options]
        argv += [] if script.train else ["--eval-only"]
        codes = {
            "help": forked(lambda path=path: run(path, ["--help"]), out / f"{name}.help"),  # type: ignore[misc]
            "run": forked(lambda path=path, argv=argv: run(path, argv), out / f"{name}.log"),  # type: ignore[misc]
        }
        (out / f"{name}.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
