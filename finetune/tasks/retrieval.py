"""Text-to-video (or image) retrieval and back.

Sample: one clip with one of its captions, drawn anew in every epoch; for the rank and matching
losses also captions of other clips. Head: the contrastive projections; optionally a rank head on
the joint pass. Loss: contrast over the clips of all ranks, cross-entropy of the rank head over 1 +
N captions, matching. Score: embeddings once per item, fp32 similarities of all pairs, optionally
re-ranked by the joint pass (finetune.rerank). Letters: M media, Q texts, N negatives, D projection
width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from allinone.common.errors import ConfigError
from allinone.engine.distributed.contrastive import contrast
from allinone.engine.objective import Losses, mean_metric
from allinone.finetune.annotations.schema import RetrievalItem, Split
from allinone.finetune.cost import Passes
from allinone.finetune.evaluation import metrics
from allinone.finetune.evaluation.evaluator import Evaluator, Scored
from allinone.finetune.evaluation.rerank import Reranked, rerank
from allinone.finetune.inputs.batch import Example, TaskBatch, VisualInput
from allinone.finetune.tasks.base import (
    EvalOutput,
    Task,
    TaskOptions,
    head_scores,
    missing_of,
    pooled,
    rounded,
)
from allinone.finetune.tasks.heads import from_matching, rank_head
from allinone.finetune.tasks.prompts import plain
from allinone.finetune.tasks.task_model import HeadPlan, SourceCheckpoint, TaskModel
from allinone.model.contrast import embed_text, embed_video

_ROWS = 1024
_TRIES = 64
_SHOWN = 5


@dataclass(frozen=True)
class RetrievalOptions(TaskOptions):
    """Retrieval."""

    contrast: float = 1.0
    """Weight of the contrastive loss; 0 gives a cross-encoder, whose evaluation needs --rerank
    all."""
    rank: float = 0.0
    """Weight of the rank loss: the joint pass of the clip with its caption and with other captions,
    cross-entropy over them."""
    matching: float = 0.0
    """Weight of the matching loss on the same passes (the original's 0.5 creates the head and
    computes no loss)."""
    negatives: int = 15
    """Captions of other clips per sample, for rank and matching."""
    rerank: str = "0"
    """Candidates of each text that the joint pass orders anew: 0, a number, or all (every pair:
    slow)."""
    rerank_ways: Literal["t2v", "both"] = "t2v"
    """both: the shortlist of each clip's texts is scored as well, twice the passes."""
    pair_batch: int = 256
    """Pairs per joint pass of the re-ranking."""
    folds: int = 0
    """Score as the mean over this many equal folds of the test media (COCO 1K: 5)."""

    def __post_init__(self) -> None:
        if self.rerank != "all" and not self.rerank.isdecimal():
            raise ConfigError(
                f"--rerank must be 0, a number of candidates, or all; got {self.rerank!r}"
            )
        if not (self.contrast or self.rank):
            raise ConfigError(
                "--contrast 0 and --rank 0: nothing would be trained; give one of them a weight"
            )


@dataclass(frozen=True)
class PairExamples:
    """Training: RetrievalItem → a clip, one of its captions, captions of others."""

    items: Sequence[RetrievalItem]
    negatives: int

    def __call__(self, number: int, random: np.random.Generator | None) -> Example:
        assert random is not None
        item = self.items[number]
        caption = item.captions[int(random.integers(len(item.captions)))]
        texts = [caption, *other_captions(self.items, number, self.negatives, random)]
        return Example(
            (VisualInput(item.media),), tuple(plain(text) for text in texts), 0, group=number
        )


def other_captions(
    items: Sequence[RetrievalItem], number: int, wanted: int, random: np.random.Generator
) -> list[str]:
    """Captions of other items, drawn uniformly; none that the item has as well, unless chance
    offers nothing else."""
    own, found = set(items[number].captions), []
    for _ in range(wanted):
        text = ""
        for other in random.integers(len(items) - 1, size=_TRIES).tolist():
            captions = items[other + (other >= number)].captions
            text = captions[int(random.integers(len(captions)))]
            if text not in own:
                break
        found.append(text)
    return found


@dataclass(frozen=True)
class MediaExamples:
    """Evaluation: the clips alone."""

    items: Sequence[RetrievalItem]

    def __call__(self, number: int, random: np.random.Generator | None) -> Example:
        return Example((VisualInput(self.items[number].media),), ())


@dataclass(frozen=True)
class TextExamples:
    """Evaluation: the texts alone."""

    texts: Sequence[str]

    def __call__(self, number: int, random: np.random.Generator | None) -> Example:
        return Example((), (plain(self.texts[number]),))


class Retrieval(Task):
    """See the module."""

    name = "retrieval"
    options: RetrievalOptions
    contrastive: bool = True

    def learn(self, train: Split | None, origin: SourceCheckpoint, *, eval_only: bool) -> None:
        """Which of the two ways of scoring the checkpoint and the options allow."""
        options = self.options
        projected = "text_projection.weight" in origin.tensors
        self.contrastive = options.contrast > 0 and (projected or not eval_only)
        if not self.contrastive and options.rerank != "all":
            why = (
                "--contrast is 0"
                if not options.contrast
                else f"{origin.path} has no contrastive projections"
            )
            raise ConfigError(
                f"{why}: pairs can be scored by the joint pass only. Give --rerank all, or a"
                " checkpoint trained with contrast"
            )
        if (
            eval_only
            and options.rerank != "0"
            and origin.task
            and origin.task.get("kind") != "rank"
        ):
            raise ConfigError(
                f"--rerank {options.rerank}: {origin.path} was fine-tuned without a rank head;"
                " train with --rank 1"
            )
        if options.rerank != "0" and not options.rank and not eval_only:
            raise ConfigError(
                f"--rerank {options.rerank} needs a trained rank head: give --rank 1, or leave"
                " it out"
            )

    def plan(self, *, zero_shot: bool) -> HeadPlan:
        options = self.options
        ranks = options.rank > 0 or options.rerank != "0"
        facts = {"protocol": self.name, "kind": "rank" if ranks else "contrast"}

        def begin(head: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
            from_matching(head, weights, log_odds=zero_shot)

        make = (lambda config: rank_head(config.hidden_size)) if ranks else None
        return HeadPlan(
            make, begin, contrast=self.contrastive, matching=options.matching > 0, facts=facts
        )

    def check_zero_shot(self, origin: SourceCheckpoint) -> None:
        """Both ways work without training; `learn` has looked at what the checkpoint offers."""

    def train_examples(self, split: Split) -> PairExamples:
        options = self.options
        return PairExamples(
            _media(split), options.negatives if options.rank or options.matching else 0
        )

    def __call__(self, model: TaskModel, batch: TaskBatch) -> Losses:
        options, total = self.options, batch.pixels.new_zeros(())
        found: dict[str, Tensor] = {}
        if options.contrast:
            text = embed_text(model, batch.text_ids[:, 0], batch.text_mask[:, 0])
            both = contrast(
                text, embed_video(model, batch.pixels[:, 0, 0]), model.logit_scale(), batch.groups
            )
            total = total + options.contrast * both.losses.mean()
            found |= {
                "contrast_loss": mean_metric(both.losses),
                "t2v_accuracy": mean_metric(both.text_right),
            }
        if options.rank or options.matching:
            pairs = pooled(model, batch.pixels[:, 0], batch.text_ids, batch.text_mask)[:, :, 0]
            if options.rank:
                logits = head_scores(model.task_head, pairs).squeeze(-1)
                losses = F.cross_entropy(logits, batch.target, reduction="none")
                total = total + options.rank * losses.mean()
                found |= {
                    "rank_loss": mean_metric(losses),
                    "rank_accuracy": mean_metric(logits.argmax(-1) == 0),
                }
            if options.matching:
                labels = torch.tensor([1, 0], device=pairs.device).expand(len(pairs), 2)
                losses = F.cross_entropy(
                    model.vtm_head(pairs[:, :2]).float().flatten(0, 1),
                    labels.flatten(),
                    reduction="none",
                )
                total = total + options.matching * losses.mean()
                found["matching_loss"] = mean_metric(losses)
        return Losses(total, found)

    def evaluate(self, model: TaskModel, evaluator: Evaluator, split: Split) -> EvalOutput:
        items = _media(split)
        texts = [caption for item in items for caption in item.captions]
        owners = np.array([number for number, item in enumerate(items) for _ in item.captions])
        similarity, missing, lost, shortened = None, {}, 0, 0
        if self.contrastive:
            video = evaluator.run(
                "clips",
                split.name,
                [item.id for item in items],
                MediaExamples(items),
                _clip_embeddings,
            )
            words = evaluator.run(
                "texts",
                split.name,
                [str(n) for n in range(len(texts))],
                TextExamples(texts),
                _text_embeddings,
            )
            similarity, missing = similarities(words, video), dict(video.missing)
            lost, shortened = words.lost, words.shortened
        embedded_s = evaluator.seconds
        again: Reranked | None = None
        if self.options.rerank != "0":
            candidates = len(items) if self.options.rerank == "all" else int(self.options.rerank)
            again = rerank(
                model,
                evaluator,
                split.name,
                items,
                texts,
                similarity,
                candidates=candidates,
                both_ways=self.options.rerank_ways == "both",
                pair_batch=self.options.pair_batch,
            )
            missing |= again.missing
            again.cost["seconds_in_embedding_passes"] = embedded_s
        return self._outcome(
            split, items, texts, owners, similarity, again, missing, (lost, shortened)
        )

    def _outcome(
        self,
        split: Split,
        items: Sequence[RetrievalItem],
        texts: Sequence[str],
        owners: np.ndarray,
        similarity: np.ndarray | None,
        again: Reranked | None,
        missing: dict[int, str],
        cut: tuple[int, int],
    ) -> EvalOutput:
        gone = np.isin(np.arange(len(items)), list(missing))
        by_text = again.by_text if again else similarity
        by_clip = again.by_clip if again else similarity
        assert by_text is not None
        assert by_clip is not None
        relevant = metrics.relevance(owners, len(items))
        if self.options.folds:
            folds = metrics.fold_ranks(by_text, owners, self.options.folds, gone)
            if by_clip is not by_text:
                other = metrics.fold_ranks(by_clip, owners, self.options.folds, gone)
                folds = [(first[0], second[1]) for first, second in zip(folds, other, strict=True)]
            scores, ranks = (
                metrics.retrieval_scores(folds),
                _ranks_of_folds(folds, owners, len(items)),
            )
        else:
            found = metrics.retrieval_ranks(by_text, relevant, gone)
            if by_clip is not by_text:
                found = found[0], metrics.retrieval_ranks(by_clip, relevant, gone)[1]
            scores, ranks = metrics.retrieval_scores(found), (found[0].ranks, found[1].ranks)
        details: dict[str, Any] = {
            "texts": len(texts),
            "media": len(items),
            "texts_cut": cut[0],
            "texts_shortened": cut[1],
            "chance_R@1": 100 / len(items),
        }
        if again:
            details["rerank"] = again.cost
        rows = _rows(items, texts, owners, by_text, by_clip, ranks)
        return EvalOutput(scores, rows, missing_of(split, missing), details)

    def select(self, outcome: EvalOutput) -> float:
        """Mean of R@1, R@5 and R@10 of text to video: R@1 alone is unstable (the original's own
        warning)."""
        values = [
            score.value
            for name, score in outcome.scores.items()
            if name in ("t2v/R@1", "t2v/R@5", "t2v/R@10")
        ]
        return float(np.mean(values)) if values else -outcome.scores["t2v/MnR"].value

    def passes(self) -> Passes:
        options = self.options
        contrast: Passes = [("text", 1), ("video", 1)] if options.contrast > 0 else []
        joint: Passes = (
            [("joint", 1 + options.negatives)] if options.rank or options.matching else []
        )
        return [*contrast, *joint]


def _media(split: Split) -> list[RetrievalItem]:
    return [item for item in split.items if isinstance(item, RetrievalItem)]


def _clip_embeddings(model: TaskModel, batch: TaskBatch) -> Tensor:
    """[n, D], the mean over views of unit vectors: its products with texts are the means of the
    views' cosines."""
    views = batch.pixels.shape[2]
    return embed_video(model, batch.pixels[:, 0].flatten(0, 1)).unflatten(0, (-1, views)).mean(1)


def _text_embeddings(model: TaskModel, batch: TaskBatch) -> Tensor:
    return embed_text(model, batch.text_ids[:, 0], batch.text_mask[:, 0])


def similarities(texts: Scored, clips: Scored) -> np.ndarray:
    """Cosines float32 [Q, M] from float64 sums, so that the number of threads does not show; NaN in
    the columns of missing clips."""
    columns = clips.values.astype(np.float64).T
    rows = [
        texts.values[start : start + _ROWS].astype(np.float64) @ columns
        for start in range(0, len(texts.values), _ROWS)
    ]
    return np.concatenate(rows).astype(np.float32)


def _ranks_of_folds(
    folds: Sequence[tuple[metrics.Retrieved, metrics.Retrieved]], owners: np.ndarray, media: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rank of every text and of every clip inside its own fold, in the order of the whole split."""
    size = media // len(folds)
    by_text = np.zeros(len(owners))
    for number, (texts, _) in enumerate(folds):
        by_text[owners // size == number] = texts.ranks
    return by_text, np.concatenate([clips.ranks for _, clips in folds])


def _rows(
    items: Sequence[RetrievalItem],
    texts: Sequence[str],
    owners: np.ndarray,
    by_text: np.ndarray,
    by_clip: np.ndarray,
    ranks: tuple[np.ndarray, np.ndarray],
) -> list[dict[str, Any]]:
    """One row per text and one per clip: the first five found, and the rank of the right one."""
    rows = []
    first = {owner: number for number, owner in reversed(list(enumerate(owners.tolist())))}
    for q, text in enumerate(texts):
        item = items[owners[q]]
        best = _top(by_text[q])
        rows.append(
            {
                "id": f"text:{item.id}#{q - first[owners[q]]}",
                "media": item.media.id,
                "text": text,
                "prediction": [items[m].id for m in best],
                "score": [rounded(float(by_text[q, m])) for m in best],
                "answer": item.id,
                "measures": {"t2v/rank": float(ranks[0][q])},
            }
        )
    for m, item in enumerate(items):
        best = _top(by_clip[:, m])
        rows.append(
            {
                "id": f"media:{item.id}",
                "media": item.media.id,
                "prediction": [texts[q] for q in best],
                "answer": list(item.captions[:_SHOWN]),
                "measures": {"v2t/rank": float(ranks[1][m])},
            }
        )
    return rows


def _top(scores: np.ndarray) -> list[int]:
    usable = np.where(np.isfinite(scores), scores, -np.inf)
    order = np.argsort(-usable, kind="stable")[:_SHOWN]
    return [int(place) for place in order if np.isfinite(usable[place])]
