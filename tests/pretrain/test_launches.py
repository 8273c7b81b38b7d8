"""pretrain/train.py with real clips under every launcher, killed and continued, compiled and
checkpointed: the same losses and the same clips."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from allinone.data.prepare.pipeline import PrepareOptions, prepare
from allinone.engine.distributed.launch import free_port
from tests.data import media
from tests.forked import ForkServer

ROOT = Path(__file__).resolve().parents[2]
STEPS = 6

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 prepared clips, 48 to train on."""
    source = tmp_path_factory.mktemp("source")
    rows = (ROOT / "data/demo/results_demo_train.csv").read_text().splitlines()
    (source / "results_few_train.csv").write_text("\n".join(rows[:49]) + "\n")
    (source / "results_few_val.csv").write_text("\n".join([rows[0], *rows[49:61]]) + "\n")
    (source / "videos").symlink_to(ROOT / "data/demo/videos")
    out = tmp_path_factory.mktemp("prepared") / "few"
    prepare(PrepareOptions(source, out, workers=1), progress=False)
    return out


def options(clips: Path, out: Path, *more: str) -> list[str]:
    plain = (
        "--image-size 32 --global-batch 8 --micro-batch 4 --log-every 1 --save-every 2 --eval-every"
        " 0 --dropout 0.1 --lr 1e-3"
    )
    data = ["--data", str(clips), "--val", f"{clips}:val", "--out", str(out), "--steps", str(STEPS)]
    return [str(ROOT / "pretrain/train.py"), "demo", *data, *plain.split(), *more]


ENV = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


def finish(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output[-4000:]


def start(command: list[str], **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**ENV, **env},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def history(out: Path) -> list[dict[str, object]]:
    lines = (out / "history.jsonl").read_text().splitlines(keepends=True)
    rows = [
        json.loads(line) for line in lines if line.endswith("\n")
    ]  # a killed run may leave half a line
    return [
        {key: row[key] for key in ("step", "metrics", "digest", "grad_norm")}
        for row in rows
        if "metrics" in row
    ]


@pytest.fixture(scope="module")
def reference(
    clips: Path, server: ForkServer, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, object]]:
    """One process, two micro-batches accumulated. Without VTC, which contrasts a micro-batch over
    all ranks: two ranks have more negatives."""
    out = tmp_path_factory.mktemp("reference") / "run"
    finish(start(server.command(*options(clips, out, "--vtc", "0"))))
    rows = history(out)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert len({row["digest"] for row in rows}) == STEPS
    return rows


def assert_same(
    rows: list[dict[str, object]], expected: list[dict[str, object]], tolerance: float = 1e-5
) -> None:
    assert [row["digest"] for row in rows] == [row["digest"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row["metrics"] == pytest.approx(other["metrics"], rel=tolerance, abs=tolerance)


def test_torchrun_and_deepspeed_ranks_compute_the_same(
    clips: Path, tmp_path: Path, reference: list[dict[str, object]]
) -> None:
    scripts = Path(sys.executable).parent
    launchers = {
        "torchrun": [
            str(scripts / "torchrun"),
            "--nproc-per-node",
            "2",
            "--master-port",
            str(free_port()),
        ],
        "deepspeed": [
            str(scripts / "deepspeed"),
            "--num_accelerators",
            "2",
            "--master_port",
            str(free_port()),
        ],
    }
    for name, launcher in launchers.items():
        out = tmp_path / name
        # the deepspeed launcher runs `python`: the one of this environment must come first
        finish(
            start(
                [*launcher, *options(clips, out, "--vtc", "0")],
                PATH=f"{scripts}:{os.environ['PATH']}",
            )
        )
        assert_same(history(out), reference)


def test_ranks_started_as_srun_starts_them_compute_the_same(
    clips: Path, tmp_path: Path, reference: list[dict[str, object]]
) -> None:
    step = {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2",
    }
    step |= {
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_JOB_NODELIST": "localhost",
        "MASTER_PORT": str(free_port()),
    }
    out = tmp_path / "run"
    command = [sys.executable, *options(clips, out, "--vtc", "0")]
    finish(
        *(
            start(command, **step, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank))
            for rank in range(2)
        )
    )
    assert_same(history(out), reference)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 prepared images, 14 of them to train on."""
    source = tmp_path_factory.mktemp("stills")
    lines = ["path,caption,split"]
    for k in range(20):
        media.write_image(source / f"{k}.png", k)
        lines.append(f"{k}.png,a still with number {k},{'val' if k < 6 else 'train'}")
    (source / "own.csv").write_text("\n".join(lines) + "\n")
    out = tmp_path_factory.mktemp("prepared-stills") / "stills"
    prepare(PrepareOptions(source / "own.csv", out, workers=1), progress=False)
    return out


def test_co_training_equal_on_two_ranks_and_after_random_kill(
    clips: Path, images: Path, server: ForkServer, tmp_path: Path
) -> None:
    mixtures = [
        "--data",
        f"{clips}=2",
        f"{clips}:val",
        "--images",
        f"{images}=1",
        f"{images}:val=2",
    ]
    more = [*mixtures, "--vtc", "0", "--image-batch", "12", "--image-heads", "separate"]
    killed, ranks = tmp_path / "killed", tmp_path / "ranks"
    process, step = (
        start(server.command(*options(clips, killed, *more))),
        random.randint(1, STEPS - 2),
    )
    while process.poll() is None and not (
        (killed / "history.jsonl").exists() and len(history(killed)) >= step
    ):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == -signal.SIGKILL, output[-4000:]
    finish(start(server.command(*options(clips, killed, *more))))
    torchrun = [
        str(Path(sys.executable).parent / "torchrun"),
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
    ]
    finish(start([*torchrun, *options(clips, ranks, *more)]))
    assert_same(history(killed), history(ranks))
    assert [row["step"] for row in history(ranks)] == list(range(1, STEPS + 1))
    assert {"mlm_loss", "vtm_loss", "image_mlm_loss", "image_vtm_loss"} <= set(
        history(ranks)[0]["metrics"]
    )  # type: ignore[call-overload]


def test_kept_patches_are_equal_on_two_ranks_and_after_resume(
    clips: Path, server: ForkServer, tmp_path: Path
) -> None:
    """Half of the patches in steps 1 to 3; ZeRO 2 on two ranks, and a restart before step 4."""
    flags = "--image-size 64 --vtc 0 --wpa 0.1 --save-every 3"
    more = [*flags.split(), "--patch-keep", "0.5", "--patch-keep-until", "0.5"]
    run, halves, ranks = tmp_path / "run", tmp_path / "halves", tmp_path / "ranks"
    finish(start(server.command(*options(clips, run, *more))))
    complete = history(run)
    shares = [row["metrics"]["patch_keep"] for row in complete]  # type: ignore[index]
    assert shares == [0.5] * 3 + [1.0] * 3
    shutil.copytree(run, halves)
    shutil.rmtree(halves / "checkpoints" / "step-00000006")
    finish(start(server.command(*options(clips, halves, *more))))
    lines = [json.loads(line) for line in (halves / "history.jsonl").read_text().splitlines()]
    last = max(number for number, row in enumerate(lines) if row.get("event") == "start")
    assert [row["step"] for row in lines[last:] if "metrics" in row] == [4, 5, 6]
    assert history(halves) == complete
    torchrun = [
        str(Path(sys.executable).parent / "torchrun"),
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
    ]
    finish(start([*torchrun, *options(clips, ranks, *more, "--ds-config", "zero2_fp32")]))
    assert_same(history(ranks), complete)


def test_alternating_co_training_trains_on_both(
    clips: Path, images: Path, server: ForkServer, tmp_path: Path
) -> None:
    more = [
        "--images",
        str(images),
        f"{images}:val",
        "--image-batch",
        "8",
        "--image-mode",
        "alternate",
        "--image-share",
        "0.5",
    ]
    finish(start(server.command(*options(clips, tmp_path / "run", *more))))
    kinds = [
        {name.startswith(("image_", "sample_share")) for name in row["metrics"]}
        for row in history(tmp_path / "run")
    ]  # type: ignore[attr-defined]
    assert kinds == [{False}, {True}] * (STEPS // 2)


def test_compiled_and_recomputed_training_computes_the_same(
    clips: Path, server: ForkServer, tmp_path: Path
) -> None:
    # without dropout: a compiled graph draws other numbers
    plain, changed = tmp_path / "plain", tmp_path / "changed"
    finish(start(server.command(*options(clips, plain, "--dropout", "0"))))
    finish(
        start(
            server.command(
                *options(
                    clips,
                    changed,
                    "--dropout",
                    "0",
                    "--compile",
                    "True",
                    "--activation-checkpointing",
                    "True",
                )
            )
        )
    )
    assert_same(history(changed), history(plain), tolerance=1e-4)


def test_training_killed_and_started_again_is_bit_equal(
    clips: Path, server: ForkServer, tmp_path: Path, reference: list[dict[str, object]]
) -> None:
    out = tmp_path / "run"
    process = start(server.command(*options(clips, out, "--vtc", "0")))
    deadline = time.monotonic() + 200
    while not list(out.glob("checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)  # the rank behind it has gone too when its output ends
    assert len(history(out)) < STEPS
    finish(start(server.command(*options(clips, out, "--vtc", "0"))))
    assert history(out) == reference


def test_bf16_trains_and_resumes_bit_equal(clips: Path, server: ForkServer, tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    more = ["--ds-config", "zero1_bf16"]
    finish(start(server.command(*options(clips, whole, *more))))
    process = start(server.command(*options(clips, halves, *more)))
    while process.poll() is None and not list(halves.glob("checkpoints/step-*")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=200)
    if process.returncode:  # else it was done before the signal
        assert process.returncode == 75, output
    finish(start(server.command(*options(clips, halves, *more))))
    assert history(halves) == history(whole)
