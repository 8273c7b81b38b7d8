"""The README's Python code runs, and --init-from trains with another shape."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from allinone.engine.checkpoint.weights import newest_weights
from allinone.model import AllInOneConfig, AllInOneForPreTraining

ROOT = Path(__file__).parents[2]


def nano(folder: Path) -> Path:
    torch.manual_seed(0)
    AllInOneForPreTraining(AllInOneConfig.from_size("nano")).save_pretrained(folder)
    return folder


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_ten_lines_of_python_score_a_video_against_two_captions(tmp_path: Path) -> None:
    section = (ROOT / "README.md").read_text().split("## In Python")[1].split("\n## ")[0]
    block = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0]
    assert (
        len(
            [
                line
                for line in block.splitlines()
                if line.strip() and not line.startswith(("import", "from"))
            ]
        )
        <= 10
    )
    assert block.count('"my-model"') == 2
    scope: dict[str, object] = {}
    done = run("-c", block.replace('"my-model"', repr(str(nano(tmp_path / "model")))))
    assert done.returncode == 0, done.stderr
    exec(re.search(r"captions = .*", block)[0], scope)  # type: ignore[index]
    printed = eval(done.stdout)
    assert list(printed) == scope["captions"]
    assert all(0 < score < 1 for score in printed.values())


def test_another_resolution_frames_and_text_length_train_on(tmp_path: Path) -> None:
    videos = ROOT / "data" / "demo" / "videos" / "000001_000200"
    (tmp_path / "videos").symlink_to(videos)
    rows = "".join(
        f"videos/{number}.mp4,a caption with number {number}\n" for number in range(1, 33)
    )
    (tmp_path / "my.csv").write_text(f"path,caption\n{rows}")
    prepared = run(
        "tools/prepare.py", str(tmp_path / "my.csv"), "--out", str(tmp_path / "prepared")
    )
    assert prepared.returncode == 0, prepared.stderr
    shape = ["--image-size", "96", "--frames", "8", "--max-text-len", "12"]
    options = [
        "--data",
        str(tmp_path / "prepared"),
        "--val",
        "none",
        "--workers",
        "0",
        "--steps",
        "2",
        "--log-every",
        "1",
        "--global-batch",
        "8",
    ]
    start = [
        "--init-from",
        str(nano(tmp_path / "model")),
        "--micro-batch",
        "8",
        "--lr",
        "0.001",
        "--warmup",
        "0",
    ]
    done = run(
        "pretrain/train.py", "demo", "--out", str(tmp_path / "run"), *options, *shape, *start
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("interpolated") == 2
    assert "[16, 128] → [12, 128], cut" in done.stdout
    assert "step 2/2" in done.stdout
    before, after = (
        load_file(tmp_path / "model" / "model.safetensors"),
        load_file(newest_weights(tmp_path / "run") / "model.safetensors"),
    )
    assert after["backbone.video_embeddings.position"].shape == (1, 37, 128)
    assert after["backbone.video_embeddings.temporal"].shape == (1, 8, 128)
    moved = (
        after["backbone.encoder.blocks.0.mlp.fc1.weight"]
        - before["backbone.encoder.blocks.0.mlp.fc1.weight"]
    ).abs()
    assert 0 < float(moved.max()) < 0.005  # two steps of 0.001 away from where it started
    wrong = run(
        "pretrain/train.py",
        "demo",
        "--out",
        str(tmp_path / "wrong"),
        *options,
        *start,
        "--size",
        "tiny",
    )
    assert wrong.returncode == 2
    assert (
        f"{tmp_path / 'model'}: the weights do not fit the model: the file is 128 wide, the model"
        " 192: try --size nano" in wrong.stderr
    )
    assert "Traceback" not in wrong.stderr
