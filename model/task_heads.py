"""Heads of the tasks, on the pooled class token [.., C].

Sizes and dropout are the original's (LayerNorm with PyTorch's default eps 1e-5).
"""

from __future__ import annotations

from torch import nn


def answer_head(width: int, classes: int) -> nn.Sequential:
    """Open-ended answers, and actions of the published linear evaluation: C → C/2 → classes."""
    hidden = width // 2
    return nn.Sequential(
        # first: in the original's keys, vqa_classifier.1, .2 and .4 have weights
        nn.Dropout(0.5),
        nn.Linear(width, hidden),
        nn.LayerNorm(hidden),
        nn.GELU(),
        nn.Linear(hidden, classes),
    )


def vqav2_head(width: int, classes: int) -> nn.Sequential:
    """VQAv2 (ViLT's): C → 2C → classes."""
    return nn.Sequential(
        # without dropout: the keys are vqa_classifier.0, .1 and .3
        nn.Linear(width, 2 * width),
        nn.LayerNorm(2 * width),
        nn.GELU(),
        nn.Linear(2 * width, classes),
    )


def option_head(width: int) -> nn.Sequential:
    """Score of an option that is read together with its question (TGIF-QA, TVQA): C → 256 → 1."""
    return nn.Sequential(
        # 256 at every width, as in the original
        nn.Dropout(0.1),
        nn.Linear(width, 256),
        nn.LayerNorm(256),
        nn.GELU(),
        nn.Linear(256, 1),
    )


def rank_head(width: int) -> nn.Linear:
    """Score of a pair: C → 1."""
    return nn.Linear(width, 1)


class VCRHead(nn.Module):
    """VCR: a rank head for answers and one for rationales."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.answer, self.rationale = rank_head(width), rank_head(width)


def build_head(kind: str, width: int, classes: int) -> nn.Module:
    """The head of a kind, as fine-tuning records it in config.json ("task", "kind").

    Args:
        kind: answers_ce, answers_bce, classes_published, classes_full, classes_linear, rank,
            option or two_ranks.
        width: Width of the model, C.
        classes: Answers or classes; heads that score texts ignore it.

    Raises:
        ValueError: The kind is unknown.
    """
    if kind in ("answers_ce", "classes_published", "classes_full"):
        return answer_head(width, classes)
    if kind == "answers_bce":
        return vqav2_head(width, classes)
    if kind == "classes_linear":
        return nn.Linear(width, classes)
    makers = {"rank": rank_head, "option": option_head, "two_ranks": VCRHead}
    if kind not in makers:
        raise ValueError(f"config.json names a head of the kind {kind!r}, which does not exist")
    return makers[kind](width)
