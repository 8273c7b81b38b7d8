"""Training batches of benchmark items: deterministic, elastic, bad items replaced."""

from __future__ import annotations

from pathlib import Path

import torch

from allinone.data.config import ClipConfig, DataConfig
from allinone.finetune.annotations.schema import Media, QAItem
from allinone.finetune.inputs.clip_reader import Reader
from allinone.finetune.inputs.loader import Source, TaskStream
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
    source = Source(
        "made-up/train", [item.id for item in items], make, Reader(found, clip, config), clip
    )
    return TaskStream(source, config, seed=3, ledger=folder_of_log)


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
