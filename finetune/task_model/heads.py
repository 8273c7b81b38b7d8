"""Heads of the tasks, on the pooled class token [.., C].

Sizes and dropout are the original's (LayerNorm with PyTorch's default eps 1e-5).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


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
    """Score of a pair: C → 1. Initialised from the matching head, see `from_matching`."""
    return nn.Linear(width, 1)


class VCRHead(nn.Module):
    """VCR: a rank head for answers and one for rationales."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.answer, self.rationale = rank_head(width), rank_head(width)


@torch.no_grad()
def from_matching(
    head: nn.Module, weights: Mapping[str, Tensor], *, log_odds: bool = False
) -> None:
    """Initialise every rank head inside `head` from the row "match" of the VTM head, as published.

    Args:
        head: A rank head, or a module that contains some.
        weights: The checkpoint's tensors.
        log_odds: Use the difference of the VTM head's rows instead. The output is then the log-odds
            of a match, which scores pairs without fine-tuning.
    """
    # row 0 is "no match", row 1 "match"
    weight, bias = weights["vtm_head.weight"].float(), weights["vtm_head.bias"].float()
    for module in head.modules():
        if isinstance(module, nn.Linear) and module.out_features == 1:
            module.weight.copy_(weight[1:] - weight[:1] if log_odds else weight[1:])
            module.bias.copy_(bias[1:] - bias[:1] if log_odds else bias[1:])


@torch.no_grad()
def copy_matching(head: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy the VTM head, rows "no match" and "match", into a linear head of two outputs."""
    assert isinstance(head, nn.Linear)
    head.weight.copy_(weights["vtm_head.weight"])
    head.bias.copy_(weights["vtm_head.bias"])


def pooled(
    model: nn.Module, pixels: Tensor, ids: Tensor, mask: Tensor, lengths: Tensor | None = None
) -> Tensor:
    """Joint pass of every text with every view.

    Args:
        model: The model.
        pixels: [B, V, T, 3, S, S].
        ids: Token ids [B, K, L].
        mask: [B, K, L], 1 at tokens.
        lengths: int64 [B, K] on the CPU, tokens of each text; None: padding is computed.

    Returns:
        Class tokens [B, K, V, W].
    """
    items, views, texts = pixels.shape[0], pixels.shape[1], ids.shape[1]
    # flatten copies: K texts take K times the memory of the pixels
    repeated = pixels[:, None].expand(-1, texts, *pixels.shape[1:]).flatten(0, 2)
    ids, mask = (x[:, :, None].expand(-1, -1, views, -1).flatten(0, 2) for x in (ids, mask))
    if lengths is not None:
        lengths = lengths.flatten().repeat_interleave(views)
    output = model(repeated, ids, mask, read="pooled", text_lengths=lengths)
    return output.pooled.unflatten(0, (items, texts, views))


def head_scores(head: nn.Module, features: Tensor) -> Tensor:
    """float32 output of a head, computed in the head's own precision.

    Evaluation keeps heads in float32 (`FinalEvaluation.run`): bf16 has 8 bits of precision, in
    which options and candidates would tie although the model distinguishes them.
    """
    return head(features.to(next(head.parameters()).dtype)).float()
