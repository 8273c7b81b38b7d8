"""Options of the tasks, one dataclass per task.

They are apart from the tasks because the command line reads them, and `--help` must not import
torch. A benchmark's script puts an instance with the published values into `FinetuneConfig.task`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from allinone.common.errors import ConfigError
from allinone.common.options import option
from allinone.common.validation import COUNT, NOT_NEGATIVE, Bounds, require


@dataclass(frozen=True)
class TaskOptions:
    """Base of the options of all tasks."""


@dataclass(frozen=True)
class ActionOptions(TaskOptions):
    """Action recognition."""

    probe: Literal["published", "linear", "full"] = "published"
    """What is trained: the pooler and a two-layer classifier, as in the original's linear
    evaluation; a single linear layer; or all parameters."""
    probe_dropout: bool = option(True, earlier=False)
    """Whether the dropout of the frozen backbone is active while the probe is trained. It is in the
    original, which only sets `requires_grad`; without it, a clip always has the same features."""
    prompt: str = "A person is doing [MASK]"
    """Text that accompanies every clip."""
    label_smoothing: float = option(0.0, earlier=0.0)
    """Share of the target, from 0 to below 1, that is spread evenly over all classes (Szegedy et
    al. 2016); 0.1 is usual. The original uses none."""
    mixup: float = option(0.0, earlier=0.0)
    """Parameter of mixup's Beta(a, a) (Zhang et al. 2018): every clip of a micro-batch is averaged
    with another one, frame by frame, and so is the loss; 0 mixes nothing, as the original. It needs
    a micro-batch of at least 2 clips, and depends on the micro-batch."""

    def __post_init__(self) -> None:
        require(self, Bounds(0, 1, below=True), ("label_smoothing",))
        require(self, NOT_NEGATIVE, ("mixup",))


@dataclass(frozen=True)
class CaptionOptions(TaskOptions):
    """Captioning."""

    label_smoothing: float = 0.1
    """Share of each word's probability that the loss spreads over the vocabulary; 0.1 as for UniLM
    and GIT."""
    beams: int = option(4, resume="may_change")
    """Captions that beam search keeps per clip; 1 takes the best word of each step. GIT has 4."""
    length_penalty: float = option(0.6, resume="may_change")
    """A caption's log-probability is divided by its number of tokens to this power; GIT's 0.6."""
    no_repeat_ngram: int = option(0, resume="may_change")
    """No sequence of this many tokens occurs twice in a caption; 0 allows it."""
    meteor: bool = option(True, resume="may_change")
    """Compute METEOR in the final evaluation, if there is Java, whose start takes seconds."""

    def __post_init__(self) -> None:
        require(self, COUNT, ("beams",))
        require(self, NOT_NEGATIVE, ("no_repeat_ngram",))
        require(self, Bounds(0, 1, below=True), ("label_smoothing",))


@dataclass(frozen=True)
class ChoiceOptions(TaskOptions):
    """Multiple choice."""

    head: Literal["rank", "mlp"] = "rank"
    """rank: C → 1, initialised from the VTM head; mlp: C → 256 → 1 (the original's for TGIF-QA and
    TVQA)."""
    list_options: bool = True
    """Let every text list all options before its own answer, if there is a question."""
    false_texts: int = 4
    """Captions of other clips per true caption, for training items that are captioned clips
    (MSR-VTT has no training questions)."""
    zero_shot_score: Literal["match", "log-odds"] = option(
        "match", resume="may_change", earlier="log-odds"
    )
    """What the VTM head scores options by without fine-tuning: the logit of "match", as the
    original, or the difference of its two logits, which also uses "no match". The accuracy of both
    is reported."""


@dataclass(frozen=True)
class QAOptions(TaskOptions):
    """Open-ended questions."""

    answers: int = 1500
    """Size of the answer vocabulary: the most frequent answers of the training split. 0 takes the
    list that the benchmark ships (VQAv2)."""
    loss: Literal["ce", "bce"] = "ce"
    """ce: cross-entropy; bce: binary cross-entropy with VQAv2's soft scores of ten annotators,
    evaluated by VQAv2's official accuracy."""
    label_smoothing: float = option(0.0, earlier=0.0)
    """Share of the target, from 0 to below 1, that is spread evenly over all answers (Szegedy et
    al. 2016); for --loss ce. The original uses none."""

    def __post_init__(self) -> None:
        require(self, Bounds(0, 1, below=True), ("label_smoothing",))
        if self.label_smoothing and self.loss == "bce":
            raise ConfigError(
                f"--label-smoothing {self.label_smoothing} is for --loss ce: the targets of --loss"
                " bce are the soft scores of the annotators"
            )


@dataclass(frozen=True)
class RetrievalOptions(TaskOptions):
    """Retrieval."""

    contrast: float = option(1.0, earlier=1.0)
    """Weight of the contrastive loss, the mean of both directions; 2 is the sum, as in the
    original. 0 trains a cross-encoder only, which needs --rerank all in evaluation."""
    rank: float = 0.0
    """Weight of the rank loss: cross-entropy over the joint passes of the clip with its own caption
    and with other captions."""
    matching: float = 0.0
    """Weight of the matching loss on the same passes. The original's 0.5 creates the head but
    computes no loss."""
    negatives: int = 15
    """Captions of other clips per sample, for the rank and matching losses."""
    rerank: str = "0"
    """Candidates per text that the joint pass re-ranks: 0, a number, or all (every pair: slow)."""
    rerank_ways: Literal["t2v", "both"] = "t2v"
    """both: also score each clip's shortlist of texts, which doubles the passes."""
    pair_batch: int = 256
    """Pairs per joint pass of the re-ranking."""
    folds: int = 0
    """Average the scores over this many equal folds of the test media (COCO 1K: 5); 0 scores the
    test split at once."""
    dual_softmax: bool = option(False, resume="may_change", earlier=False)
    """Also report scores after a dual softmax over the matrix of similarities, under names of their
    own (dual-softmax/t2v/R@1). It needs all test queries at once and assumes that each matches one
    clip, which a search by single queries does not have: numbers with and without it are not
    comparable."""

    def __post_init__(self) -> None:
        if self.rerank != "all" and not self.rerank.isdecimal():
            raise ConfigError(
                f"--rerank must be 0, a number of candidates, or all; got {self.rerank!r}"
            )
        if self.dual_softmax and (self.rerank != "0" or self.folds):
            raise ConfigError(
                "--dual-softmax is defined on the similarities of one complete test split; leave"
                " --rerank and --folds out"
            )
        if not (self.contrast or self.rank):
            raise ConfigError(
                "--contrast 0 and --rank 0 leave no loss to train; give one of them a weight"
            )


@dataclass(frozen=True)
class VCROptions(TaskOptions):
    """Visual commonsense reasoning."""

    highlight: Literal["masks", "boxes", "none"] = "masks"
    """How the persons and objects that the texts mention are drawn into the picture: MERLOT's
    masks, boxes, or not at all."""
    naming: Literal["merlot", "reference"] = "merlot"
    """How the texts name them: MERLOT's names by the detection's index, or the original's
    `person 0` by first mention."""
