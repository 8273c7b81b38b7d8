"""Clips that fail while training are replaced, logged once per epoch, and limited."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from allinone.common.errors import DataError, LostDataError, StorageError
from allinone.data import EvalSet, TrainStream
from allinone.data.config import DataConfig, DatasetSpec
from allinone.data.index import Index
from allinone.data.loading import open_files
from allinone.data.loading.bad_clips import BadClipLog, BadClipShareError
from allinone.data.loading.batch import BadClip
from tests.data.helpers import prepare_small_demo
from tests.data.loading.streams import CLIP, CPU, assert_same, keys, stream, take


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_small_demo(tmp_path_factory.mktemp("prepared"))


def damaged(prepared: Path, target: Path, clips: int) -> Path:
    """A copy of a prepared folder in which the bytes of the first clips are zeros."""
    shutil.copytree(prepared, target)
    index = Index(prepared, "train")
    for item in range(clips):
        row = index[item]
        with (target / row["shard"]).open("r+b") as file:
            file.seek(row["offset"])
            file.write(bytes(row["size"]))
    return target


def logging_stream(out: Path, folder: Path) -> TrainStream:
    """A stream that accepts any number of bad clips, and logs them in `folder`."""
    config = DataConfig(workers=0, max_bad_share=1.0)
    return TrainStream([DatasetSpec(out)], CLIP, config, seed=3, bad_clips=folder)


def logged(folder: Path) -> list[dict[str, object]]:
    """Lines of the bad-clip log of rank 0."""
    return [json.loads(line) for line in (folder / "rank-0.jsonl").read_text().splitlines()]


def test_a_failing_clip_is_replaced_alike_on_every_rank(prepared: Path, tmp_path: Path) -> None:
    out = damaged(prepared, tmp_path / "out", 2)
    data = logging_stream(out, tmp_path / "log")
    batches = take(data, 10)
    assert sum(len(batch.bad) for batch in batches) >= 2  # type: ignore[attr-defined]
    assert all(len(batch.clips) == 4 for batch in batches)  # type: ignore[attr-defined]
    for k in range(5):
        assert_same(take(data, 5, rank=1, world=2)[k], batches[2 * k + 1])
    lines = logged(tmp_path / "log")
    assert {line["clip"] for line in lines} == {f"train/{key}" for key in keys(prepared)[:2]}
    dataset = EvalSet(DatasetSpec(out), CLIP, DataConfig(workers=0))
    evaluated = list(dataset.batches(rank=0, world=1, batch_size=8, device=CPU))
    assert sum(len(batch) for batch in evaluated) == 38
    assert sum(len(batch.bad) for batch in evaluated) == 2


def test_every_bad_clip_is_logged_once_per_epoch(prepared: Path, tmp_path: Path) -> None:
    out = damaged(prepared, tmp_path / "out", 5)
    data = logging_stream(out, tmp_path / "log")
    source = data.batches(first=0, rank=0, world=1, micro_batch=7, device=CPU)
    for _ in range(-(-4 * 40 // 7)):  # four epochs of 40 clips
        next(source)
    source.close()  # type: ignore[attr-defined]
    lines = logged(tmp_path / "log")
    for epoch in range(4):
        named = [line["clip"] for line in lines if line["epoch"] == epoch]
        assert sorted(named) == sorted(f"train/{key}" for key in keys(prepared)[:5])


def test_a_restart_does_not_log_a_bad_clip_again(prepared: Path, tmp_path: Path) -> None:
    out = damaged(prepared, tmp_path / "out", 5)
    log = tmp_path / "log" / "rank-0.jsonl"
    for first in (0, 12, 36):  # from a checkpoint before the end; and into the next epoch
        data = logging_stream(out, log.parent)
        source = data.batches(first=first, rank=0, world=1, micro_batch=4, device=CPU)
        for _ in range(8):
            next(source)
        source.close()  # type: ignore[attr-defined]
        with log.open("a") as file:
            file.write('{"dataset": "cut')  # a full disk, then a kill
            file.write("\n")
    lines = [json.loads(line) for line in log.read_text().splitlines() if not line.endswith("cut")]
    assert len({(line["clip"], line["epoch"]) for line in lines}) == len(lines) >= 8


def ranks_stopped(share: float, ranks: int, clips: int) -> int:
    """How many ranks stop when clips are bad with this probability, at a limit of 1 %."""
    ended, random = 0, np.random.default_rng(0)
    for rank in range(ranks):
        ledger = BadClipLog(None, rank, 0.01)
        try:
            for bad in random.binomial(16, share, size=clips // 16):
                ledger.add(
                    16 - int(bad), tuple(BadClip("a", str(k), "undecodable") for k in range(bad))
                )
        except BadClipShareError:
            ended += 1
    return ended


def test_the_bad_clip_limit_stops_damaged_data_only() -> None:
    assert ranks_stopped(0.005, ranks=512, clips=16_000) == 0
    assert ranks_stopped(0.01, ranks=64, clips=16_000) <= 1
    assert ranks_stopped(0.015, ranks=64, clips=32_000) == 64
    assert ranks_stopped(0.1, ranks=64, clips=640) == 64


def test_a_storage_failure_is_not_a_lost_shard(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lost shard ends a job; after an eviction from Lustre the job must start again."""

    def fail(number: int) -> Callable[..., int]:
        def opened(path: str) -> int:
            raise OSError(number, os.strerror(number), path)

        return opened

    for number, kind in (
        (errno.ESHUTDOWN, StorageError),
        (errno.EIO, StorageError),
        (errno.ENOENT, LostDataError),
        (errno.EMFILE, LostDataError),
    ):
        monkeypatch.setattr(open_files, "OpenFile", fail(number))
        monkeypatch.setattr(open_files, "PAUSES_S", (0.0,))
        with pytest.raises(kind, match=os.strerror(number)):
            take(stream(prepared), 8)
        monkeypatch.undo()


def test_errors_of_damaged_folders_state_the_remedy(prepared: Path, tmp_path: Path) -> None:
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
