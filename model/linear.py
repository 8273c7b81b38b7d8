"""The seam for tensor parallelism: the model asks a factory for its large linear layers and says
how each may be split."""

from __future__ import annotations

from typing import Literal, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

Split = Literal["column", "row"]


class LinearFactory(Protocol):
    """Makes the linear layers of attention and MLP. `split` names the dimension that tensor
    parallelism divides: column = outputs, row = inputs. `blocks`: the outputs are that many blocks,
    each divided by itself (3 for [q heads | k heads | v heads]).
    """

    def __call__(
        self, in_features: int, out_features: int, *, split: Split, blocks: int = 1
    ) -> nn.Module: ...


class WholeLinear(nn.Linear):
    """A torch layer that remembers how it may be split; whoever divides a model exchanges it for
    its part."""

    def __init__(self, in_features: int, out_features: int, split: Split, blocks: int) -> None:
        super().__init__(in_features, out_features)
        self.split: Split = split
        self.blocks = blocks


def torch_linear(
    in_features: int, out_features: int, *, split: Split, blocks: int = 1
) -> nn.Module:
    """One whole torch layer; nothing is divided."""
    return WholeLinear(in_features, out_features, split, blocks)


class SplitDropout(nn.Dropout):
    """Dropout of activations whose last dimension tensor parallelism may divide: between a column
    and a row layer.

    A rank that holds share (r, n) draws for the whole width and keeps its part. So all ranks draw
    equally many random numbers, as the layers that they repeat need, no two shares drop the same
    places, and the dropped places do not depend on n.
    """

    share: tuple[int, int] = (0, 1)
    """(which part, of how many) this rank holds."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        part, parts = self.share
        if parts == 1 or not self.training or not self.p:
            return super().forward(input)
        whole = input.new_ones(*input.shape[:-1], parts * input.shape[-1])
        return input * F.dropout(whole, self.p).narrow(-1, part * input.shape[-1], input.shape[-1])
