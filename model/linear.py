"""Interface for tensor parallelism: the model asks a factory for its large linear layers.

Each call states how the layer may be split.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

Split = Literal["column", "row"]


class LinearFactory(Protocol):
    """Makes the linear layers of attention and MLP.

    Args:
        in_features: Inputs.
        out_features: Outputs.
        split: Dimension that tensor parallelism divides: column = outputs, row = inputs.
        blocks: The outputs consist of this many blocks, each of which is divided (3 for
            [q heads | k heads | v heads]).
    """

    def __call__(
        self, in_features: int, out_features: int, *, split: Split, blocks: int = 1
    ) -> nn.Module: ...


class TorchLinear(nn.Linear):
    """A complete torch layer; tensor parallelism replaces it by its attributes.

    Args:
        in_features: Inputs.
        out_features: Outputs.
        split: Dimension that tensor parallelism divides, see LinearFactory.
        blocks: Blocks of the outputs, each of which is divided.
    """

    def __init__(self, in_features: int, out_features: int, split: Split, blocks: int) -> None:
        super().__init__(in_features, out_features)
        self.split: Split = split
        self.blocks = blocks


def torch_linear(
    in_features: int, out_features: int, *, split: Split, blocks: int = 1
) -> nn.Module:
    """One complete torch layer, not divided; arguments as in LinearFactory."""
    return TorchLinear(in_features, out_features, split, blocks)


class SplitDropout(nn.Dropout):
    """Dropout between a column and a row layer, where tensor parallelism may divide the last dim.

    A rank that holds share (r, n) draws the mask for the full width and keeps its part. All ranks
    then consume the same number of random values, which the replicated layers rely on; shares drop
    different elements; and the mask does not depend on n.
    """

    share: tuple[int, int] = (0, 1)
    """(which part, of how many) this rank holds."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        part, parts = self.share
        if parts == 1 or not self.training or not self.p:
            return super().forward(input)
        full = input.new_ones(*input.shape[:-1], parts * input.shape[-1])
        return input * F.dropout(full, self.p).narrow(-1, part * input.shape[-1], input.shape[-1])
