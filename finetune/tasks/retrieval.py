"""Text-to-video (or image) retrieval and back.

Sample: one clip with one of its captions, drawn in every epoch; for the rank and matching losses
also captions of other clips. Head: the contrastive projections; optionally a rank head on the joint
pass. Loss: contrast over the clips of all ranks, cross-entropy of the rank head over 1 + N
captions, matching. Scores: one embedding per item, float32 similarities of all pairs, optionally
re-ranked by the joint pass (evaluation/rerank.py). Letters: M media, Q texts, N negatives, D
projection width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from allinone.common.errors import ConfigError
from allinone.engine.distributed.contrastive import contrast
from allinone.engine.objective import Losses, mean_metric
from allinone.finetune.annotations.schema import RetrievalItem, Split
from allinone.finetune.cost import BackbonePasses
from allinone.finetune.evaluation import metrics, summaries
from allinone.finetune.evaluation.dual_softmax import dual_softmax
from allinone.finetune.evaluation.evaluator import Evaluator, SplitScores
from allinone.finetune.evaluation.rerank import MediaExamples, RerankedScores, rerank
from allinone.finetune.evaluation.results import EvalOutput
from allinone.finetune.evaluation.retrieval_rows import (
    TextQueries,
    prediction_rows,
    ranks_of_folds,
    text_queries,
)
from allinone.finetune.inputs.batch import Example, TaskBatch, VisualInput
from allinone.finetune.inputs.prompts import plain
from allinone.finetune.task_model.heads import from_matching, head_scores, pooled, rank_head
from allinone.finetune.task_model.model import HeadSpec, TaskModel
from allinone.finetune.task_model.source import SourceCheckpoint
from allinone.finetune.tasks.base import Task, missing_items
from allinone.finetune.tasks.options import RetrievalOptions
from allinone.model.contrast import embed_text, embed_video

_BLOCK_ROWS = 1024
"""Texts per block of the similarity matrix."""
_MAX_DRAWS = 64
"""Draws for a negative caption before accepting one that the item has as well."""


@dataclass(frozen=True)
class PairExamples:
    """Training: RetrievalItem → a clip, one of its captions, captions of others."""

    items: Sequence[RetrievalItem]
    negatives: int
    groups: Sequence[int]
    """Group of each item, inside which clips are not negatives of each other."""

    def __call__(self, number: int, random: np.random.Generator | None) -> Example:
        assert random is not None
        item = self.items[number]
        caption = item.captions[int(random.integers(len(item.captions)))]
        texts = [caption, *other_captions(self.items, number, self.negatives, random)]
        texts_in = tuple(plain(text) for text in texts)
        return Example((VisualInput(item.media),), texts_in, 0, group=self.groups[number])


def other_captions(
    items: Sequence[RetrievalItem], number: int, wanted: int, random: np.random.Generator
) -> list[str]:
    """Draw captions of other items uniformly.

    Args:
        items: All items.
        number: The item whose captions are excluded, unless no other is found in _MAX_DRAWS draws.
        wanted: Number of captions.
        random: Source of the draws.
    """
    # MSR-VTT repeats sentences: another clip may have the same caption
    own = set(items[number].captions)
    found = []
    for _ in range(wanted):
        text = ""
        for other in random.integers(len(items) - 1, size=_MAX_DRAWS).tolist():
            captions = items[other + (other >= number)].captions  # skips the item itself
            text = captions[int(random.integers(len(captions)))]
            if text not in own:
                break
        found.append(text)
    return found


@dataclass(frozen=True)
class TextExamples:
    """Evaluation: the texts alone."""

    texts: Sequence[str]

    def __call__(self, number: int, random: np.random.Generator | None) -> Example:
        return Example((), (plain(self.texts[number]),))


class Retrieval(Task):
    """Retrieval in the contrastive space, by the joint pass, or by both."""

    name = "retrieval"
    options: RetrievalOptions
    contrastive: bool = True
    """Whether evaluation scores pairs in the contrastive space."""

    def setup(self, train: Split | None, source: SourceCheckpoint, *, eval_only: bool) -> None:
        """Decide whether the contrastive space can be used.

        Args:
            train: Not used.
            source: The checkpoint, which may have contrastive projections or a rank head.
            eval_only: Nothing will be trained.

        Raises:
            ConfigError: The checkpoint or the options do not allow the requested scoring.
        """
        options = self.options
        projected = "text_projection.weight" in source.tensors
        self.contrastive = options.contrast > 0 and (projected or not eval_only)
        if not self.contrastive and options.rerank != "all":
            reason = (
                f"{source.path} has no contrastive projections"
                if options.contrast
                else "--contrast is 0"
            )
            raise ConfigError(
                f"{reason}: pairs can be scored by the joint pass only. Give --rerank all, or a"
                " checkpoint trained with contrast"
            )
        if options.rerank == "0":
            return
        if eval_only and source.task and not source.has_kind("rank"):
            raise ConfigError(
                f"--rerank {options.rerank}: {source.path} was fine-tuned without a rank head;"
                " train with --rank 1"
            )
        if not eval_only and not options.rank:
            raise ConfigError(
                f"--rerank {options.rerank} needs a trained rank head: give --rank 1, or leave"
                " --rerank out"
            )

    def head_spec(self, *, zero_shot: bool) -> HeadSpec:
        options = self.options
        ranks = options.rank > 0 or options.rerank != "0"

        def initialize(head: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
            from_matching(head, weights, log_odds=zero_shot)

        return HeadSpec(
            (lambda config: rank_head(config.hidden_size)) if ranks else None,
            initialize,
            contrastive=self.contrastive,
            matching=options.matching > 0,
            metadata={"protocol": self.name, "kind": "rank" if ranks else "contrast"},
        )

    def check_zero_shot(self, source: SourceCheckpoint) -> None:
        """Both ways of scoring work zero-shot; `setup` has checked what the checkpoint offers."""

    def examples(self, split: Split) -> PairExamples:
        options, items = self.options, _items(split)
        joint = options.rank or options.matching
        groups: Sequence[int] = range(len(items))
        if split.shared_captions:
            numbers = {item.captions: number for number, item in enumerate(items)}
            groups = [numbers[item.captions] for item in items]
        return PairExamples(items, options.negatives if joint else 0, groups)

    def __call__(self, model: TaskModel, batch: TaskBatch) -> Losses:
        options = self.options
        total = batch.pixels.new_zeros(())
        reported: dict[str, Tensor] = {}
        if options.contrast:
            # text 0 is the clip's own caption
            text = _embed_texts(model, batch)
            # one clip and one view per item in training
            video = embed_video(model, batch.pixels[:, 0, 0])
            # clips of one group are not negatives of each other
            both = contrast(text, video, model.logit_scale(), batch.groups)
            total = total + options.contrast * both.losses.mean()
            reported["contrast_loss"] = mean_metric(both.losses)
            reported["t2v_accuracy"] = mean_metric(both.text_right)
        if options.rank or options.matching:
            pairs = pooled(
                model, batch.pixels[:, 0], batch.text_ids, batch.text_mask, batch.text_lengths
            )[:, :, 0]
        if options.rank:
            logits = head_scores(model.task_head, pairs).squeeze(-1)
            losses = F.cross_entropy(logits, batch.target, reduction="none")
            total = total + options.rank * losses.mean()
            reported["rank_loss"] = mean_metric(losses)
            # text 0 is the own caption, as in `batch.target`
            reported["rank_accuracy"] = mean_metric(logits.argmax(-1) == 0)
        if options.matching:
            # text 0 is the clip's own caption; text 1, of another clip, does not match
            labels = torch.tensor([1, 0], device=pairs.device).expand(len(pairs), 2).flatten()
            logits = model.vtm_head(pairs[:, :2]).float().flatten(0, 1)
            losses = F.cross_entropy(logits, labels, reduction="none")
            total = total + options.matching * losses.mean()
            reported["matching_loss"] = mean_metric(losses)
        return Losses(total, reported)

    def evaluate(self, model: TaskModel, evaluator: Evaluator, split: Split) -> EvalOutput:
        items = _items(split)
        queries = text_queries(items, shared=split.shared_captions)
        texts = queries.texts
        similarity, missing, cut = None, {}, {"texts_cut": 0, "texts_shortened": 0}
        if self.contrastive:
            ids = [item.id for item in items]
            clips = evaluator.run("clips", split.name, ids, MediaExamples(items), _embed_clips)
            ids = [str(n) for n in range(len(texts))]
            words = evaluator.run("texts", split.name, ids, TextExamples(texts), _embed_texts)
            similarity, missing, cut = similarities(words, clips), dict(clips.missing), words.cut
        embedding_s = evaluator.seconds
        reranked: RerankedScores | None = None
        if self.options.rerank != "0":
            # 1,000 x 1,000 pairs of the 1k-A test are 1 million joint passes per view
            candidates = len(items) if self.options.rerank == "all" else int(self.options.rerank)
            reranked = rerank(
                evaluator,
                split.name,
                items,
                texts,
                similarity,
                candidates=candidates,
                both_ways=self.options.rerank_ways == "both",
                pair_batch=self.options.pair_batch,
            )
            missing |= reranked.missing
            reranked.cost["seconds_in_embedding_passes"] = embedding_s
        output = self._output(split, queries, similarity, reranked, missing, cut)
        if not self.options.dual_softmax:
            return output
        assert similarity is not None
        return _with_dual_softmax(output, queries, similarity, float(model.logit_scale()), missing)

    def _output(
        self,
        split: Split,
        queries: TextQueries,
        similarity: np.ndarray | None,
        reranked: RerankedScores | None,
        missing: dict[int, str],
        cut: Mapping[str, int],
    ) -> EvalOutput:
        items, owners = _items(split), queries.owners
        by_text = reranked.by_text if reranked else similarity
        by_clip = reranked.by_clip if reranked else similarity
        assert by_text is not None
        assert by_clip is not None
        gone = np.isin(np.arange(len(items)), list(missing))
        if self.options.folds:
            folds = _fold_ranks(by_text, by_clip, owners, self.options.folds, gone)
            scores = summaries.retrieval_scores(folds)
            ranks = ranks_of_folds(folds, owners, len(items))
        else:
            found = _ranks(by_text, by_clip, queries.relevant, gone)
            scores = summaries.retrieval_scores(found)
            ranks = found[0].ranks, found[1].ranks
        details = {
            "texts": len(queries.texts),
            "media": len(items),
            **cut,
            "chance_R@1": 100 * float(queries.relevant.sum(1).mean()) / len(items),
            **({"rerank": reranked.cost} if reranked else {}),
        }
        if split.shared_captions:
            details["chance"] = _chance(queries.relevant.sum(1), len(items))
        rows = prediction_rows(items, queries, by_text, by_clip, ranks)
        return EvalOutput(scores, rows, missing_items(split, missing), details)

    def select(self, output: EvalOutput) -> float:
        """Mean of text-to-video R@1, R@5 and R@10: R@1 alone is unstable, as the original warns."""
        recalls = ("t2v/R@1", "t2v/R@5", "t2v/R@10")
        values = [score.value for name, score in output.scores.items() if name in recalls]
        # with so few candidates that no recall is reported, the mean rank
        return float(np.mean(values)) if values else -output.scores["t2v/MnR"].value

    def backbone_passes(self) -> BackbonePasses:
        options = self.options
        contrastive: BackbonePasses = [("text", 1), ("video", 1)] if options.contrast > 0 else []
        joint: BackbonePasses = (
            [("joint", 1 + options.negatives)] if options.rank or options.matching else []
        )
        return [*contrastive, *joint]


def _with_dual_softmax(
    output: EvalOutput,
    queries: TextQueries,
    similarity: np.ndarray,
    scale: float,
    missing: Mapping[int, str],
) -> EvalOutput:
    """The output with further scores, dual-softmax/…; its other scores are unchanged.

    Args:
        output: The output without the dual softmax.
        queries: The Q texts.
        similarity: Cosines [Q, M].
        scale: The model's inverse temperature.
        missing: Number of a missing media item → reason.
    """
    gone = np.isin(np.arange(similarity.shape[1]), list(missing))
    scores = dual_softmax(similarity, scale, gone)
    found = summaries.retrieval_scores(_ranks(scores, scores, queries.relevant, gone))
    texts, media = similarity.shape
    stated = {"inverse_temperature": scale, "texts_at_once": texts, "media_at_once": media}
    return replace(
        output,
        scores={**output.scores, **{f"dual-softmax/{name}": s for name, s in found.items()}},
        details={**output.details, "dual_softmax": stated},
    )


def _chance(relevant: np.ndarray, media: int) -> dict[str, float]:
    """Expected t2v/R@K in percent of a random order, for texts with several relevant media.

    Args:
        relevant: Number of relevant media of each text.
        media: Number of media items.
    """
    chance = {}
    for k in (k for k in metrics.RECALLS if k < media):
        # none of the first k places has one of them
        missed = [math.comb(media - int(r), k) / math.comb(media, k) for r in relevant]
        chance[f"t2v/R@{k}"] = 100 * (1 - float(np.mean(missed)))
    return chance


def _items(split: Split) -> list[RetrievalItem]:
    return [item for item in split.items if isinstance(item, RetrievalItem)]


def _embed_clips(model: TaskModel, batch: TaskBatch) -> Tensor:
    """Embed clips, [n, D], as the mean of the views' unit vectors.

    Not normalised again: the product with a text is then the mean of the views' cosines.
    """
    views = batch.pixels.shape[2]
    return embed_video(model, batch.pixels[:, 0].flatten(0, 1)).unflatten(0, (-1, views)).mean(1)


def _embed_texts(model: TaskModel, batch: TaskBatch) -> Tensor:
    """[n, D] unit vectors of the first text of each item."""
    lengths = batch.text_lengths
    return embed_text(
        model,
        batch.text_ids[:, 0],
        batch.text_mask[:, 0],
        None if lengths is None else lengths[:, 0],
    )


def similarities(texts: SplitScores, clips: SplitScores) -> np.ndarray:
    """Compute cosines, float32 [Q, M], NaN in the columns of missing clips.

    Summed in float64, so that the rounded result does not depend on the number of threads.
    """
    # 1,024 texts at a time: 25,010 x 5,000 pairs of COCO in float64 are 1 GB
    columns = clips.values.astype(np.float64).T
    blocks = [
        texts.values[start : start + _BLOCK_ROWS].astype(np.float64) @ columns
        for start in range(0, len(texts.values), _BLOCK_ROWS)
    ]
    return np.concatenate(blocks).astype(np.float32)


Directions = tuple[metrics.Retrieved, metrics.Retrieved]


def _ranks(
    by_text: np.ndarray, by_clip: np.ndarray, relevant: np.ndarray, missing: np.ndarray
) -> Directions:
    """Ranks in both directions, each from its own scores [Q, M]."""
    found = metrics.retrieval_ranks(by_text, relevant, missing)
    if by_clip is by_text:
        return found
    return found[0], metrics.retrieval_ranks(by_clip, relevant, missing)[1]


def _fold_ranks(
    by_text: np.ndarray, by_clip: np.ndarray, owners: np.ndarray, folds: int, missing: np.ndarray
) -> list[Directions]:
    """`_ranks` inside each fold of the media."""
    found = metrics.fold_ranks(by_text, owners, folds, missing)
    if by_clip is by_text:
        return found
    other = metrics.fold_ranks(by_clip, owners, folds, missing)
    return [(texts[0], clips[1]) for texts, clips in zip(found, other, strict=True)]
