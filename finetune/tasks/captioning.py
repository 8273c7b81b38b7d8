"""Captioning: one caption per clip, word by word.

Sample: a clip with one of its captions, drawn in every epoch. Head: the MLM head of pre-training.
Loss: cross-entropy of every word and of [SEP], each predicted at a [MASK] from the frames and the
words before it (model/captioning.py). It is averaged inside a caption and then over captions, so
that it does not depend on how items are divided into micro-batches. Labels are smoothed by 0.1, as
for UniLM (Dong et al. 2019, section 3.1) and GIT (Wang et al. 2022, section 3.2). Scores: CIDEr-D,
BLEU-4, METEOR and ROUGE-L of the official scorer against all captions of a clip. Letters: B items,
K texts, L tokens, l predicted words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from allinone.common.errors import ConfigError
from allinone.data.text import Tokenizer
from allinone.engine.distributed.collectives import run_on_rank0
from allinone.engine.objective import Losses
from allinone.finetune.annotations.schema import AnnotationError, RetrievalItem, Split
from allinone.finetune.cost import BackbonePasses
from allinone.finetune.evaluation.caption_metrics import (
    CaptionScores,
    caption_scores,
    require_package,
)
from allinone.finetune.evaluation.evaluator import Evaluator
from allinone.finetune.evaluation.results import EvalOutput, rounded
from allinone.finetune.inputs.batch import Example, TaskBatch, VisualInput
from allinone.finetune.inputs.prompts import plain
from allinone.finetune.task_model.model import HeadSpec, TaskModel
from allinone.finetune.task_model.source import SourceCheckpoint
from allinone.finetune.tasks.base import Task, missing_items
from allinone.finetune.tasks.options import CaptionOptions
from allinone.model.captioning import LAST, caption_features
from allinone.model.task_models import AllInOneForCaptioning


@dataclass(frozen=True)
class CaptionExamples:
    """RetrievalItem → a clip with one of its captions; without a generator, the clip alone."""

    items: Sequence[RetrievalItem]

    def __call__(self, number: int, random: np.random.Generator | None) -> Example:
        item = self.items[number]
        looks = (VisualInput(item.media),)
        if random is None:
            return Example(looks, ())
        caption = item.captions[int(random.integers(len(item.captions)))]
        return Example(looks, (plain(caption),), group=number)


class Captioning(Task):
    """Writes a caption of each clip."""

    name = "captioning"
    selects = "CIDEr-D"
    options: CaptionOptions

    def setup(self, train: Split | None, source: SourceCheckpoint, *, eval_only: bool) -> None:
        """Check what captions need; arguments as in `Task.setup`.

        Raises:
            ConfigError: The package of the scores is missing, or nothing will be trained and the
                checkpoint has no MLM head.
        """
        require_package()
        if eval_only and "mlm_head.decoder.weight" not in source.tensors:
            raise ConfigError(
                f"--checkpoint {source.path} has no MLM head, which writes captions; give a run"
                " that was pre-trained with MLM or fine-tuned for captions, or leave out"
                " --eval-only to train one"
            )

    def head_spec(self, *, zero_shot: bool) -> HeadSpec:
        return HeadSpec(words=True, metadata={"protocol": self.name, "kind": "words"})

    def check_zero_shot(self, source: SourceCheckpoint) -> None:
        """Zero-shot, the MLM head writes; `setup` has checked that there is one."""

    def examples(self, split: Split) -> CaptionExamples:
        return CaptionExamples(_items(split))

    def __call__(self, model: TaskModel, batch: TaskBatch) -> Losses:
        # one text per item, and one view in training
        ids, mask = batch.text_ids[:, 0], batch.text_mask[:, 0]
        read = None
        if batch.text_lengths is not None:
            # known on the host: padding is not predicted, and nothing waits for the device
            lengths = batch.text_lengths[:, 0] - 1
            places = torch.arange(ids.shape[1] - 1) < lengths[:, None]
            read = places.flatten().nonzero()[:, 0].to(ids.device, non_blocking=True)
        features = caption_features(model.backbone, batch.pixels[:, 0, 0], ids[:, :-1], read)
        logits = model.mlm_head(features).float()
        target = ids[:, 1:].flatten() if read is None else ids[:, 1:].flatten()[read]
        losses = F.cross_entropy(
            logits, target, reduction="none", label_smoothing=self.options.label_smoothing
        )
        # each word's share of its caption's mean
        shares = mask[:, 1:] / mask[:, 1:].sum(1, keepdim=True)
        weights = shares.flatten() if read is None else shares.flatten()[read]
        loss = (losses * weights).sum()
        right = ((logits.detach().argmax(-1) == target) * weights).sum()
        count = loss.new_full((), float(len(ids)))
        return Losses(
            loss / count,
            {
                "caption_loss": torch.stack([loss.detach(), count]),
                "word_accuracy": torch.stack([right, count]),
            },
        )

    def evaluate(self, model: TaskModel, evaluator: Evaluator, split: Split) -> EvalOutput:
        items, options = _items(split), self.options
        if any(not item.captions for item in items):
            raise AnnotationError(f"split {split.name!r} hides its captions: it cannot be scored")
        longest = model.config.max_text_len
        together = evaluator.collective and evaluator.world > 1

        def write(_: TaskModel, batch: TaskBatch) -> Tensor:
            """float32 [B, L], token ids."""
            writer = AllInOneForCaptioning.of(model.backbone, model.mlm_head)
            found = writer.generate(
                batch.pixels[:, 0],
                num_beams=options.beams,
                length_penalty=options.length_penalty,
                no_repeat_ngram_size=options.no_repeat_ngram,
                # under ZeRO 3 every step is a collective: all ranks make equally many
                synced_gpus=together,
            )
            return F.pad(found, (0, longest - found.shape[1])).float()

        stage = f"captions {options.beams} {options.length_penalty:g} {options.no_repeat_ngram}"
        ids = [item.id for item in items]
        found = evaluator.run(stage, split.name, ids, self.examples(split), write)
        tokenizer = Tokenizer()
        captions = [
            "" if n in found.missing else caption_text(tokenizer, row.astype(int).tolist())
            for n, row in enumerate(found.values)
        ]

        def score() -> CaptionScores:
            return caption_scores(
                captions,
                [item.captions for item in items],
                [item.media.id for item in items],
                # validation selects by CIDEr-D; METEOR takes seconds to start
                meteor=options.meteor and not evaluator.collective,
            )

        scored = run_on_rank0(score) if dist.is_initialized() else score()
        rows = [
            {
                "id": item.id,
                "media": item.media.id,
                "prediction": None if n in found.missing else captions[n],
                "answer": list(item.captions),
                "measures": {name: rounded(100 * v[n]) for name, v in scored.per_clip.items()},
            }
            for n, item in enumerate(items)
        ]
        details = {**scored.details, "references": sum(len(item.captions) for item in items)}
        return EvalOutput(scored.scores, rows, missing_items(split, found.missing), details)

    def backbone_passes(self) -> BackbonePasses:
        return [("caption", 1)]


def caption_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of a caption's tokens, up to [SEP]."""
    tokens = list(ids)
    return tokenizer.decode(tokens[: tokens.index(LAST)] if LAST in tokens else tokens)


def _items(split: Split) -> list[RetrievalItem]:
    return [item for item in split.items if isinstance(item, RetrievalItem)]
