"""Training batches of benchmark items: deterministic, elastic, bad items replaced."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from allinone.data.config import ClipConfig, DataConfig
from allinone.finetune.annotations.schema import Media, QAItem
from allinone.finetune.inputs.batch import TaskBatch
from allinone.finetune.inputs.clip_reader import MediaReader
from allinone.finetune.inputs.loader import TaskSource, TaskStream, evaluation_batches
from allinone.finetune.tasks.open_ended_qa import QAExamples
from tests.finetune.inputs.conftest import library

CPU = torch.device("cpu")


def stream(folder: Path, cache: Path, folder_of_log: Path, share: float = 0.5) -> TaskStream:
    items = [
        QAItem(str(n), Media(name, name), f"what is {n} ?", ("x",))
        for n, name in enumerate(["a/clip", "loud", "cut", "moving"])
    ]
    found = library(folder, cache, *(item.media for item in items))
    clip, config = ClipConfig(2, 32, 16), DataConfig(workers=0, max_bad_share=share)
    make = QAExamples(items, {"x": 0}, soft=False)
    source = TaskSource(
        "made-up/train", [item.id for item in items], make, MediaReader(found, clip, config), clip
    )
    return TaskStream(source, config, seed=3, bad_clips=folder_of_log)


def taken(
    data: TaskStream, batches: int, first: int = 0, rank: int = 0, world: int = 1
) -> list[tuple[int, int, tuple[str, ...]]]:
    found = data.batches(first=first, rank=rank, world=world, micro_batch=2, device=CPU)
    return [
        (batch.first_position, batch.digest, batch.clips)
        for batch, _ in zip(found, range(batches), strict=False)
    ]


def test_batches_do_not_depend_on_world_size_or_restarts(folder: Path, tmp_path: Path) -> None:
    alone = taken(stream(folder, tmp_path, tmp_path / "bad_clips"), 6)
    assert [position for position, *_ in alone] == [0, 2, 4, 6, 8, 10]
    assert all("2" not in clips for *_, clips in alone)  # item 2 shows cut.mp4
    log = (tmp_path / "bad_clips" / "rank-0.jsonl").read_text()
    assert '"clip": "2"' in log
    assert "cut.mp4: " in log
    ranks = [
        taken(stream(folder, tmp_path, tmp_path / "other"), 3, rank=rank, world=2)
        for rank in (0, 1)
    ]
    assert sorted(ranks[0] + ranks[1]) == alone
    assert taken(stream(folder, tmp_path, tmp_path / "third"), 3, first=6) == alone[3:]


def evaluated(
    folder: Path, cache: Path, augmentation: Literal["dali", "torch"]
) -> list[tuple[int, TaskBatch | None, list[str]]]:
    """Batches 1 and 0 of four items, of which item 2 is broken, with two views."""
    names = ["a/clip", "loud", "cut", "moving"]
    items = [QAItem(str(n), Media(name, name), "what ?", ("x",)) for n, name in enumerate(names)]
    found = library(folder, cache, *(item.media for item in items))
    clip, config = ClipConfig(2, 32, 16), DataConfig(workers=0, augment_backend=augmentation)
    make = QAExamples(items, {"x": 0}, soft=False)
    source = TaskSource("made-up/val", names, make, MediaReader(found, clip, config), clip)
    batches = evaluation_batches(source, [[0, 1], [2, 3]], [1, 0], config, CPU, views=2)
    return [(k, batch, [clip.clip for clip in bad]) for k, batch, bad in batches]


def test_evaluation_without_dali_shows_the_same(folder: Path, tmp_path: Path) -> None:
    dali, twin = (evaluated(folder, tmp_path, kind) for kind in ("dali", "torch"))
    for (k, ours, bad), (k_twin, theirs, bad_twin) in zip(dali, twin, strict=True):
        assert ours is not None
        assert theirs is not None
        assert (k, bad, ours.items) == (k_twin, bad_twin, theirs.items)
        assert ours.digest == theirs.digest
        assert ours.pixels.shape == (len(ours.items), 1, 2, 2, 3, 32, 32)
        assert (ours.pixels - theirs.pixels).abs().max() < 1.01 / 255 / min(DataConfig().std)
    assert [(k, batch and batch.items, bad) for k, batch, bad in twin] == [
        (1, (3,), ["2"]),
        (0, (0, 1), []),
    ]
