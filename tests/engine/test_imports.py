"""Imports cost time and memory on every rank of a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from allinone.engine.distributed import launch
launch.prepare_environment()
from allinone.engine.deepspeed_adapter import import_muon
import deepspeed
import_muon()
from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam
from deepspeed.runtime import compiler
import torch
assert compiler.compile() is torch.compile
print("torch._inductor.compile_fx" in sys.modules)
torch.compile(torch.nn.Linear(1, 1))
print("torch._inductor.compile_fx" in sys.modules)
"""


def test_deepspeed_does_not_import_torchs_compiler() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["False", "True"]
