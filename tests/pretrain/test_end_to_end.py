"""The commands of the README as a user types them, with few steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.forked import ForkServer

ROOT = Path(__file__).parents[2]
SUB_RUNS = ("", "mlm", "vtm", "vtc", "R@1", "R@10")
"""Folders of TensorBoard, each with a colour of its own."""


def run(*arguments: str, server: ForkServer | None = None) -> subprocess.CompletedProcess[str]:
    """By an interpreter of its own, or by a server that has done the imports."""
    env = {**os.environ, "OMP_NUM_THREADS": "2"}
    command = server.command(*arguments) if server else [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=400, check=False
    )


def test_demo_prepares_trains_evaluates_reports_and_then_is_done(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    first = run("examples/demo.py", "--out", str(out), "--steps", "3")
    assert first.returncode == 0, first.stdout + first.stderr
    results = json.loads((out / "results.json").read_text())
    for split, items in (("val", 245), ("val_unseen", 125)):
        assert results["items"][split] == items
        for way in ("text_to_video", "video_to_text"):
            assert set(results[split][way]) == {"R@1", "R@5", "R@10", "MdR"}
        assert abs(results[split]["chance"]["R@10"] - 1000 / items) < 1e-6
    assert {"prepare", "train", "evaluate"} == set(results["seconds"])
    page = (out / "report.html").read_text()
    assert page.count("data:image") > 50
    assert 'src="http' not in page
    for name in ("losses.png", "gallery.png", "masked_words.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
        assert name in first.stdout
    assert_board_is_complete(out / "train")
    again = run("examples/demo.py", "--out", str(out), "--steps", "3")
    assert again.returncode == 0
    assert "is done" in again.stdout


def assert_board_is_complete(out: Path) -> None:
    """Curves, the arrangement of the charts, samples and options, as TensorBoard itself reads them;
    and the dashboard knows the run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

    boards = {name: EventAccumulator(str(out / "tensorboard" / name)) for name in SUB_RUNS}
    for one in boards.values():
        one.Reload()
    scalars = {name: set(one.Tags()["scalars"]) for name, one in boards.items()}
    for name in ("mlm", "vtm", "vtc"):
        assert f"train/{name}_loss" in scalars[name]
    # before the first step, and after the last one
    steps = [event.step for event in boards["vtm"].Scalars("eval/data_val/vtm_accuracy")]
    assert steps == [0, 3]
    assert {f"eval/data_val/{way}_R@1" for way in ("text_to_video", "video_to_text")} == (
        scalars["R@1"]
    )
    board = boards[""]
    tags = board.Tags()
    assert tags["images"] == ["samples/video"]
    assert {
        "run/options/text_summary",
        "run/derived/text_summary",
        "custom_scalars__config__",
    } <= set(tags["tensors"])
    assert {"run/mfu", "ranks/own_s/max", "eval/data_val/text_to_video_MdR"} <= scalars[""]
    assert not any(tag.startswith("train/mlm") for tag in scalars[""])
    written = board.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0]
    charts = [
        chart.title for category in Layout.FromString(written).category for chart in category.chart
    ]
    assert "losses of the objectives" in charts
    assert any(title.startswith("MFU (FMA = 2") for title in charts)
    options = board.Tensors("run/options/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| train.lr | `0.002` |" in options
    watched = run("tools/watch.py", str(out), "--json")
    assert watched.returncode == 0, watched.stderr
    assert (json.loads(watched.stdout)["status"], json.loads(watched.stdout)["step"]) == (
        "finished",
        3,
    )


def test_own_videos_in_three_commands(tmp_path: Path) -> None:
    videos = ROOT / "data" / "demo" / "videos" / "000001_000200"
    rows = "".join(
        f"{videos.name}/{number}.mp4,a caption with number {number}\n" for number in range(1, 41)
    )
    (tmp_path / videos.name).symlink_to(videos)
    (tmp_path / "my.csv").write_text(f"path,caption\n{rows}")
    prepared = run(
        "tools/prepare.py", str(tmp_path / "my.csv"), "--out", str(tmp_path / "prepared")
    )
    assert prepared.returncode == 0, prepared.stderr
    options = [
        "--data",
        str(tmp_path / "prepared"),
        "--out",
        str(tmp_path / "run"),
        "--val",
        "none",
        "--steps",
        "2",
        "--log-every",
        "1",
    ]
    trained = run("pretrain/train.py", "demo", *options)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert "step 2/2" in trained.stdout


def test_wrong_options_are_refused_with_what_is_valid(server: ForkServer, tmp_path: Path) -> None:
    unknown = run("pretrain/train.py", "nosuch", server=server)
    assert unknown.returncode == 2
    assert "webvid-howto-tiny" in unknown.stdout + unknown.stderr
    option = run("pretrain/train.py", "demo", "--stepz", "3", server=server)
    assert option.returncode == 2
    assert "did you mean --steps" in option.stderr
    assert "--global-batch" in option.stderr
    size = run(
        "pretrain/train.py", "demo", "--size", "giant", "--out", str(tmp_path / "a"), server=server
    )
    assert size.returncode == 2
    assert "valid sizes: nano, tiny" in size.stderr
    missing = run(
        "pretrain/train.py",
        "demo",
        "--data",
        str(tmp_path),
        "--out",
        str(tmp_path / "b"),
        server=server,
    )
    assert missing.returncode == 2
    assert "tools/prepare.py" in missing.stderr
