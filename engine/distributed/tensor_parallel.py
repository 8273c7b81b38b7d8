"""Tensor parallelism by megatron-core: the attention and MLP layers that model/linear.py's factory
made are divided over the ranks of a group.

A column layer holds a share of the outputs (attention: of the heads) and leaves them divided; the
row layer after it holds the same share of the inputs, and adds the ranks' results up: two
all-reduces per pair, one forward and one backward (Shoeybi et al., Megatron-LM, 2019, section 3).
Everything else is held whole by every rank and computed alike, from the same clips and the same
random numbers. Imports megatron-core: only for --tensor-parallel above 1.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that apex and Transformer Engine are missing: neither is used
    from megatron.core import ModelParallelConfig, parallel_state
    from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
    from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes

from allinone.common.errors import ConfigError
from allinone.engine.distributed.topology import Layout, division_of
from allinone.model.linear import Split, SplitDropout, WholeLinear


def groups(tensor: int, timeout_s: float) -> tuple[Any, Any]:
    """Make megatron-core's process groups; returns those of data and of tensor parallelism.
    Collective over all ranks."""
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor,
        distributed_timeout_minutes=math.ceil(timeout_s / 60),
        create_gloo_process_groups=False,
    )
    return (
        parallel_state.get_data_parallel_group(),
        parallel_state.get_tensor_model_parallel_group(),
    )


class ColumnLinear(ColumnParallelLinear):
    """megatron-core's layer with the call of nn.Linear: [..., in] → this rank's share of the
    outputs."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0]


class RowLinear(RowParallelLinear):
    """megatron-core's layer with the call of nn.Linear: this rank's share of the inputs → [...,
    out], whole; the bias is added once, to the sum."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0]


class ParallelLinears:
    """A LinearFactory of divided layers. Their weights are not initialised: `divide` fills them
    from whole ones."""

    def __init__(self, layout: Layout) -> None:
        self._group = layout.tensor_group
        self._config = ModelParallelConfig(
            tensor_model_parallel_size=layout.tensor,
            use_cpu_initialization=True,
            perform_initialization=False,
        )

    def __call__(
        self, in_features: int, out_features: int, *, split: Split, blocks: int = 1
    ) -> nn.Module:
        common: dict[str, Any] = {
            "config": self._config,
            "init_method": None,
            "bias": True,
            "tp_group": self._group,
        }
        if split == "column":
            column = ColumnLinear(
                in_features, out_features, gather_output=False, stride=blocks, **common
            )
            set_tensor_model_parallel_attributes(column.weight, True, 0, blocks)
            return column
        row = RowLinear(
            in_features, out_features, input_is_parallel=True, skip_bias_add=False, **common
        )
        set_tensor_model_parallel_attributes(row.weight, True, 1, 1)
        return row


def divide(model: nn.Module, layout: Layout) -> None:
    """Exchange the model's divisible layers, one after the other, for this rank's parts of them.

    The whole model comes in, so that weights do not depend on the number of ranks, wherever they
    come from: a seed, --init-from, a fine-tuned checkpoint. ConfigError where the model cannot be
    divided.
    """
    _check(model, layout)
    factory = ParallelLinears(layout)
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, WholeLinear):
                setattr(module, name, _part_of(child, factory, layout))
            elif isinstance(child, SplitDropout):
                child.share = (layout.tensor_rank, layout.tensor)


def _part_of(whole: WholeLinear, factory: ParallelLinears, layout: Layout) -> nn.Module:
    part = factory(whole.in_features, whole.out_features, split=whole.split, blocks=whole.blocks)
    with torch.no_grad():
        for name, parameter in part.named_parameters():
            value, division = getattr(whole, name), division_of(parameter)
            parameter.copy_(
                value
                if division is None
                else division.part(value, layout.tensor_rank, layout.tensor)
            )
            parameter.requires_grad_(value.requires_grad)
    return part.train(whole.training)


def _check(model: nn.Module, layout: Layout) -> None:
    layers = [module for module in model.modules() if isinstance(module, WholeLinear)]
    if not layers:
        raise ConfigError(
            f"--tensor-parallel {layout.tensor}: {type(model).__name__} has no layers to divide;"
            " leave the option out"
        )
    configs = (getattr(module, "config", None) for module in model.modules())
    config = next((found for found in configs if hasattr(found, "num_attention_heads")), None)
    heads = getattr(config, "num_attention_heads", 0)
    if heads % layout.tensor:
        valid = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        raise ConfigError(
            f"--tensor-parallel {layout.tensor} does not divide the model's {heads} attention"
            f" heads; valid for this size: {valid}"
        )
    for layer in layers:
        width = layer.out_features // layer.blocks if layer.split == "column" else layer.in_features
        if width % layout.tensor:
            raise ConfigError(
                f"--tensor-parallel {layout.tensor} does not divide a layer of {width}"
                f" {layer.split}s"
            )
    if getattr(config, "attention_dropout", 0.0):
        raise ConfigError(
            f"--tensor-parallel {layout.tensor} with attention_dropout {config.attention_dropout}: every rank would drop the same places of "  # type: ignore[union-attr]
            "different heads; set it to 0, as in the paper, or train without tensor parallelism"
        )


def gradient_norm(parameters: list[nn.Parameter], layout: Layout) -> Tensor:
    """Norm of the whole model's gradient, float32 scalar: divided parameters are added up over the
    group, whole ones count once."""
    divided = [p.grad for p in parameters if p.grad is not None and division_of(p) is not None]
    whole = [p.grad for p in parameters if p.grad is not None and division_of(p) is None]
    squares = torch.stack([_norm(divided), _norm(whole)]).square()
    dist.all_reduce(squares[0], group=layout.tensor_group)
    return squares.sum().sqrt()


def _norm(gradients: list[Tensor]) -> Tensor:
    return torch.nn.utils.get_total_norm(gradients, foreach=True).float()


class DeepSpeedView:
    """megatron-core's state under the names by which DeepSpeed 0.19 asks its `mpu`; megatron-core
    has dropped the get_model_parallel_* ones."""

    get_tensor_model_parallel_rank = get_model_parallel_rank = staticmethod(
        parallel_state.get_tensor_model_parallel_rank
    )
    get_tensor_model_parallel_world_size = get_model_parallel_world_size = staticmethod(
        parallel_state.get_tensor_model_parallel_world_size
    )
    get_tensor_model_parallel_group = get_model_parallel_group = staticmethod(
        parallel_state.get_tensor_model_parallel_group
    )
    get_tensor_model_parallel_src_rank = get_model_parallel_src_rank = staticmethod(
        parallel_state.get_tensor_model_parallel_src_rank
    )
    get_data_parallel_rank = staticmethod(parallel_state.get_data_parallel_rank)
    get_data_parallel_world_size = staticmethod(parallel_state.get_data_parallel_world_size)
    get_data_parallel_group = staticmethod(parallel_state.get_data_parallel_group)
    get_data_parallel_src_rank = staticmethod(parallel_state.get_data_parallel_src_rank)
    get_pipeline_model_parallel_world_size = staticmethod(
        parallel_state.get_pipeline_model_parallel_world_size
    )
    get_pipeline_model_parallel_rank = staticmethod(parallel_state.get_pipeline_model_parallel_rank)
    get_pipeline_model_parallel_group = staticmethod(
        parallel_state.get_pipeline_model_parallel_group
    )

    @staticmethod
    def get_data_parallel_group_ranks() -> list[int]:
        """Global ranks of this rank's data-parallel group."""
        return dist.get_process_group_ranks(parallel_state.get_data_parallel_group())
