"""Starts toy.py as processes, and reads what the run left: for tests of the real loop."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from allinone.engine.checkpoint.weights import newest_weights
from allinone.engine.distributed.launch import free_port
from tests.forked import ROOT, ForkServer, rank_env

BASE: dict[str, object] = {"ds_config": "zero1_fp32"}
_server: ForkServer


@pytest.fixture(scope="module", autouse=True)
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Ranks are processes of their own but for the imports. That the interpreter itself leaves well
    is tests/pretrain/test_launches.py's business."""
    global _server
    _server = ForkServer(
        tmp_path_factory.mktemp("server"),
        ("deepspeed", "allinone.engine.trainer", "torch.utils.tensorboard"),
        rank_env(),
    )
    try:
        _server.wait()
        yield
    finally:
        _server.close()


def start(out: Path, world: int = 1, **options: object) -> list[subprocess.Popen[str]]:
    port, ranks = str(free_port()) if world > 1 else "", []
    for rank in range(world):
        env = rank_env(rank, world, port)
        line = _server.command("tests/engine/toy.py", str(out), json.dumps({**BASE, **options}))
        ranks.append(
            subprocess.Popen(
                line, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    return ranks


def start_limited(
    out: Path, limits: dict[str, int], world: int = 1, **options: object
) -> list[subprocess.Popen[str]]:
    """Ranks that cannot write files larger than the rank's limit in bytes, like a full disk
    or quota."""
    return start(out, world, largest_file=limits, **options)


def finish(ranks: list[subprocess.Popen[str]]) -> tuple[list[int], str]:
    outputs = [rank.communicate(timeout=150)[0] for rank in ranks]
    return [rank.returncode for rank in ranks], "\n".join(outputs)


def train(out: Path, world: int = 1, **options: object) -> tuple[int, str]:
    codes, output = finish(start(out, world, **options))
    return max(codes, key=abs), output


def history(out: Path) -> dict[int, dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "metrics" in row]
    assert len({row["step"] for row in rows}) == len(rows), "a step is twice in the history"
    return {row["step"]: row for row in rows}


def losses(out: Path) -> list[float]:
    return [row["metrics"]["fit_loss"] for _, row in sorted(history(out).items())]


def digests(out: Path) -> list[int]:
    return [row["digest"] for _, row in sorted(history(out).items())]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(newest_weights(out) / "model.safetensors")
