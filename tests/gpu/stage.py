"""What a stage of the check is made of, and the child process that runs one.

A stage is a module with a function `checks(settings)` that returns its checks by name. The child
writes a line to its progress file before and after every check, so that the parent knows what was
found and what was being done when the child crashes or hangs.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from allinone.common.formatting import finite
from allinone.tools.reporting.gpu_report import Check

LAUNCHER_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "ALLINONE_LAUNCHER",
    "SLURM_STEP_ID",
)
"""Without them a process is a single rank, also inside a job step of srun."""


@dataclass(frozen=True)
class Settings:
    """What every check may need to know."""

    device: str
    """cuda or cpu."""
    size: str
    """Model size, a key of model.SIZES."""
    micro_batch: int
    steps: int
    """Optimizer steps of a speed measurement."""
    compile: bool
    """Whether anything is compiled."""
    folder: Path
    """For temporary files of the stage; deleted afterwards."""

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU is checked."""
        return self.device == "cuda"


class Skip(Exception):  # noqa: N818 - not an error
    """This check cannot run here; the message says what is missing."""


@dataclass(frozen=True)
class Found:
    """What a check found; without a problem it has passed."""

    summary: str
    values: dict[str, Any] = field(default_factory=dict)
    problem: bool = False
    """The numbers exceed their bound."""
    measured: bool = False
    """There is no bound: the numbers are the result."""


CheckFn = Callable[[], Found]


@dataclass(frozen=True)
class StageSpec:
    """One stage of the check."""

    name: str
    title: str
    module: str
    """Has `checks(settings) -> {name: CheckFn}`."""
    limit_s: float
    """Time limit of all checks together, seconds."""
    check_s: float
    """Time limit of one check, seconds; the first one includes the start of the process."""
    ranks: bool = False
    """Runs on all GPUs, as one rank each."""


def work(
    spec: StageSpec,
    settings: Settings,
    progress: Path,
    done: tuple[str, ...],
    environment: Mapping[str, str] | None,
) -> None:
    """Run the checks of a stage in this process and leave it.

    Args:
        spec: The stage.
        settings: For its checks.
        progress: Lines of JSON are appended to it; output goes to the same name with .log.
        done: Checks that an earlier child has ended with, one way or another.
        environment: Variables of the launcher; None keeps those of this process (srun).
    """
    # a group of its own: reader processes and ranks are ended with it
    os.setsid()
    log = os.open(progress.with_suffix(".log"), os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = (
        os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2)
    )
    # the parent sends SIGABRT to a child that hangs: the log then says where
    faulthandler.enable(all_threads=True)
    if environment is not None:
        for name in LAUNCHER_VARIABLES:
            os.environ.pop(name, None)
        os.environ.update(environment)
    with progress.open("a", encoding="utf-8", buffering=1) as file:

        def write(**line: Any) -> None:
            file.write(json.dumps(finite(line)) + "\n")

        checks = importlib.import_module(spec.module).checks(settings)
        write(planned=list(checks))
        for name, check in checks.items():
            if name not in done:
                write(began=name)
                write(check=asdict(_result(name, check)))
    sys.stdout.flush()
    sys.stderr.flush()
    # not sys.exit: threads of decoders and of NCCL may keep a process alive that has done its work
    os._exit(0)


def _result(name: str, check: CheckFn) -> Check:
    start = time.monotonic()
    print(f"--- {name}", flush=True)

    def result(state: Any, summary: str, values: dict[str, Any] | None = None) -> Check:
        return Check(name, state, summary, round(time.monotonic() - start, 2), values or {})

    try:
        found = check()
    except Skip as reason:
        return result("skipped", str(reason))
    except Exception as error:  # the report names it, and the other checks run
        traceback.print_exc()
        text = str(error).strip().splitlines() or [""]
        return result("failed", f"{type(error).__name__}: {text[0][:300]}")
    state = "failed" if found.problem else "measured" if found.measured else "passed"
    return result(state, found.summary, found.values)
