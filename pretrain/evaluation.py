"""Held-out evaluation of pre-training: contrastive retrieval both ways, masked words, matching.
Letters: N items, D projection width, B clips."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from allinone.common.retrieval_metrics import chance_metrics, retrieval_metrics
from allinone.data import EvalSet
from allinone.data.loading.batch import BadClip, Batch
from allinone.engine.distributed import topology
from allinone.engine.distributed.watchdog import keepalive
from allinone.model import AllInOneForPreTraining
from allinone.model.contrast import embed_text, embed_video
from allinone.pretrain.objectives import draw_matching_pairs


@dataclass
class Embeddings:
    """Unit-length embeddings of the items of an evaluation set, in item order, on the CPU."""

    items: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    text: Tensor = field(default_factory=lambda: torch.empty(0))
    """float32 [N, D]"""
    video: Tensor = field(default_factory=lambda: torch.empty(0))
    """float32 [N, D]"""
    bad: list[BadClip] = field(default_factory=list)
    mlm: tuple[float, float] = (0.0, 0.0)
    """(correct, masked words)"""
    vtm: tuple[float, float] = (0.0, 0.0)
    """(correct, pairs)"""

    @property
    def mlm_accuracy(self) -> float:
        """Percent of the masked words whose top guess is right."""
        return 100 * self.mlm[0] / max(self.mlm[1], 1)

    @property
    def vtm_accuracy(self) -> float:
        """Percent of the pairs, half of them false, that are told right."""
        return 100 * self.vtm[0] / max(self.vtm[1], 1)

    def similarity(self) -> Tensor:
        """Cosine similarity, float32 [N texts, N clips]."""
        return self.text @ self.video.T


@torch.inference_mode()
def embed(
    model: AllInOneForPreTraining,
    dataset: EvalSet,
    device: torch.device,
    *,
    batch_size: int = 64,
    limit: int | None = None,
) -> Embeddings:
    """Run every item once (each data rank its share) and gather the result on all ranks. Items that
    cannot be decoded are listed in `bad`."""
    layout = topology.current()
    rank, world = layout.data_rank, layout.data_world
    items = min(len(dataset), limit or len(dataset))
    rounds = math.ceil(math.ceil(items / world) / batch_size)
    training = model.training
    model.eval()
    try:
        computed = [
            _embed_batch(model, batch, real)
            for batch, real in _rounds(dataset, rank, world, batch_size, device, rounds, items)
        ]
    finally:
        model.train(training)
    shares: list[dict[str, Any]] = [share for share in computed if share is not None]
    if world > 1:
        gathered: list[Any] = [None] * world
        dist.all_gather_object(gathered, shares, group=layout.data_group)
        shares = [share for part in gathered for share in part]
    return _collect(shares)


def _rounds(
    dataset: EvalSet,
    rank: int,
    world: int,
    batch_size: int,
    device: torch.device,
    rounds: int,
    items: int,
) -> Iterator[tuple[Batch, bool]]:
    """The first `items` in exactly `rounds` batches on every rank: with ZeRO-3 every forward is
    collective, so a rank without items repeats one unrecorded."""
    batches = dataset.batches(
        rank=rank, world=world, batch_size=batch_size, device=device, limit=items
    )
    last: Batch | None = None
    for _ in range(rounds):
        batch = next(batches, None)
        if batch is None and last is None:
            last = next(dataset.batches(rank=0, world=1, batch_size=1, device=device))
        last = batch or last
        assert last is not None
        yield last, batch is not None
        keepalive()


def _embed_batch(model: AllInOneForPreTraining, batch: Batch, real: bool) -> dict[str, Any] | None:
    text = embed_text(model, batch.text_ids, batch.text_mask)
    video = embed_video(model, batch.pixels)
    tokens = (
        model(batch.pixels, batch.mlm_ids, batch.text_mask)
        .text.flatten(0, 1)
        .index_select(0, batch.mlm_positions)
    )
    target = batch.mlm_labels.flatten().index_select(0, batch.mlm_positions)
    mlm_right = (model.mlm_head(tokens).argmax(-1) == target).sum()
    with torch.random.fork_rng(
        devices=[] if batch.pixels.device.type == "cpu" else [batch.pixels.device]
    ):
        torch.manual_seed(batch.first_position)
        labels, other = draw_matching_pairs(batch.text_ids)
    pairs = model.vtm_head(
        model(batch.pixels.index_select(0, other), batch.text_ids, batch.text_mask).pooled
    )
    if not real:
        return None
    return {
        "items": list(batch.clips),
        "captions": list(batch.captions),
        "text": text.cpu(),
        "video": video.cpu(),
        "bad": list(batch.bad),
        "mlm": (float(mlm_right), float(target.numel())),
        "vtm": (float((pairs.argmax(-1) == labels).sum()), float(labels.numel())),
    }


def _collect(shares: list[dict[str, Any]]) -> Embeddings:
    """Join the shares in the order of item names, so that the result does not depend on the number
    of ranks."""
    names = [name for share in shares for name in share["items"]]
    order = sorted(range(len(names)), key=names.__getitem__)
    captions = [caption for share in shares for caption in share["captions"]]
    if not names:
        raise ValueError(
            "no item of the evaluation set could be decoded; run tools/prepare.py on it again"
        )

    def pick(key: str) -> Tensor:
        return torch.cat([share[key] for share in shares])[order]

    def total(key: str) -> tuple[float, float]:
        return sum(share[key][0] for share in shares), sum(share[key][1] for share in shares)

    return Embeddings(
        items=[names[i] for i in order],
        captions=[captions[i] for i in order],
        text=pick("text"),
        video=pick("video"),
        bad=[clip for share in shares for clip in share["bad"]],
        mlm=total("mlm"),
        vtm=total("vtm"),
    )


def retrieval_table(embeddings: Embeddings) -> dict[str, dict[str, float]]:
    """R@1/5/10 in percent and median rank, both ways, with what a random order scores."""
    similarity = embeddings.similarity()
    return {
        "text_to_video": retrieval_metrics(similarity),
        "video_to_text": retrieval_metrics(similarity.T),
        "chance": chance_metrics(len(embeddings.items)),
    }
