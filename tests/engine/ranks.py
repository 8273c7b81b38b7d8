"""Ranks in a second: one process imports everything and forks them. `python -m tests.engine.ranks`
reads jobs from stdin; RankServer talks to it."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from allinone.tools.cluster.rank_server import RankProcesses

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 120.0


class RankServer:
    """Starts the ranks of one run after the other: by default of tests/tools/zero_run.py, a very
    small All-in-one."""

    def __init__(self) -> None:
        env = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            "GLOO_SOCKET_IFNAME": "lo",
            "PYTHONPATH": str(ROOT),
        }
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.engine.ranks"],
            cwd=ROOT,
            env=env,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def run(
        self, out: Path, world: int = 1, program: str = "tests.tools.zero_run", **options: Any
    ) -> tuple[list[int], str]:
        """Exit codes and output of all ranks; each calls `run(out, options)` of the program."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(
            json.dumps({"out": str(out), "world": world, "program": program, "options": options})
            + "\n"
        )
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline())
        return answer["codes"], answer["output"]

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(30)


def _rank(job: dict[str, Any], rank: int) -> int:
    return importlib.import_module(job["program"]).run(Path(job["out"]), job["options"])


def _serve(job: dict[str, Any], replies: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ranks = RankProcesses(job["world"], Path(folder) / "logs", partial(_rank, job))
        codes, output = ranks.finish(TIMEOUT_S), ranks.output()
    os.write(replies, (json.dumps({"codes": codes, "output": output[-20_000:]}) + "\n").encode())


def main() -> None:
    replies = os.dup(1)
    os.dup2(2, 1)  # what imports print is no reply
    import warnings

    warnings.simplefilter("ignore")
    import deepspeed  # noqa: F401
    import torch
    import torch.utils.tensorboard
    import transformers  # noqa: F401

    import allinone.engine.distributed.tensor_parallel
    import allinone.engine.trainer
    import allinone.model  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        _serve(json.loads(line), replies)


if __name__ == "__main__":
    main()
