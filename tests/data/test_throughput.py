"""The throughput estimate: measurements of known clips, and its arithmetic by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from allinone.common.errors import DataError
from allinone.data import throughput
from allinone.data.config import ClipConfig, DataConfig, DatasetSpec
from allinone.data.index import Index
from allinone.data.loading.sampling import SampleChoices
from allinone.data.prepare.pipeline import PrepareOptions, prepare
from allinone.data.throughput import (
    ClipCost,
    bucket_need,
    estimate,
    measure,
    measure_reencoded,
    suggest_reencode,
)
from allinone.tools.plan import main as plan_main
from tests.data import media
from tests.data.object_faults import copy_of

CLIP = ClipConfig(num_frames=3, image_size=32)
COST = ClipCost(
    clips=10,
    codecs={"h264": 10},
    width=640,
    height=360,
    gop=250,
    size_bytes=1_000_000,
    trimmed_share=0.5,
    read_ms=5,
    decode_ms=90,
    slowest_decode_ms=200,
    trim_ms=1.0,
    augment_ms=5,
    on_gpu_share=1.0,
    bad=(),
)


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """Six H.264 clips of 24 frames in GOPs of 8."""
    for k in range(6):
        media.write_video(tmp_path / "source" / f"{k}.mp4", gop=8, first=k)
    (tmp_path / "source" / "own.csv").write_text(
        "path,caption\n" + "".join(f"{k}.mp4,clip {k}\n" for k in range(6))
    )
    prepare(
        PrepareOptions(tmp_path / "source" / "own.csv", tmp_path / "out", workers=1), progress=False
    )
    return tmp_path / "out"


def break_clip(out: Path, item: int) -> str:
    row = Index(out, "train")[item]
    with (out / row["shard"]).open("r+b") as file:
        file.seek(row["offset"])
        file.write(bytes(row["size"]))
    return str(row["key"])


def test_a_sample_is_measured_and_broken_clips_are_named(prepared: Path) -> None:
    cost = measure(DatasetSpec(prepared), CLIP, DataConfig(), clips=6)
    assert (cost.clips, cost.codecs) == (6, {"h264": 6})
    assert (cost.width, cost.height, cost.gop) == (64, 64, 8)
    assert 0.2 < cost.trimmed_share < 1
    assert min(cost.decode_ms, cost.augment_ms, cost.read_ms) > 0
    assert cost.on_gpu_share == 0  # NVDEC wants more than 64 px
    broken = break_clip(prepared, 2)
    cost = measure(DatasetSpec(prepared), CLIP, DataConfig(), clips=6)
    assert cost.clips == 5
    assert [name.split(":")[0] for name in cost.bad] == [broken]
    for item in range(6):
        break_clip(prepared, item)
    with pytest.raises(DataError, match="none of 6 clips"):
        measure(DatasetSpec(prepared), CLIP, DataConfig(), clips=6)


def test_re_encoding_is_measured_on_re_encoded_clips(prepared: Path) -> None:
    cost = measure(DatasetSpec(prepared), CLIP, DataConfig(), clips=6)
    after = measure_reencoded(cost, DatasetSpec(prepared), CLIP, DataConfig())
    assert (after.clips, after.codecs) == (4, {"h264": 4})
    assert (after.width, after.height, after.gop) == (64, 64, 24)  # 24 frames are one GOP of 25
    assert 0 < after.size_bytes < 2 * cost.size_bytes
    assert min(after.decode_ms, after.augment_ms) > 0


def test_only_the_segment_read_of_a_long_video_is_counted(tmp_path: Path) -> None:
    media.write_video(tmp_path / "source" / "videos" / "AAA.mp4", frames=1200, gop=12)
    (tmp_path / "source" / "howto100m_csv").mkdir()
    (tmp_path / "source" / "howto100m_csv" / "AAA.csv").write_text(
        "start,end,text\n40,44,words\n60,64,more\n"
    )
    prepare(PrepareOptions(tmp_path / "source", tmp_path / "out", workers=1), progress=False)
    cost = measure(DatasetSpec(tmp_path / "out"), CLIP, DataConfig(), clips=6)
    assert cost.clips == 2
    assert cost.size_bytes < 0.2 * Index(tmp_path / "out", "train")[0]["size"]


def test_cores_and_storage_follow_from_rate_and_cost() -> None:
    # 1,600 clips/s on 16 nodes: 100 per node x 0.1 s = 10 cores; 100 MB/s
    job = {"samples_per_s": 1600, "gpus": 128, "gpus_per_node": 8}
    node = estimate(COST, **job, cores=64, storage_mb_per_s=0)
    assert (node.needed_clips_per_s, node.cores_needed, node.bytes_per_s) == (100, 10, 1e8)
    assert node.enough
    short = estimate(COST, **job, cores=12, storage_mb_per_s=50)
    assert not short.enough
    assert "10.0 cores" in short.limits[0]
    assert "100 MB/s" in short.limits[1]
    # A part of a node needs only its own rate.
    one = estimate(COST, samples_per_s=10, gpus=1, gpus_per_node=8, cores=4, storage_mb_per_s=0)
    assert one.needed_clips_per_s == 10


def test_a_bucket_must_give_what_all_nodes_read() -> None:
    # 1,600 clips/s of 1 MB on 128 GPUs, 50 ms per request: 100 clips/s x 50 ms = 5 at a time
    cost = replace(COST, read_ms=50.0, decode_ms=60.0, augment_ms=10.0, size_bytes=1_000_000)
    job = {"samples_per_s": 1600.0, "gpus": 128, "gpus_per_node": 8}
    need = bucket_need(cost, **job, dataset_bytes=10**12)
    assert (need.requests_per_s, need.bytes_per_s, need.parallel) == (1600, 1.6e9, 5)
    assert need.workers == 2  # 12.5 clips/s per GPU x 120 ms = 1.5 readers
    # segments of 4 MiB arrive in blocks of 1 MiB
    large = replace(cost, size_bytes=4 << 20)
    assert bucket_need(large, **job, dataset_bytes=0).requests_per_s == 6400


def test_the_command_says_what_a_bucket_must_give(
    prepared: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ALLINONE_CACHE", str(tmp_path / "cache"))
    url = copy_of(prepared, tmp_path / "bucket" / "out")
    command = ["data", url, "--gpus", "1", "--clips", "3", "--samples-per-s"]
    assert plan_main([*command, "1"]) == 0
    assert "the bucket must give 1 requests/s" in capsys.readouterr().out
    assert not (tmp_path / "cache" / "allinone-blocks").exists()
    assert plan_main([*command, "1e6"]) == 1
    shown = capsys.readouterr().out
    assert "S3 promises 5,500 reads/s per prefix" in shown
    assert plan_main([*command, "2", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    stored = sum(path.stat().st_size for path in (prepared / "shards").iterdir())
    assert facts["bucket"]["dataset_bytes"] == stored
    assert facts["bucket"]["requests_per_s"] == 2


def test_re_encoding_is_suggested_where_it_helps() -> None:
    options = {"source": "raw.csv", "kind": "webvid", "videos": "my videos", "names": None}
    command = suggest_reencode(COST, options, Path("out"), CLIP)
    assert (
        command == "python tools/prepare.py raw.csv --out out --format webvid --videos 'my videos'"
        " --short-side 256 --gop 25 --codec h264"
    )
    assert (
        suggest_reencode(replace(COST, width=340, height=256, gop=25), options, Path("out"), CLIP)
        is None
    )


def test_the_command_answers_by_its_exit_code(
    prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["data", str(prepared), "--gpus", "1", "--clips", "3", "--samples-per-s"]
    assert plan_main([*command, "1"]) == 0
    assert "this data is loaded fast enough for the training" in capsys.readouterr().out
    assert plan_main([*command, "1e9", "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["feed"]["enough"] is False
    assert facts["cost"]["clips"] == 3


def test_geometry_and_randaug_are_measured_as_training_has_them(
    prepared: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[SampleChoices] = []
    measure_one = throughput._AugmentTimer.__call__

    def spy(self: throughput._AugmentTimer, frames: object, choices: SampleChoices) -> float:
        seen.append(choices)
        return measure_one(self, frames, choices)

    monkeypatch.setattr(throughput._AugmentTimer, "__call__", spy)
    command = ["data", str(prepared), "--gpus", "1", "--clips", "6", "--samples-per-s", "1"]
    assert plan_main([*command, "--geometry", "squash", "--augment", "randaug"]) == 0
    assert "crop, resize and RandAugment" in capsys.readouterr().out
    assert {choices.box[2:] for choices in seen} == {(224 / 268, 224 / 268)}
    assert any(choices.operations for choices in seen)
