"""Padding of texts in batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from allinone.data.config import TextPadding
from allinone.data.loading.text_padding import computed_tokens, pad_texts
from tests.data.helpers import prepare_small_demo
from tests.data.loading.streams import stream, take

LENGTHS = torch.tensor([[4, 11], [9, 2]])


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_small_demo(tmp_path_factory.mktemp("prepared"))


def texts(limit: int = 40) -> dict[str, torch.Tensor]:
    mask = (torch.arange(limit) < LENGTHS[..., None]).long()
    return {"text_mask": mask, "text_ids": mask * torch.arange(1, limit + 1), "other": LENGTHS}


def test_longest_cuts_texts_to_a_multiple_of_8() -> None:
    fields = ("text_mask", "text_ids")
    found, lengths = pad_texts(texts(), fields, "longest")
    assert lengths is None
    assert found["text_ids"].shape == (2, 2, 16)
    assert torch.equal(found["text_mask"].sum(-1), LENGTHS)
    assert found["text_ids"].max() == 11
    assert torch.equal(found["other"], LENGTHS)
    assert pad_texts(texts(12), fields, "longest")[0]["text_ids"].shape == (2, 2, 12), "the limit"


@pytest.mark.parametrize("padding", ["full", "packed"])
def test_other_texts_keep_their_shape(padding: TextPadding) -> None:
    found, lengths = pad_texts(texts(), ("text_mask", "text_ids"), padding)
    assert found["text_ids"].shape == (2, 2, 40)
    if padding == "full":
        assert lengths is None
    else:
        assert lengths is not None
        assert torch.equal(lengths, LENGTHS)


@pytest.mark.parametrize("padding", ["full", "longest", "packed"])
def test_items_without_texts_have_nothing_to_cut(padding: TextPadding) -> None:
    none = torch.zeros(3, 0, 40, dtype=torch.long)
    found, _ = pad_texts({"text_mask": none, "text_ids": none}, ("text_mask",), padding)
    assert found["text_mask"].shape == (3, 0, 40)


def test_computed_tokens_are_the_mean_of_what_passes() -> None:
    lengths = np.array([5, 20, 9, 60])
    assert computed_tokens(lengths, "full", 2, 40) == 40
    assert computed_tokens(lengths, "packed", 2, 40) == (5 + 20 + 9 + 40) / 4
    # pairs of neighbours: 20 → 24, 20 → 24, 60 → 40, 60 → 40
    assert computed_tokens(lengths, "longest", 2, 40) == 32
    assert computed_tokens(lengths, "longest", 1, 40) == (8 + 24 + 16 + 40) / 4


def test_batches_of_all_paddings_hold_the_same_choices(clips: Path) -> None:
    batches = {p: take(stream(clips, text_padding=p), 2) for p in ("full", "longest", "packed")}
    for full, longest, packed in zip(*batches.values(), strict=True):
        assert full.digest == longest.digest == packed.digest
        assert torch.equal(full.pixels, packed.pixels)
        lengths = full.text_mask.sum(1)
        assert full.text_lengths is longest.text_lengths is None
        assert torch.equal(packed.text_lengths, lengths)
        assert longest.text_ids.shape[1] == min(12, -(-int(lengths.max()) // 8) * 8)
        for batch in (longest, packed):
            for field in ("text_ids", "mlm_ids"):
                ours, plain = (getattr(b, field)[b.text_mask.bool()] for b in (batch, full))
                assert torch.equal(ours, plain)
            masked = [b.mlm_labels.flatten()[b.mlm_positions] for b in (batch, full)]
            assert torch.equal(*masked)


def test_lengths_follow_their_clips_and_stay_on_the_host(clips: Path) -> None:
    (batch,) = take(stream(clips, text_padding="packed"), 1)
    lengths = batch.text_lengths
    assert batch.only(2).text_lengths.tolist() == [int(lengths[2])]
    assert torch.equal(batch.first(3).text_lengths, lengths[:3])
    moved = batch.to(torch.device("meta"))
    assert moved.text_mask.is_meta
    assert moved.text_lengths is lengths
    assert replace(batch, text_lengths=None).only(0).text_lengths is None


def test_lengths_of_captions_are_sampled_from_the_index(clips: Path) -> None:
    data = stream(clips)
    (found,) = data.text_lengths()
    assert np.array_equal(found, data.text_lengths()[0]), "the same on every rank"
    seen = torch.cat([batch.text_mask.sum(1) for batch in take(data, 8)]).numpy()
    assert set(seen) <= set(np.minimum(found, 12))
    assert found.min() >= 3, "[CLS], a word piece and [SEP]"
