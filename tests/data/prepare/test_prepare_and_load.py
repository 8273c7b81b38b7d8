"""From odd files to batches: every bad clip named, every good frame the right one, the same batches
at any world size and after a restart."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from allinone.common.errors import DataError
from allinone.data import EvalSet, TrainStream
from allinone.data.config import ClipConfig, DataConfig, DatasetSpec
from allinone.data.decoding.frames import DecodeError, Timeline, decode_frames
from allinone.data.loading import open_files
from allinone.data.loading.bad_clips import BadClipShareError, Ledger
from allinone.data.loading.batch import BadClip
from allinone.data.loading.index import Index
from allinone.data.loading.sampling import fixed
from allinone.data.prepare.pipeline import PrepareOptions, PrepareSummary, prepare

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "data" / "demo"
CPU = torch.device("cpu")
CLIP = ClipConfig(num_frames=3, image_size=32, max_text_len=12)


def small_demo(folder: Path, clips: int = 40) -> Path:
    """The first clips of the embedded set, laid out as WebVid."""
    lines = (DEMO / "results_demo_train.csv").read_text().splitlines()[: clips + 1]
    folder.mkdir(parents=True)
    (folder / "results_demo_train.csv").write_text("\n".join(lines) + "\n")
    (folder / "videos").symlink_to(DEMO / "videos")
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    summary = prepare(
        PrepareOptions(small_demo(folder / "source"), folder / "out", shard_clips=15, workers=2),
        progress=False,
    )
    assert summary.clips == {"train": 40}
    assert summary.bad == {}
    return folder / "out"


def own_csv(folder: Path, rows: list[tuple[str, str]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "my.csv"
    path.write_text("path,caption\n" + "".join(f'{name},"{caption}"\n' for name, caption in rows))
    return path


def reasons(out: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in (out / "bad_clips.jsonl").read_text().splitlines()]
    return {row["source"]: row["reason"] for row in rows}


def test_index_points_at_the_very_bytes_and_webdataset_reads_the_shards(prepared: Path) -> None:
    index = Index(prepared, "train")
    assert len(index) == 40
    by_caption = {}
    for item in range(40):
        row = index[item]
        content = (prepared / row["shard"]).read_bytes()[
            row["offset"] : row["offset"] + row["size"]
        ]
        assert content == (DEMO / "videos" / row["source"]).read_bytes()
        by_caption[row["key"]] = (row["captions"][0], content)
    shards = sorted(str(path) for path in (prepared / "shards").glob("*.tar"))
    assert len(shards) == 3
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert {
        json.loads(s["json"])["key"]: (s["txt"].decode(), s["mp4"]) for s in samples
    } == by_caption


def test_every_kind_of_bad_row_and_file_is_named_and_the_good_ones_stay(tmp_path: Path) -> None:
    good = (DEMO / "videos" / "000001_000200" / "1.mp4").read_bytes()
    source = tmp_path / "source"
    source.mkdir()
    files = {
        "good.mp4": good,
        "quoted.mp4": good,
        "empty.mp4": b"",
        "page.mp4": b"<!DOCTYPE html><html>403</html>",
        "noise.mp4": bytes(range(256)) * 40,
        "cut.mp4": good[: len(good) // 2],
        "silent.mp4": good,
    }
    for name, content in files.items():
        (source / name).write_bytes(content)
    rows = [(name, "a caption") for name in files if name != "silent.mp4"] + [
        ("silent.mp4", " "),
        ("gone.mp4", "x"),
        ("good.mp4", "again"),
    ]
    path = own_csv(source, rows)
    path.write_text(
        path.read_text().replace('quoted.mp4,"a caption"', 'quoted.mp4,"one, two ""three"""')
        + "short\n../../etc/passwd,evil\n"
    )
    prepare(PrepareOptions(path, tmp_path / "out", workers=2), progress=False)
    found = reasons(tmp_path / "out")
    assert found["empty.mp4"] == "empty_file"
    assert found["page.mp4"] == "not_a_video"
    assert found["noise.mp4"] == "undecodable"
    assert found["cut.mp4"] in ("undecodable", "truncated")
    assert found["silent.mp4"] == "no_caption"
    assert found["gone.mp4"] == "missing"
    assert found["good.mp4"] == "duplicate"
    assert found["my.csv:11"] == "bad_row"
    assert found["../../etc/passwd"] == "bad_row"
    index = Index(tmp_path / "out", "train")
    assert sorted(index[item]["captions"][0] for item in range(len(index))) == [
        "a caption",
        'one, two "three"',
    ]


def test_wrong_sources_say_what_is_needed(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("file_name,words\na,b\n")
    with pytest.raises(
        DataError, match=r"path/video/file, name/caption/text is missing; found: file_name, words"
    ):
        prepare(PrepareOptions(tmp_path / "bad.csv", tmp_path / "out"), progress=False)
    with pytest.raises(DataError, match="no such source"):
        prepare(PrepareOptions(tmp_path / "nothing", tmp_path / "out2"), progress=False)
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="webdataset"):
        prepare(PrepareOptions(tmp_path / "folder", tmp_path / "out3"), progress=False)
    (tmp_path / "folder" / "notes").write_text("mine")
    with pytest.raises(DataError, match="another --out"):
        prepare(PrepareOptions(DEMO, tmp_path / "folder"), progress=False)


def test_again_is_done_and_other_options_are_refused(prepared: Path) -> None:
    source = prepared.parent / "source"
    assert prepare(PrepareOptions(source, prepared, shard_clips=15), progress=False).done_before
    with pytest.raises(DataError, match="shard_clips: 15 → 7"):
        prepare(PrepareOptions(source, prepared, shard_clips=7), progress=False)


def test_prepare_killed_at_any_moment_ends_with_the_same_bytes(
    prepared: Path, tmp_path: Path
) -> None:
    source = prepared.parent / "source"
    command = [
        sys.executable,
        "tools/prepare.py",
        str(source),
        "--out",
        str(tmp_path / "out"),
        "--shard-clips",
        "15",
        "--workers",
        "1",
    ]
    for delay in (0.6, 0.9, 1.2):
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    for path in sorted((prepared / "shards").glob("*.tar")):
        assert (tmp_path / "out" / "shards" / path.name).read_bytes() == path.read_bytes()
    assert (tmp_path / "out" / "index.arrow").read_bytes() == (
        prepared / "index.arrow"
    ).read_bytes()
    assert not list((tmp_path / "out").rglob(".tmp-*"))


def test_a_program_without_a_main_guard_is_told_so(prepared: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from pathlib import Path\nfrom allinone.data.prepare.pipeline import PrepareOptions,"
        f" prepare\nprepare(PrepareOptions(Path({str(prepared.parent / 'source')!r}),"
        f" Path({str(tmp_path / 'out')!r}), workers=1), progress=False)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, str(program)],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 1
    assert "DataError: a decoding process ended before it could work" in ended.stderr
    assert "if __name__ == '__main__':" in ended.stderr.splitlines()[-1]
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_tars_of_video2dataset_are_read_and_member_names_never_become_paths(tmp_path: Path) -> None:
    import io

    good = (DEMO / "videos" / "000001_000200" / "1.mp4").read_bytes()
    with tarfile.open(tmp_path / "00000.tar", "w") as archive:
        for name, content in (
            ("../../000.mp4", good),
            ("../../000.txt", b"from txt"),
            ("001.mp4", good),
            ("001.json", b'{"caption": "from json"}'),
            ("002.json", b'{"caption": "no media", "status": "failed_to_download"}'),
            ("a/1.mp4", good),
            ("a/1.txt", b"one of a"),
            ("./b/1.v2.mp4", good),
            ("b/1.mp4", good),
            ("b/1.txt", b"one of b"),
            ("b/1.txt", b"another one of b"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    summary = prepare(
        PrepareOptions(tmp_path / "00000.tar", tmp_path / "out", workers=1), progress=False
    )
    index = Index(tmp_path / "out", "train")
    assert [index[item]["captions"][0] for item in range(len(index))] == [
        "from txt",
        "from json",
        "one of a",
        "one of b",
    ]
    assert summary.bad == {"missing": 1, "duplicate": 1}


def stream(out: Path, **options: object) -> TrainStream:
    config = DataConfig(
        **{"workers": 0, "dali_threads": 1, "flip": 0.5, "color_jitter": 0.3, **options}
    )  # type: ignore[arg-type]
    return TrainStream([DatasetSpec(out)], CLIP, config, seed=3)


def take(
    data: TrainStream, count: int, first: int = 0, rank: int = 0, world: int = 1
) -> list[object]:
    batches = data.batches(first=first, rank=rank, world=world, micro_batch=4, device=CPU)
    taken = [next(batches) for _ in range(count)]
    batches.close()  # type: ignore[attr-defined]
    return taken


def same(a: object, b: object) -> None:
    for name, value in vars(a).items():
        other = vars(b)[name]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, (
            name
        )


def test_batches_are_bit_equal_over_workers_world_sizes_and_restarts(prepared: Path) -> None:
    base = take(stream(prepared), 12)
    for a, b in zip(base, take(stream(prepared, workers=2), 12), strict=True):
        same(a, b)
    for world in (2, 3):
        for rank in range(world):
            for k, batch in enumerate(take(stream(prepared), 12 // world, rank=rank, world=world)):
                same(batch, base[k * world + rank])
    for a, b in zip(base[5:], take(stream(prepared), 7, first=20), strict=True):
        same(a, b)
    assert len({batch.digest for batch in base}) == 12  # type: ignore[attr-defined]
    assert sorted(clip for batch in base[:10] for clip in batch.clips) == sorted(
        f"train/{i}" for i in keys(prepared)
    )  # type: ignore[attr-defined]


def keys(out: Path) -> list[str]:
    index = Index(out, "train")
    return [index[item]["key"].removeprefix("train/") for item in range(len(index))]


def test_pixels_equal_pillow_within_interpolation(prepared: Path) -> None:
    dataset = EvalSet(DatasetSpec(prepared), CLIP, DataConfig(workers=0))
    batch, *_ = dataset.batches(rank=0, world=1, batch_size=8, device=CPU)
    index = Index(prepared, "train")
    for item in range(4):
        row = index[item]
        content = (DEMO / "videos" / row["source"]).read_bytes()
        choices = fixed(
            DataConfig(), frames=row["frames"], width=row["width"], height=row["height"], wanted=3
        )
        frames = decode_frames(content, choices.frames)
        expected = np.stack(
            [
                np.asarray(Image.fromarray(frame).resize((32, 32), Image.Resampling.BILINEAR))
                for frame in frames
            ]
        )
        pixels = (expected / 255 - np.array(DataConfig().mean)) / np.array(DataConfig().std)
        difference = np.abs(batch.pixels[item].permute(0, 2, 3, 1).numpy() - pixels)
        assert difference.mean() < 0.02
        assert difference.max() < 0.2


def test_evaluation_has_every_item_once_at_any_world_size(prepared: Path) -> None:
    dataset = EvalSet(DatasetSpec(prepared), CLIP, DataConfig(workers=0))
    for world in (1, 3):
        names = [
            clip
            for rank in range(world)
            for batch in dataset.batches(rank=rank, world=world, batch_size=7, device=CPU)
            for clip in batch.clips
        ]
        assert sorted(names) == sorted(f"train/{key}" for key in keys(prepared))


def test_chosen_frames_equal_a_full_decode_with_and_without_a_seek() -> None:
    import io

    import av

    content = (DEMO / "videos" / "000001_000200" / "7.mp4").read_bytes()
    with av.open(io.BytesIO(content)) as container:
        frames = [
            frame.to_ndarray(format="rgb24", src_colorspace="ITU601", dst_colorspace="ITU601")
            for frame in container.decode(video=0)
        ]
    for wanted in ((0, 5, 23), (13, 20, 22), (12, 12, 12)):
        for keyframes in ((0,), (0, 12)):
            got = decode_frames(content, wanted, Timeline(keyframes, rate=len(frames) / 2.376))
            assert all(
                np.array_equal(frame, frames[number])
                for frame, number in zip(got, wanted, strict=True)
            )
    with pytest.raises(DecodeError, match="frame 99"):
        decode_frames(content, (99,))


def damaged(prepared: Path, target: Path, clips: int) -> Path:
    """A copy in which the bytes of the first clips are noise, after the index was made."""
    shutil.copytree(prepared, target)
    index = Index(prepared, "train")
    for item in range(clips):
        row = index[item]
        with (target / row["shard"]).open("r+b") as file:
            file.seek(row["offset"])
            file.write(bytes(row["size"]))
    return target


def test_a_clip_that_fails_is_replaced_the_same_way_everywhere_and_named(
    prepared: Path, tmp_path: Path
) -> None:
    out = damaged(prepared, tmp_path / "out", 2)
    data = TrainStream(
        [DatasetSpec(out)],
        CLIP,
        DataConfig(workers=0, max_bad_share=1.0),
        seed=3,
        ledger=tmp_path / "ledger",
    )
    whole = take(data, 10)
    assert sum(len(batch.bad) for batch in whole) >= 2  # type: ignore[attr-defined]
    assert all(len(batch.clips) == 4 for batch in whole)  # type: ignore[attr-defined]
    for k in range(5):
        same(take(data, 5, rank=1, world=2)[k], whole[2 * k + 1])
    lines = [
        json.loads(line) for line in (tmp_path / "ledger" / "rank-0.jsonl").read_text().splitlines()
    ]
    assert {line["clip"] for line in lines} == {f"train/{key}" for key in keys(prepared)[:2]}
    dataset = EvalSet(DatasetSpec(out), CLIP, DataConfig(workers=0))
    batches = list(dataset.batches(rank=0, world=1, batch_size=8, device=CPU))
    assert sum(len(batch) for batch in batches) == 38
    assert sum(len(batch.bad) for batch in batches) == 2


def test_every_bad_clip_is_named_once_in_every_epoch_also_where_a_batch_spans_two(
    prepared: Path, tmp_path: Path
) -> None:
    out = damaged(prepared, tmp_path / "out", 5)
    data = TrainStream(
        [DatasetSpec(out)],
        CLIP,
        DataConfig(workers=0, max_bad_share=1.0),
        seed=3,
        ledger=tmp_path / "ledger",
    )
    source = data.batches(first=0, rank=0, world=1, micro_batch=7, device=CPU)
    for _ in range(-(-4 * 40 // 7)):  # four epochs of 40 clips
        next(source)
    source.close()  # type: ignore[attr-defined]
    lines = [
        json.loads(line) for line in (tmp_path / "ledger" / "rank-0.jsonl").read_text().splitlines()
    ]
    for epoch in range(4):
        named = [line["clip"] for line in lines if line["epoch"] == epoch]
        assert sorted(named) == sorted(f"train/{key}" for key in keys(prepared)[:5])


def test_what_was_named_before_a_restart_is_not_named_again(prepared: Path, tmp_path: Path) -> None:
    out, ledger = damaged(prepared, tmp_path / "out", 5), tmp_path / "ledger" / "rank-0.jsonl"
    for first in (0, 12, 36):  # from a checkpoint before the end; and into the next epoch
        source = TrainStream(
            [DatasetSpec(out)],
            CLIP,
            DataConfig(workers=0, max_bad_share=1.0),
            seed=3,
            ledger=ledger.parent,
        ).batches(first=first, rank=0, world=1, micro_batch=4, device=CPU)
        for _ in range(8):
            next(source)
        source.close()  # type: ignore[attr-defined]
        with ledger.open("a") as file:
            file.write('{"dataset": "cut')  # a full disk, then a kill
            file.write("\n")
    lines = [
        json.loads(line) for line in ledger.read_text().splitlines() if not line.endswith("cut")
    ]
    assert len({(line["clip"], line["epoch"]) for line in lines}) == len(lines) >= 8


def judged(share: float, ranks: int, clips: int) -> int:
    """How many ranks end a run whose clips are bad with this probability, at a limit of 1 %."""
    ended, random = 0, np.random.default_rng(0)
    for rank in range(ranks):
        ledger = Ledger(None, rank, 0.01)
        try:
            for bad in random.binomial(16, share, size=clips // 16):
                ledger.add(
                    16 - int(bad), tuple(BadClip("a", str(k), "undecodable") for k in range(bad))
                )
        except BadClipShareError:
            ended += 1
    return ended


def test_healthy_data_passes_on_every_rank_and_broken_data_stops_each_soon() -> None:
    assert judged(0.005, ranks=512, clips=16_000) == 0
    assert judged(0.01, ranks=64, clips=16_000) <= 1
    assert judged(0.015, ranks=64, clips=32_000) == 64
    assert judged(0.1, ranks=64, clips=640) == 64


def test_storage_in_trouble_is_not_a_lost_shard(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lost shard ends a job for good; after an eviction from Lustre it is to start again."""

    def fail(number: int) -> Callable[..., int]:
        def opened(path: str) -> int:
            raise OSError(number, os.strerror(number), path)

        return opened

    for number, kind in (
        (errno.ESHUTDOWN, OSError),
        (errno.EIO, OSError),
        (errno.ENOENT, DataError),
        (errno.EMFILE, DataError),
    ):
        monkeypatch.setattr(open_files, "OpenFile", fail(number))
        with pytest.raises(kind, match=os.strerror(number)):
            take(stream(prepared), 8)
        monkeypatch.undo()


def test_evaluation_keeps_its_limit_at_any_world_size(prepared: Path) -> None:
    data = EvalSet(DatasetSpec(prepared, "train"), CLIP, DataConfig(workers=0))
    for world in (1, 3, 8):
        taken = [
            name
            for rank in range(world)
            for batch in data.batches(
                rank=rank, world=world, batch_size=4, device=torch.device("cpu"), limit=10
            )
            for name in batch.clips
        ]
        assert len(taken) == len(set(taken)) == 10


def test_too_many_bad_clips_and_lost_shards_stop_with_the_way_out(
    prepared: Path, tmp_path: Path
) -> None:
    out = damaged(prepared, tmp_path / "out", 2)
    with pytest.raises(BadClipShareError, match="--max-bad-share"):
        take(stream(out), 80)
    next((out / "shards").glob("*.tar")).unlink()
    with pytest.raises(DataError, match=r"shard .*\.tar cannot be opened"):
        take(stream(out), 40)
    with pytest.raises(DataError, match="splits: train"):
        Index(prepared, "val")
    with pytest.raises(DataError, match=r"tools/prepare\.py"):
        Index(tmp_path, "train")


def test_a_summary_knows_its_share_of_bad_clips() -> None:
    assert PrepareSummary({"train": 3}, {"missing": 1}, 0.75, 0, 0.0).bad_share == 0.25


def test_workers_outlive_the_signals_that_make_training_save(prepared: Path) -> None:
    """Ctrl-C and Slurm reach every process of a run; the next batches, far beyond what was queued,
    still come and are the right ones."""
    import psutil

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


def training(prepared: Path, end: str) -> subprocess.Popen[str]:
    """A process that has the first batch, says so, and then does `end`; its readers wait to hand
    over the next."""
    script = f"""
import sys, time, torch
from pathlib import Path
from allinone.data import TrainStream
from allinone.data.config import ClipConfig, DataConfig, DatasetSpec
if __name__ == "__main__":
    data = TrainStream([DatasetSpec(Path({str(prepared)!r}))], ClipConfig(3, 224, 12), DataConfig(workers=2), seed=0)
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
    import psutil

    process = training(prepared, 'time.sleep(3); raise RuntimeError("out of memory")')
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 3
    _, message = process.communicate(timeout=60)  # readers outlive a SIGTERM by two minutes
    assert process.returncode == 1
    assert message.splitlines()[-1] == "RuntimeError: out of memory", message
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_no_worker_stays_behind_a_killed_training(prepared: Path) -> None:
    import psutil

    process = training(prepared, "time.sleep(600)")
    time.sleep(1)  # until the queues are full and the workers wait to hand over
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 3
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
