"""LayerNorm: NVIDIA apex's fused kernel on CUDA if apex is installed, otherwise torch's.

Parameters and state dicts are the same.
"""

from __future__ import annotations

import functools
import importlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@functools.cache
def _fused_layer_norm() -> type[nn.Module] | None:
    """Return FusedLayerNorm of NVIDIA's apex, or None if apex is not installed."""
    try:
        # the package apex on PyPI is another project, without FusedAdam
        importlib.import_module("apex.optimizers").FusedAdam  # noqa: B018
        return importlib.import_module("apex.normalization").FusedLayerNorm
    except (ImportError, AttributeError):
        return None


class LayerNorm(nn.LayerNorm):
    """Normalisation over the last dimension."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        # under torch.compile, torch's own layer_norm can be fused with its neighbours
        fused = None if torch.compiler.is_compiling() or not input.is_cuda else _fused_layer_norm()
        if fused is not None:
            # apex's forward reads only weight, bias, normalized_shape and eps
            return fused.forward(self, input)
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)
