"""How the tasks initialise and apply their heads, which are in model/task_heads.py."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from allinone.model.task_heads import (
    VCRHead,
    answer_head,
    option_head,
    rank_head,
    vqav2_head,
)

__all__ = [
    "VCRHead",
    "answer_head",
    "copy_matching",
    "from_matching",
    "head_scores",
    "option_head",
    "pooled",
    "rank_head",
    "vqav2_head",
]


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
