"""Parts of a batch."""

from __future__ import annotations

import torch

from allinone.data.loading.batch import Batch, CoBatch


def test_one_clip_of_a_batch_keeps_its_text_and_masks() -> None:
    labels = torch.full((3, 4), -100)
    labels[0, 1], labels[2, 1], labels[2, 3] = 7, 8, 9
    ids = torch.arange(12).view(3, 4)
    batch = Batch(
        pixels=torch.arange(3.0).view(3, 1, 1, 1, 1),
        text_ids=ids,
        text_mask=torch.ones_like(ids),
        mlm_ids=ids + 100,
        mlm_labels=labels,
        mlm_positions=(labels.flatten() >= 0).nonzero().flatten(),
        dataset_ids=torch.tensor([0, 1, 1]),
        dataset_names=("a", "b"),
        clips=("x", "y", "z"),
        captions=("X", "Y", "Z"),
        first_position=40,
    )
    alone = batch.only(2)
    assert (alone.clips, alone.captions, alone.first_position, len(alone)) == (
        ("z",),
        ("Z",),
        42,
        1,
    )
    assert alone.text_ids.tolist() == [[8, 9, 10, 11]]
    assert alone.mlm_labels.flatten()[alone.mlm_positions].tolist() == [8, 9]
    assert batch.only(1).mlm_positions.tolist() == []
    assert batch.first(2).mlm_positions.tolist() == [1]
    both = CoBatch(video=batch, images=batch)
    assert both.only(1).clips == ("y",)
    assert both.only(4).video is None
    assert both.only(4).clips == ("y",)
