"""The seam for tensor parallelism: the model asks a factory for its large linear layers and says how each may be split."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import nn

Split = Literal["column", "row"]


class LinearFactory(Protocol):
    """Makes the linear layers of attention and MLP. `split` names the dimension that tensor parallelism divides: column = outputs, row = inputs."""

    def __call__(self, in_features: int, out_features: int, *, split: Split) -> nn.Module: ...


def torch_linear(in_features: int, out_features: int, *, split: Split) -> nn.Module:
    """One whole torch layer; nothing is divided."""
    return nn.Linear(in_features, out_features)
