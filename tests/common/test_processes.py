"""What the data path's helper processes start with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import gc, json, sys
sys.path.insert(0, {root!r})
started_with = set(sys.modules)
from allinone.common.processes import forkserver_context

NAMES = ("torch", "allinone.data.loading.loader", "nvidia.dali")

def child(pipe):
    lines = open("/proc/self/smaps_rollup")
    private = [int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:")]
    has = {{name: name in started_with for name in NAMES}}
    pipe.send({{**has, "frozen": gc.get_freeze_count(), "private_kib": private[0]}})

if __name__ == "__main__":
    import allinone.data.loading.dali_pipeline, allinone.data.loading.loader
    context = forkserver_context()
    ours, theirs = context.Pipe()
    process = context.Process(target=child, args=(theirs,))
    process.start()
    print(json.dumps(ours.recv()))
"""


def test_children_share_the_programs_imports_except_dali(tmp_path: Path) -> None:
    """Run in another folder, where the project can only be found through PYTHONPATH."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(root=str(ROOT)))
    done = subprocess.run(
        [sys.executable, program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["torch"]
    assert found["allinone.data.loading.loader"]
    assert not found["nvidia.dali"]
    assert found["frozen"] > 100_000
    assert found["private_kib"] < 40 * 1024, (
        "a process that imports torch by itself writes on more than 100 MiB"
    )
