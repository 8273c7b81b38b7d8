"""Names inside a checkpoint folder, and the error that every module of this package raises.

OUT/checkpoints/step-00001000/
    manifest.json   sizes and sha256 of all other files; a folder without it is unfinished
    run.json        options, step, samples consumed, world size, code version
    layout.json     ZeRO stage, data ranks, tensor-parallel size and the parameters of each group
    weights/        fp32 weights as safetensors with the model's config.json; the same for every
                    layout, and what every other tool reads
    ema/            with --ema, their moving average, in the same form
    deepspeed/      optimizer state and partitions, one file per rank
OUT/best/step-00001000/
                    the best weights so far, without deepspeed/ and layout.json
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from allinone.common.errors import AllInOneError
from allinone.common.exit_codes import ExitCode

CHECKPOINTS = "checkpoints"
"""Folder of a run with its checkpoints."""
BEST = "best"
"""Folder of a run with the weights of the best evaluation."""
MANIFEST, RUN, LAYOUT = "manifest.json", "run.json", "layout.json"
STATE = "deepspeed"
WEIGHTS = "weights"
EMA = "ema"
WeightsKind = Literal["raw", "ema"]
"""Which weights of a run or checkpoint are meant: the trained ones, or their moving average."""
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")


class CheckpointError(AllInOneError, RuntimeError):
    """A checkpoint cannot be used (exit code USAGE), or not be written: DISK_FULL without space or
    quota, FAILURE after any other error of the storage, where another node may succeed."""

    @property
    def disk(self) -> bool:
        """Whether a write failed for lack of space."""
        return self.exit_code == ExitCode.DISK_FULL


def step_folder(out: Path, step: int, kind: str = CHECKPOINTS) -> Path:
    """Folder of the checkpoint of a step.

    Args:
        out: The run's folder.
        step: Finished optimizer steps.
        kind: CHECKPOINTS, or BEST for the best weights.
    """
    # eight digits, so that names sort like steps
    return out / kind / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """Step in the name of a checkpoint folder; -1 for any other folder."""
    match = re.fullmatch(r"step-(\d+)", folder.name)
    return int(match[1]) if match else -1


def checkpoints(out: Path, kind: str = CHECKPOINTS) -> list[Path]:
    """Published checkpoints of a run (with BEST: its best weights), newest first.

    Their content is not verified.
    """
    # .tmp-step-* is unfinished, .tmp-old-step-* half deleted, damaged-step-* set aside: no match
    folders = [path for path in (out / kind).glob("step-*") if step_of(path) >= 0]
    return sorted(folders, key=step_of, reverse=True)
