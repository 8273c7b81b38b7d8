"""Models with the head of one task, as transformers has them.

`labels` give `loss`; outputs are transformers' own. Parameters have the names that fine-tuning
saves, so that its weights load as they are; `config.task` says which head they contain.

Letters: B clips, T frames, S side of the image, K texts of a clip, L text tokens, Q texts, V
vocabulary, D projection width, C width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.modeling_outputs import (
    CausalLMOutput,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    SequenceClassifierOutput,
)
from transformers.utils import ModelOutput

from .all_in_one import AllInOneModel, AllInOnePreTrainedModel, Encoder
from .captioning import CaptionGeneration, ClipMemory, caption_features, next_features
from .config import AllInOneConfig
from .contrast import ContrastiveFeatures
from .heads import LogitScale, MLMHead
from .task_heads import VCRHead, build_head

States = tuple[Tensor, ...]
"""Tokens before the first block and after each one, [sequences, tokens, C]; the sequences are
those of pass_shape in model/activations.py."""


@dataclass
class AllInOneRetrievalOutput(ModelOutput):
    """Scores of Q texts and B clips."""

    loss: Tensor | None = None
    """Symmetric InfoNCE, with `labels`."""
    logits_per_text: Tensor | None = None
    """float32 [Q, B]: cosines times the learned scale."""
    logits_per_video: Tensor | None = None
    """float32 [B, Q]"""
    text_embeds: Tensor | None = None
    """Unit length, float32 [Q, D]."""
    video_embeds: Tensor | None = None
    """Unit length, float32 [B, D]."""

    @property
    def logits(self) -> Tensor | None:
        """`logits_per_text`."""
        return self.logits_per_text


class AllInOneForTask(AllInOnePreTrainedModel):
    """What the models share: the backbone, the joint pass, and the check of the head's kind."""

    kinds: ClassVar[tuple[str, ...]] = ()
    """Kinds of heads that the class holds; the first is that of a new head."""
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [
        r"^(image_)?(mlm|vtm)_head\.",
        r"^(text|video)_projection\.",
        r"^logit_scale\.",
    ]
    """Heads of other tasks, which a folder of a pre-trained model contains."""

    def __init__(self, config: AllInOneConfig) -> None:
        super().__init__(config)
        self.backbone = AllInOneModel(config)
        kind = config.task.get("kind", self.kinds[0] if self.kinds else "")
        if self.kinds and kind not in self.kinds:
            fitting = next((c.__name__ for c in TASK_MODELS if kind in c.kinds), "another class")
            raise ValueError(
                f"these weights have a head of the kind {kind!r}, which {type(self).__name__} does"
                f" not have: load them by {fitting}"
            )
        self.kind: str = kind
        self._add_heads(config)
        self.post_init()

    def _add_heads(self, config: AllInOneConfig) -> None:
        self.task_head = build_head(self.kind, config.hidden_size, config.num_labels)

    def _joint(
        self,
        pixels: Tensor,
        text_ids: Tensor,
        text_mask: Tensor | None,
        clips: Tensor | None,
        arguments: dict[str, Any],
        *,
        text: bool = False,
    ) -> tuple[Tensor, States | None]:
        """Joint pass of S texts.

        Args:
            pixels: [B, T, 3, S, S].
            text_ids: int64 [S, L].
            text_mask: int64 [S, L]; None: all are tokens.
            clips: int64 [S], the clip of each text; None: text i has clip i.
            arguments: transformers' further arguments of forward.
            text: Return the text features [S, L, C] instead of the pooled class token [S, C].

        Returns:
            Features, and the hidden states if they are asked for.

        Raises:
            ValueError: Attention maps are asked for.
        """
        if arguments.get("output_attentions"):
            raise ValueError(
                "output_attentions: fused attention never forms these maps; `allinone cloze` draws"
                " the patches that a word depends on"
            )
        wanted = arguments.get("output_hidden_states")
        wanted = self.config.output_hidden_states if wanted is None else wanted
        mask = torch.ones_like(text_ids) if text_mask is None else text_mask
        if not wanted and not text:  # the last block computes the class tokens only
            output = self.backbone(pixels, text_ids, mask, clips=clips, read="pooled")
            return output.pooled, None
        with _recorded(self.backbone.encoder) as states:
            output = self.backbone(pixels, text_ids, mask, clips=clips)
        return output.text if text else output.pooled, tuple(states) if wanted else None

    def _scores(self, head: nn.Module, features: Tensor) -> Tensor:
        """float32 output of a head, computed in the head's own precision: in bf16, options would
        tie although the model distinguishes them."""
        return head(features.to(next(head.parameters()).dtype)).float()

    def _returned(self, output: ModelOutput, arguments: dict[str, Any]) -> Any:
        asked = arguments.get("return_dict")
        as_dict = self.config.return_dict if asked is None else asked
        return output if as_dict else output.to_tuple()


@contextmanager
def _recorded(encoder: Encoder) -> Iterator[list[Tensor]]:
    """Collect the tokens before the first block of an encoder and after each block."""
    states: list[Tensor] = []
    blocks = list(encoder.blocks)
    hooks = [
        blocks[0].register_forward_pre_hook(lambda _, given: states.append(given[0])),
        *(b.register_forward_hook(lambda _, given, made: states.append(made)) for b in blocks),
    ]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


class _Classifier(AllInOneForTask):
    """One text per clip, and a head over `config.id2label`."""

    def forward(
        self,
        pixels: Tensor,
        text_ids: Tensor,
        text_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Score the labels.

        Args:
            pixels: Normalised frames, [B, T, 3, S, S].
            text_ids: int64 [B, L].
            text_mask: int64 [B, L], 1 at tokens.
            labels: int64 [B], -100 without a label; or soft scores [B, labels], whose binary
                cross-entropy is summed over the labels as for VQAv2.
            **kwargs: `output_hidden_states`, `return_dict`; others are ignored.

        Returns:
            `logits` float32 [B, labels], `loss` with labels, `hidden_states` if asked for.

        Raises:
            ValueError: A shape does not fit, or attention maps are asked for.
        """
        pooled, states = self._joint(pixels, text_ids, text_mask, None, kwargs)
        logits = self._scores(self.task_head, pooled)
        loss = None
        if labels is not None and labels.is_floating_point():
            losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
            loss = losses.sum(-1).mean()
        elif labels is not None:
            loss = F.cross_entropy(logits, labels)
        return self._returned(SequenceClassifierOutput(loss, logits, states), kwargs)


class AllInOneForVideoClassification(_Classifier):
    """Classes of clips. The text is `config.task["prompt"]`, that of the training."""

    kinds = ("classes_published", "classes_full", "classes_linear")


class AllInOneForQuestionAnswering(_Classifier):
    """Answers a question about a clip from the list of answers `config.id2label`."""

    kinds = ("answers_ce", "answers_bce")


class AllInOneForMultipleChoice(AllInOneForTask):
    """Scores texts for a clip, or clips for a text, and takes the best."""

    kinds = ("rank", "option", "two_ranks")

    def forward(
        self,
        pixels: Tensor,
        text_ids: Tensor,
        text_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        part: str = "answer",
        **kwargs: Any,
    ) -> MultipleChoiceModelOutput:
        """Score the options.

        Args:
            pixels: Normalised frames [B, T, 3, S, S]; or [B, K, T, 3, S, S], K clips to choose
                from for one text.
            text_ids: int64 [B, K, L], or [B, L] with K clips.
            text_mask: Of the same shape, 1 at tokens.
            labels: int64 [B], the correct options.
            part: Of VCR's two heads: answer or rationale.
            **kwargs: `output_hidden_states`, `return_dict`; others are ignored.

        Returns:
            `logits` float32 [B, K], `loss` with labels, `hidden_states` if asked for.

        Raises:
            ValueError: A shape does not fit, or attention maps are asked for.
        """
        mask = torch.ones_like(text_ids) if text_mask is None else text_mask
        if pixels.dim() == 6 and text_ids.dim() == 2:
            options, clips = pixels.shape[1], None
            pixels = pixels.flatten(0, 1)
            ids, mask = (x.repeat_interleave(options, 0) for x in (text_ids, mask))
        elif pixels.dim() == 5 and text_ids.dim() == 3:
            options = text_ids.shape[1]
            ids, mask = text_ids.flatten(0, 1), mask.flatten(0, 1)
            clips = torch.arange(len(pixels), device=ids.device).repeat_interleave(options)
        else:
            raise ValueError(
                f"pixels {list(pixels.shape)} and text_ids {list(text_ids.shape)}: give"
                " [B, T, 3, S, S] with [B, K, L], or [B, K, T, 3, S, S] with [B, L]"
            )
        head = self.task_head
        if isinstance(head, VCRHead):
            head = head.rationale if part == "rationale" else head.answer
        pooled, states = self._joint(pixels, ids, mask, clips, kwargs)
        logits = self._scores(head, pooled).view(-1, options)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return self._returned(MultipleChoiceModelOutput(loss, logits, states), kwargs)


class AllInOneForRetrieval(ContrastiveFeatures, AllInOneForTask):
    """Text-to-video retrieval and back by two towers, and a head that re-ranks pairs if the
    training had one (`config.task["kind"]` rank)."""

    kinds = ("contrast", "rank")
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"^(image_)?(mlm|vtm)_head\."]

    def _add_heads(self, config: AllInOneConfig) -> None:
        # a run with --contrast 0 has trained no towers: they would embed at random
        if config.task.get("contrastive", True):
            self.text_projection = nn.Linear(config.hidden_size, config.projection_dim)
            self.video_projection = nn.Linear(config.hidden_size, config.projection_dim)
            self.logit_scale = LogitScale()
        if self.kind == "rank":
            super()._add_heads(config)

    def get_pair_logits(
        self,
        pixels: Tensor,
        text_ids: Tensor,
        text_mask: Tensor | None = None,
        clips: Tensor | None = None,
    ) -> Tensor:
        """Scores of the joint pass, float32 [Q], by which retrieval is re-ranked.

        Args:
            pixels: Normalised frames, [B, T, 3, S, S].
            text_ids: int64 [Q, L].
            text_mask: int64 [Q, L], 1 at tokens.
            clips: int64 [Q], the clip of each text; None: text i has clip i.

        Raises:
            ValueError: The model was trained without a rank head.
        """
        if self.kind != "rank":
            raise ValueError("these weights have no rank head: train retrieval with --rank 1")
        pooled, _ = self._joint(pixels, text_ids, text_mask, clips, {})
        return self._scores(self.task_head, pooled).squeeze(-1)

    def forward(
        self,
        pixels: Tensor,
        text_ids: Tensor,
        text_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> AllInOneRetrievalOutput:
        """Similarities of all texts with all clips.

        Args:
            pixels: Normalised frames, [B, T, 3, S, S].
            text_ids: int64 [Q, L].
            text_mask: int64 [Q, L], 1 at tokens.
            labels: int64 [Q], the clip of each text. The loss is the mean of both directions; all
                texts of a clip are correct for it.
            **kwargs: `return_dict`; others are ignored.

        Raises:
            ValueError: The model was trained without the contrastive loss, or the passes of the
                two towers are asked for hidden states, which they do not keep.
        """
        if not hasattr(self, "text_projection"):
            raise ValueError(
                "these weights have no contrastive projections (--contrast 0): score pairs by"
                " get_pair_logits"
            )
        if kwargs.get("output_hidden_states") or kwargs.get("output_attentions"):
            raise ValueError("the two towers compute class tokens only: no hidden states are kept")
        mask = torch.ones_like(text_ids) if text_mask is None else text_mask
        texts = self.get_text_features(text_ids, mask).pooler_output
        videos = self.get_video_features(pixels).pooler_output
        logits = self.logit_scale() * texts @ videos.T
        loss = None if labels is None else _both_ways(logits, labels)
        output = AllInOneRetrievalOutput(loss, logits, logits.T, texts, videos)
        return self._returned(output, kwargs)


def _both_ways(logits: Tensor, labels: Tensor) -> Tensor:
    """Symmetric InfoNCE of logits [Q, B] whose text q belongs to clip labels[q]."""
    own = F.one_hot(labels, logits.shape[1]).bool()
    by_clip = logits.T.logsumexp(1) - logits.masked_fill(~own, float("-inf")).T.logsumexp(1)
    with_text = own.any(0)
    return (F.cross_entropy(logits, labels) + by_clip[with_text].mean()) / 2


class _WordModel(AllInOneForTask):
    """The MLM head over the vocabulary."""

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [
        r"^(image_mlm|(image_)?vtm|task)_head\.",
        r"^(text|video)_projection\.",
        r"^logit_scale\.",
    ]

    def _add_heads(self, config: AllInOneConfig) -> None:
        self.mlm_head = MLMHead(config.hidden_size, config.vocab_size)


class AllInOneForMaskedLM(_WordModel):
    """Predicts masked words of a text, given a clip."""

    def forward(
        self,
        pixels: Tensor,
        text_ids: Tensor,
        text_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput:
        """Score all words at every position.

        Args:
            pixels: Normalised frames, [B, T, 3, S, S].
            text_ids: int64 [B, L].
            text_mask: int64 [B, L], 1 at tokens.
            labels: int64 [B, L], the words to predict, -100 elsewhere.
            **kwargs: `output_hidden_states`, `return_dict`; others are ignored.

        Returns:
            `logits` [B, L, V], `loss` with labels, `hidden_states` if asked for.

        Raises:
            ValueError: A shape does not fit, or attention maps are asked for.
        """
        text, states = self._joint(pixels, text_ids, text_mask, None, kwargs, text=True)
        logits = self.mlm_head(text)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
        return self._returned(MaskedLMOutput(loss, logits, states), kwargs)


class AllInOneForCaptioning(CaptionGeneration, _WordModel, GenerationMixin):
    """Writes captions of clips, word by word (model/captioning.py): `generate`."""

    kinds = ("words",)

    @classmethod
    def of(cls, backbone: AllInOneModel, mlm_head: MLMHead) -> AllInOneForCaptioning:
        """The captioning model of these parts, in evaluation mode; they are shared, not copied."""
        config = deepcopy(backbone.config)
        config.task = {"kind": cls.kinds[0]}
        with torch.device("meta"):  # no memory for parts that are replaced at once
            model = cls(config)
        model.backbone, model.mlm_head = backbone, mlm_head
        return model.eval()

    def forward(
        self,
        pixels: Tensor | None = None,
        text_ids: Tensor | None = None,
        text_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        memory: ClipMemory | None = None,
        use_cache: bool = True,
        **kwargs: Any,
    ) -> CausalLMOutput:
        """Score the word after each word, from the frames and the words up to it.

        Args:
            pixels: Normalised frames, [B, T, 3, S, S].
            text_ids: int64 [B, L], captions from [CLS] to [SEP] with padding after them.
            text_mask: Not needed: no word attends to the padding after it.
            labels: int64 [B, L], the captions, -100 at padding; as in transformers' causal models,
                label j + 1 is predicted at place j.
            memory: Instead of pixels, clips whose keys and values are known (`clip_memory`);
                text_ids are then the complete captions so far.
            use_cache: Keep the keys and values of words in the memory.
            **kwargs: `return_dict`; others are ignored.

        Returns:
            `logits` [B, l, V], where l is L, or max_text_len - 1 if that is less: the last place
            has none after it. With a memory, of the words that are new to it. `loss` with labels.

        Raises:
            ValueError: A shape does not fit.
        """
        if memory is not None and text_ids is not None:
            features = next_features(self.backbone, memory, text_ids, keep=use_cache)
        elif pixels is not None and text_ids is not None:
            ids = text_ids[:, : self.config.max_text_len - 1]
            features = caption_features(self.backbone, pixels, ids).unflatten(0, ids.shape)
        else:
            raise ValueError("give text_ids, and pixels or a memory")
        logits = self.mlm_head(features)
        loss = None
        if labels is not None:
            after = labels[:, 1 : logits.shape[1] + 1]
            scored = logits[:, : after.shape[1]].float()
            loss = F.cross_entropy(scored.flatten(0, 1), after.flatten())
        return self._returned(CausalLMOutput(loss, logits), kwargs)


TASK_MODELS: tuple[type[AllInOneForTask], ...] = (
    AllInOneForVideoClassification,
    AllInOneForQuestionAnswering,
    AllInOneForRetrieval,
    AllInOneForMultipleChoice,
    AllInOneForCaptioning,
    AllInOneForMaskedLM,
)
PROTOCOLS: dict[str, type[AllInOneForTask]] = {
    "action_recognition": AllInOneForVideoClassification,
    "captioning": AllInOneForCaptioning,
    "open_ended_qa": AllInOneForQuestionAnswering,
    "retrieval": AllInOneForRetrieval,
    "multiple_choice": AllInOneForMultipleChoice,
    "vcr": AllInOneForMultipleChoice,
}
"""Name of a fine-tuning task, `config.task["protocol"]` → its model."""
AUTO_CLASSES: dict[str, type[AllInOnePreTrainedModel]] = {
    "AutoModel": AllInOneModel,
    "AutoModelForImageTextToText": AllInOneForCaptioning,
    "AutoModelForMaskedLM": AllInOneForMaskedLM,
    "AutoModelForMultipleChoice": AllInOneForMultipleChoice,
    "AutoModelForQuestionAnswering": AllInOneForQuestionAnswering,
    "AutoModelForVideoClassification": AllInOneForVideoClassification,
    "AutoModelForVisualQuestionAnswering": AllInOneForQuestionAnswering,
    # transformers has no auto class for retrieval; its CLIP models are found under this one
    "AutoModelForZeroShotImageClassification": AllInOneForRetrieval,
}
"""Auto class → ours, without AutoModelForPreTraining."""
