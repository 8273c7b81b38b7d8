"""Dual softmax at inference: similarities weighted by how well a clip matches the other texts.

Cheng et al. 2021 (CAMoE, arxiv.org/abs/2109.04290) multiply a similarity by its softmax over all
queries. Here both factors are softmaxes, as in Rocco et al. 2018 (arxiv.org/abs/1810.10510), so
that the order is also defined for negative cosines.

The gain comes from knowing all test queries and from a test in which each clip has its own text
(github.com/starmemda/CAMoE/issues/7): a model that was not trained with it gains as much (issue 4).
"""

from __future__ import annotations

import numpy as np
import torch

from allinone.finetune.evaluation.bootstrap import Array


def dual_softmax(similarity: Array, scale: float, missing: Array) -> Array:
    """Logarithm of softmax over media times softmax over texts.

    Args:
        similarity: Cosines [Q texts, M media]; columns of missing media may be NaN.
        scale: Inverse temperature, by which cosines are multiplied: the model's own.
        missing: bool [M], media that are left out of both softmaxes.

    Returns:
        float64 [Q, M]; NaN in the columns of missing media.
    """
    scores = np.full(similarity.shape, np.nan)
    logits = torch.from_numpy(scale * similarity[:, ~missing].astype(np.float64))
    # logarithms: at a scale of 100 the product of two probabilities underflows, and ties arise
    scores[:, ~missing] = (logits.log_softmax(1) + logits.log_softmax(0)).numpy()
    return scores
