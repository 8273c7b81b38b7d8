"""Pre-training heads.

Letters: C width, V vocabulary.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .norm import LayerNorm


class MLMHead(nn.Module):
    """BERT's MLM head: hidden states [..., C] → vocabulary logits [..., V]."""

    def __init__(self, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.norm = LayerNorm(hidden_size, eps=1e-12)
        # not tied to the word embeddings, as in the original
        self.decoder = nn.Linear(hidden_size, vocab_size)

    def forward(self, text: Tensor) -> Tensor:
        return self.decoder(self.norm(F.gelu(self.dense(text))))


class LogitScale(nn.Module):
    """Learnable inverse temperature of the contrastive loss (CLIP, Radford et al. 2021, sec. 2.5).

    The parameter is its logarithm, so that it stays positive.
    """

    INITIAL = 1 / 0.05
    """The original's temperature, which is fixed, is 0.05."""
    LIMIT = 100.0
    """Largest scale, as in CLIP: larger ones make training unstable."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((1,), math.log(self.INITIAL)))

    def forward(self) -> Tensor:
        """Return the scale, shape [1]."""
        return self.log_scale.clamp(max=math.log(self.LIMIT)).exp()
