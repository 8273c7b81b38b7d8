"""Heads of pre-training. Letters: C width, V vocabulary, D projection width."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .norm import LayerNorm


class MLMHead(nn.Module):
    """Hidden states [..., C] → vocabulary logits [..., V]. The decoder is not tied to the word
    embeddings, as in the original."""

    def __init__(self, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.norm = LayerNorm(hidden_size, eps=1e-12)
        self.decoder = nn.Linear(hidden_size, vocab_size)

    def forward(self, text: Tensor) -> Tensor:
        return self.decoder(self.norm(F.gelu(self.dense(text))))


class LogitScale(nn.Module):
    """Learnable inverse temperature of the contrastive loss: exp of the parameter, at most 100
    (CLIP, Radford et al. 2021, section 2.5)."""

    INITIAL = 1 / 0.05  # the original's fixed temperature
    LIMIT = 100.0

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((1,), math.log(self.INITIAL)))

    def forward(self) -> Tensor:
        """Scalar of shape [1]."""
        return self.log_scale.clamp(max=math.log(self.LIMIT)).exp()
