"""Odd files, prepared and decoded: the right frames come out; PyAV, trimming and DALI agree."""

from __future__ import annotations

import csv
import os
import re
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from nvidia.dali import Pipeline

import allinone.data.decoding.frames
import allinone.data.decoding.segment
from allinone.data import EvalSet, TrainStream
from allinone.data.config import ClipConfig, DataConfig, DatasetSpec
from allinone.data.decoding.codecs import CPU_CODECS, GPU_CODECS, dali_reads
from allinone.data.decoding.frames import DecodeError, Timeline, decode_frames
from allinone.data.decoding.gop_trim import trim
from allinone.data.index import Index
from allinone.data.loading import dali_pipeline
from allinone.data.loading.batch import Batch
from allinone.data.loading.dali_pipeline import build_pipeline
from allinone.data.loading.sampling import sample_eval
from allinone.data.prepare.pipeline import PrepareOptions, prepare
from tests.data import media

CPU = torch.device("cpu")
CLIP = ClipConfig(num_frames=3, image_size=32, max_text_len=12)
ROOT = Path(__file__).resolve().parents[3]


def write_source(folder: Path, names: dict[str, object]) -> Path:
    """A user's own CSV with one row per file that the makers wrote."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "own.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "caption"])
        for name in names:
            writer.writerow([name, f"a clip called {name}"])
    return folder / "own.csv"


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared folder of every good and every bad odd file."""
    source = tmp_path_factory.mktemp("source")
    for name, make in media.GOOD.items():
        make(source / name)
    for name, (make_bad, _) in media.BAD.items():
        make_bad(source / name)
    out = tmp_path_factory.mktemp("prepared") / "odd"
    prepare(
        PrepareOptions(write_source(source, {**media.GOOD, **media.BAD}), out, workers=2),
        progress=False,
    )
    return out


def row_of(out: Path, name: str) -> tuple[dict[str, object], bytes]:
    index = Index(out, "train")
    for item in range(len(index)):
        row = index[item]
        if row["source"] == name:
            with (out / row["shard"]).open("rb") as file:
                file.seek(row["offset"])
                return row, file.read(row["size"])
    raise AssertionError(f"{name} is not among the good clips")


def timeline(row: dict[str, object]) -> Timeline:
    return Timeline(row["keyframes"], row["frame_times"], row["frame_rate"])  # type: ignore[arg-type]


def numbers(frames: np.ndarray, rotation: object) -> list[int]:
    """Numbers that the frames spell, turned back to how they were drawn."""
    return [media.read_frame_number(np.rot90(frame, int(rotation or 0) // 90)) for frame in frames]  # type: ignore[call-overload]


def test_every_odd_file_is_prepared_or_named_with_its_reason(odd: Path) -> None:
    import pyarrow.parquet as pq

    stored = pq.read_table(odd / "videos.parquet").to_pylist()
    rows = {
        row["source"]: {**(stored[row["video"]] if row["video"] is not None else {}), **row}
        for row in pq.read_table(odd / "index.parquet").to_pylist()
    }
    assert {name for name, row in rows.items() if row["reason"] is None} == set(media.GOOD)
    for name, (_, reasons) in media.BAD.items():
        assert rows[name]["reason"] in reasons, (name, rows[name]["reason"], rows[name]["detail"])
        assert rows[name]["detail"]
    assert all(row["frames"] == 24 for name, row in rows.items() if name in media.GOOD)
    assert (rows["rotated90.mp4"]["width"], rows["rotated90.mp4"]["height"]) == (48, 64)
    assert rows["vfr.mp4"]["frame_times"] == pytest.approx(media.vfr_times(24), abs=1e-3)
    # IDR pictures, recovery points and CRA pictures
    for name in ("h264_closed", "hevc_closed", "h264_open", "hevc_open"):
        assert rows[f"{name}.mp4"]["keyframes"] == [0, 8, 16], name


@pytest.mark.parametrize("name", sorted(media.GOOD))
def test_sparse_and_trimmed_frames_equal_a_full_decode(odd: Path, name: str) -> None:
    row, content = row_of(odd, name)
    with av.open(str(write(odd, name, content)), "r") as container:
        full = [
            frame.to_ndarray(format="rgb24", src_colorspace="ITU601", dst_colorspace="ITU601")
            for frame in container.decode(video=0)
        ]
    full = [np.rot90(frame, -int(row["rotation"]) // 90) for frame in full]  # type: ignore[call-overload]
    random = np.random.default_rng(0)
    for wanted in [
        (0, 11, 23),
        (23, 0, 12),
        (7, 7, 8),
        *(tuple(random.choice(24, 3)) for _ in range(8)),
    ]:
        wanted = tuple(int(number) for number in wanted)
        frames = decode_frames(content, wanted, timeline(row))
        assert numbers(frames, row["rotation"]) == list(wanted)
        assert all(
            np.array_equal(frame, full[number])
            for frame, number in zip(frames, wanted, strict=True)
        )
        cut = trim(content, wanted, 24, timeline(row))
        assert np.array_equal(decode_frames(cut.content, cut.frames), frames)


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder.parent / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("h264_closed.mp4", 0.6),
        ("hevc_closed.mp4", 0.95),
        ("mjpeg.avi", 0.1),
        ("with_sound.mp4", 0.2),
    ],
)
def test_trimming_keeps_only_the_gop_of_the_wanted_frame(odd: Path, name: str, most: float) -> None:
    row, content = row_of(odd, name)
    cut = trim(content, (17,), 24, timeline(row))
    assert len(cut.content) < most * len(content)
    with av.open(str(write(odd, "cut.mp4", cut.content)), "r") as container:
        assert sum(1 for _ in container.decode(video=0)) <= 24 - 16


def test_sparse_decoding_finds_frames_by_time_without_fallback(
    odd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    row, content = row_of(odd, "h264_closed.mp4")
    monkeypatch.setattr(
        allinone.data.decoding.frames,
        "_from_start",
        lambda *_: pytest.fail("fell back to a full decode"),
    )
    assert numbers(decode_frames(content, (23,), timeline(row)), 0) == [23]


def test_a_wrong_timeline_falls_back_to_counting(odd: Path) -> None:
    _, content = row_of(odd, "h264_closed.mp4")
    for wrong in (
        Timeline((0, 5, 9), rate=12.0),
        Timeline((0,), rate=31.7),
        Timeline((0,), times=[0.5 * k for k in range(24)]),
    ):
        assert numbers(decode_frames(content, (3, 10, 23), wrong), 0) == [3, 10, 23]
    with pytest.raises(DecodeError, match="frame 40"):
        decode_frames(content, (40,), Timeline((0, 8, 16), rate=12.0))


def batches(out: Path, **options: object) -> list[Batch]:
    config = DataConfig(workers=0, **options)  # type: ignore[arg-type]
    stream = TrainStream([DatasetSpec(out)], CLIP, config, seed=5)
    source = stream.batches(first=0, rank=0, world=1, micro_batch=4, device=CPU)
    taken = [batch for batch, _ in zip(source, range(10), strict=False)]
    source.close()  # type: ignore[attr-defined]
    return taken


def test_dalis_decoder_agrees_with_pyav_on_what_it_reads(odd: Path) -> None:
    index = Index(odd, "train")
    readable = [
        row["source"]
        for row in map(index.__getitem__, range(len(index)))
        if dali_reads(row, CPU_CODECS)
    ]
    assert sorted(readable) == ["mjpeg.avi", "odd_size.webm", "vp8.webm", "vp9.mp4", "vp9.webm"]
    for ours, theirs in zip(
        batches(odd, decoder="pyav"), batches(odd, decoder="dali"), strict=True
    ):
        assert ours.digest == theirs.digest
        assert ours.clips == theirs.clips
        # chroma is upsampled differently: 1.3 of 255 on average was seen on natural video
        assert (ours.pixels - theirs.pixels).abs().mean() < 1.5 / 255 / min(DataConfig().std)


def test_gpu_decoding_refuses_what_nvdec_does_not_read() -> None:
    row = {"codec": "h264", "pixel_format": "yuv420p", "rotation": 0, "width": 320, "height": 240}
    assert dali_reads(row, GPU_CODECS)
    for change in (
        {"pixel_format": "yuv420p10le"},
        {"rotation": 90},
        {"codec": "gif"},
        {"height": 128},
    ):
        assert not dali_reads({**row, **change}, GPU_CODECS)


@pytest.mark.parametrize(
    ("capability", "av1"),
    [
        ((7, 5), False),
        ((8, 0), False),
        ((8, 6), True),
        ((8, 9), True),
        ((9, 0), False),
        ((10, 0), True),
    ],
)
def test_av1_goes_to_cards_that_decode_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], av1: bool
) -> None:
    """NVIDIA's NVDEC application note; the shortest side holds for all of NVDEC's codecs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    codecs = dali_pipeline._codecs_of_gpu(0)
    row = {"codec": "av1", "pixel_format": "yuv420p", "rotation": 0, "width": 320, "height": 240}
    assert dali_reads(row, codecs) == av1
    assert dali_reads({**row, "codec": "h264"}, codecs)
    assert not dali_reads({**row, "codec": "h264", "height": 128}, codecs)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no memory"), RuntimeError("Cannot load libnvcuvid.so.1")]
)
def test_a_fault_of_the_device_condemns_no_clip(
    monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    augment = dali_pipeline.DaliPipeline(CLIP, DataConfig(backend="cpu", dali_threads=1), CPU, 4)
    frames = np.zeros((3, 40, 50, 3), np.uint8)
    choices = sample_eval(DataConfig(), frames=3, width=50, height=40, wanted=3)

    def run(media: Sequence[object], _: object) -> object:
        raise error if len(media) > 1 else AssertionError("no clip is tried alone")

    monkeypatch.setattr(augment, "_run", run)
    with pytest.raises(type(error), match=str(error)):
        augment([frames] * 4, [choices] * 4)


def test_a_batch_that_fails_without_a_bad_clip_is_retried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    augment = dali_pipeline.DaliPipeline(CLIP, DataConfig(backend="cpu", dali_threads=1), CPU, 4)
    frames = np.zeros((3, 40, 50, 3), np.uint8)
    choices = sample_eval(DataConfig(), frames=3, width=50, height=40, wanted=3)
    real, failures = augment._run, [RuntimeError("passing")]

    def run(media: Sequence[object], chosen: object) -> object:
        if len(media) > 1 and failures:
            raise failures.pop()
        return real(media, chosen)  # type: ignore[arg-type]

    monkeypatch.setattr(augment, "_run", run)
    assert augment([frames] * 4, [choices] * 4).shape == (4, 3, 3, CLIP.image_size, CLIP.image_size)
    assert not failures


def test_only_the_stream_that_dali_cannot_decode_is_replaced(
    odd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    real, broken = allinone.data.decoding.segment.trim, "a clip called vp9.mp4"

    def trim_and_break(content: bytes, *arguments: object) -> object:
        cut = real(content, *arguments)  # type: ignore[arg-type]
        return (
            cut
            if content != row_of(odd, "vp9.mp4")[1]
            else type(cut)(cut.content[:200], cut.frames)
        )

    monkeypatch.setattr(allinone.data.decoding.segment, "trim", trim_and_break)
    taken = batches(odd, decoder="dali", max_bad_share=1.0)
    assert all(len(batch) == 4 for batch in taken)
    assert all(broken not in batch.captions for batch in taken)
    bad = [clip for batch in taken for clip in batch.bad]
    assert bad
    assert {clip.clip for clip in bad} == {"train/vp9.mp4"}
    evaluated = list(
        EvalSet(DatasetSpec(odd), CLIP, DataConfig(workers=0, decoder="dali")).batches(
            rank=0, world=1, batch_size=5, device=CPU
        )
    )
    assert [clip.clip for batch in evaluated for clip in batch.bad] == ["train/vp9.mp4"]
    assert sum(len(batch) for batch in evaluated) == len(media.GOOD) - 1


def operators(pipeline: Pipeline) -> list[tuple[str, str]]:
    """(operator, device) of a graph, read from its serialized form."""
    text = pipeline.serialize()
    devices = re.findall(rb"\x06device\x12\x06string[^a-z]*?(cpu|gpu|mixed)\b", text)
    names = re.findall(rb"_display_name\x12\x06string[^a-z_]*?([a-z_]+)", text)
    return [(name.decode(), device.decode()) for name, device in zip(names, devices, strict=True)]


@pytest.mark.parametrize("encoded", [True, False])
def test_gpu_and_cpu_graphs_have_the_same_operators(
    encoded: bool,
) -> None:
    def build(on_gpu: bool) -> list[tuple[str, str]]:
        config = DataConfig(color_jitter=0.2)
        return operators(
            build_pipeline(
                CLIP, config, max_batch=4, device_id=None, encoded=encoded, on_gpu=on_gpu
            )
        )

    gpu, cpu = build(True), build(False)
    assert [name for name, _ in gpu] == [name for name, _ in cpu]
    assert {device for _, device in cpu} == {"cpu"}
    placed = dict(gpu)
    assert placed["resize"] == placed["color_twist"] == placed["crop_mirror_normalize"] == "gpu"
    assert placed.get("video") == ("mixed" if encoded else None)


def prepare_limited(source: Path, out: Path, largest_file: int) -> subprocess.CompletedProcess[str]:
    """tools/prepare.py in a process whose files may not grow beyond `largest_file` bytes, as on a
    full disk."""
    return subprocess.run(
        [
            sys.executable,
            str(ROOT / "tools/prepare.py"),
            str(source),
            "--out",
            str(out),
            "--workers",
            "1",
            "--shard-clips",
            "4",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file)),
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )


def test_preparing_continues_after_a_full_disk(tmp_path: Path) -> None:
    names = {
        f"{k}.mp4": media.write_video(tmp_path / "source" / f"{k}.mp4", first=k) for k in range(6)
    }
    source, out = write_source(tmp_path / "source", names), tmp_path / "out"
    full = prepare_limited(source, out, 15_000)
    assert full.returncode == 2, full.stderr
    assert "Free space, then the same command continues" in full.stderr
    assert "Traceback" not in full.stderr
    assert not [path for path in out.rglob("*") if path.name.startswith(".tmp-")]
    assert not (out / "dataset.json").exists()
    assert prepare_limited(source, out, 10_000_000).returncode == 0
    assert len(Index(out, "train")) == 6
