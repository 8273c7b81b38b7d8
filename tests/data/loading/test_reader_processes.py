"""Reader processes: they survive the signals that make training save, and end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from allinone.common.paths import ROOT
from tests.data.helpers import prepare_small_demo
from tests.data.loading.streams import CPU, stream, take


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_small_demo(tmp_path_factory.mktemp("prepared"))


def test_readers_survive_signals_that_make_training_save(prepared: Path) -> None:
    """Ctrl-C and Slurm signal every process of a run; all later batches are still right."""
    # a process of its own: the children of this one include other tests' fork servers, which must
    # not be signalled
    program = f"""if __name__ == "__main__":
    from pathlib import Path
    from {__name__} import survive_signals
    survive_signals(Path({str(prepared)!r}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def survive_signals(prepared: Path) -> None:
    """Signal all children while batches are read, and compare the batches."""
    expected = [batch.digest for batch in take(stream(prepared), 40)]  # type: ignore[attr-defined]
    batches = stream(prepared, workers=2, prefetch=1).batches(
        first=0, rank=0, world=1, micro_batch=4, device=CPU
    )
    digests = [next(batches).digest]
    children = psutil.Process().children(recursive=True)
    assert len(children) >= 3
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
        for child in children:
            child.send_signal(number)
    digests += [next(batches).digest for _ in range(39)]
    assert digests == expected
    start = time.monotonic()
    batches.close()  # type: ignore[attr-defined]
    workers = [
        child
        for child in children
        if child.is_running() and child.parent() not in (None, psutil.Process())
    ]
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
    assert time.monotonic() - start < 20


def start_training(prepared: Path, end: str) -> subprocess.Popen[str]:
    """Start a process that gets one batch, prints "ready" and executes `end`.

    Its readers wait to hand over the next batches.
    """
    script = f"""
import sys, time, torch
from pathlib import Path
from allinone.data import TrainStream
from allinone.data.config import ClipConfig, DataConfig, DatasetSpec
if __name__ == "__main__":
    spec, clip = DatasetSpec(Path({str(prepared)!r})), ClipConfig(3, 224, 12)
    data = TrainStream([spec], clip, DataConfig(workers=2), seed=0)
    batches = data.batches(first=0, rank=0, world=1, micro_batch=16, device=torch.device("cpu"))
    next(batches)
    print("ready", flush=True)
    {end}
"""
    path = prepared.parent / "hold.py"
    path.write_text(script)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, str(path)],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_an_error_ends_training_without_waiting_for_its_readers(prepared: Path) -> None:

    process = start_training(prepared, 'time.sleep(3); raise RuntimeError("out of memory")')
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 3
    _, message = process.communicate(timeout=60)  # readers outlive a SIGTERM by two minutes
    assert process.returncode == 1
    assert message.splitlines()[-1] == "RuntimeError: out of memory", message
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_no_reader_remains_after_training_was_killed(prepared: Path) -> None:

    process = start_training(prepared, "time.sleep(600)")
    time.sleep(1)  # until the queues are full and the workers wait to hand over
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 3
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
