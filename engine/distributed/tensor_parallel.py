"""Tensor parallelism by megatron-core.

The attention and MLP layers that model/linear.py's factory made are sharded over the ranks of a
group. A column layer holds a shard of the outputs (of the heads, in attention) and leaves them
sharded; the row layer after it holds the same shard of the inputs and sums the results of all
ranks: two all-reduces per pair, one forward and one backward (Shoeybi et al., Megatron-LM, 2019,
section 3). Everything else is replicated, and computed from the same clips and the same random
numbers on every rank. This module imports megatron-core: only for --tensor-parallel above 1.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

with warnings.catch_warnings():
    # apex and Transformer Engine are missing, and neither is used
    warnings.simplefilter("ignore")
    from megatron.core import ModelParallelConfig, parallel_state
    from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
    from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes

from allinone.common.errors import ConfigError
from allinone.engine.distributed.topology import Layout, division_of
from allinone.model.linear import Split, SplitDropout, TorchLinear


def groups(tensor: int, timeout_s: float) -> tuple[Any, Any]:
    """Create megatron-core's process groups; collective.

    Args:
        tensor: Size of a tensor-parallel group.
        timeout_s: Time-out of their collectives, seconds.

    Returns:
        The group of data parallelism and the group of tensor parallelism.
    """
    if parallel_state.model_parallel_is_initialized():
        # megatron-core keeps its groups in module globals and refuses to initialise them twice
        parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor,
        # minutes only: round up, so that the watchdog still fires first
        distributed_timeout_minutes=math.ceil(timeout_s / 60),
        create_gloo_process_groups=False,
    )
    return (
        parallel_state.get_data_parallel_group(),
        parallel_state.get_tensor_model_parallel_group(),
    )


class ColumnLinear(ColumnParallelLinear):
    """megatron-core's layer called like nn.Linear: [..., in] → this rank's shard of the outputs."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0]


class RowLinear(RowParallelLinear):
    """megatron-core's layer called like nn.Linear: this rank's shard of the inputs → [..., out].

    The bias is added once, to the sum over ranks.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0]


class ParallelLinears:
    """A LinearFactory of sharded layers. Their weights are uninitialised; `divide` fills them."""

    def __init__(self, layout: Layout) -> None:
        self._group = layout.tensor_group
        self._config = ModelParallelConfig(
            tensor_model_parallel_size=layout.tensor,
            # `divide` copies the weights in: megatron-core need not draw them, or touch the device
            use_cpu_initialization=True,
            perform_initialization=False,
        )

    def __call__(
        self, in_features: int, out_features: int, *, split: Split, blocks: int = 1
    ) -> nn.Module:
        """Make a layer.

        Args:
            in_features: Inputs of the full layer.
            out_features: Outputs of the full layer.
            split: column shards the outputs, row the inputs.
            blocks: Parts of the outputs that are sharded separately (q, k and v: 3).
        """
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
            # perform_initialization=False skips this too, and `division_of` reads these attributes
            set_tensor_model_parallel_attributes(column.weight, True, 0, blocks)
            return column
        # skip_bias_add=False: megatron-core adds the bias after the all-reduce, so only once
        row = RowLinear(
            in_features, out_features, input_is_parallel=True, skip_bias_add=False, **common
        )
        set_tensor_model_parallel_attributes(row.weight, True, 1, 1)
        return row


def divide(model: nn.Module, layout: Layout) -> None:
    """Replace the model's layers, one after the other, by this rank's shards of them.

    The model is built in full first, so that its weights do not depend on the number of ranks,
    whether they come from a seed, --init-from or a fine-tuned checkpoint.

    Raises:
        ConfigError: The model cannot be sharded over this many ranks.
    """
    _check(model, layout)
    factory = ParallelLinears(layout)
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, TorchLinear):
                setattr(module, name, _shard(child, factory, layout))
            elif isinstance(child, SplitDropout):
                child.share = (layout.tensor_rank, layout.tensor)


def _shard(full: TorchLinear, factory: ParallelLinears, layout: Layout) -> nn.Module:
    """A layer that holds this rank's shard of a full layer.

    Args:
        full: Equal on all ranks.
        factory: Makes the layer, uninitialised.
        layout: This rank's position.
    """
    shard = factory(full.in_features, full.out_features, split=full.split, blocks=full.blocks)
    with torch.no_grad():
        for name, parameter in shard.named_parameters():
            value, division = getattr(full, name), division_of(parameter)
            if division is None:
                parameter.copy_(value)
            else:
                parameter.copy_(division.part(value, layout.tensor_rank, layout.tensor))
            parameter.requires_grad_(value.requires_grad)
    return shard.train(full.training)


def _check(model: nn.Module, layout: Layout) -> None:
    layers = [module for module in model.modules() if isinstance(module, TorchLinear)]
    if not layers:
        raise ConfigError(
            f"--tensor-parallel {layout.tensor}: {type(model).__name__} has no layers that"
            " can be sharded; omit the option"
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
    # ranks draw the same random numbers, because replicated activations must stay equal: heads on
    # different ranks would get the same mask
    if dropout := getattr(config, "attention_dropout", 0.0):
        raise ConfigError(
            f"--tensor-parallel {layout.tensor} with attention_dropout {dropout}: every rank would"
            " drop the same positions of different heads; set it to 0, as in the paper, or train"
            " without tensor parallelism"
        )


def gradient_norm(parameters: list[nn.Parameter], layout: Layout) -> Tensor:
    """Norm of the complete model's gradient, a float32 scalar; collective over the group.

    Squares of sharded parameters are summed over the ranks, those of replicated ones count once.
    """
    sharded = [p.grad for p in parameters if p.grad is not None and division_of(p) is not None]
    replicated = [p.grad for p in parameters if p.grad is not None and division_of(p) is None]
    squares = torch.stack([_norm(sharded), _norm(replicated)]).square()
    # squares[0] is a view, so the sum over ranks is stored in `squares`
    dist.all_reduce(squares[0], group=layout.tensor_group)
    return squares.sum().sqrt()


def _norm(gradients: list[Tensor]) -> Tensor:
    return torch.nn.utils.get_total_norm(gradients, foreach=True).float()


class DeepSpeedView:
    """megatron-core's state under the names by which DeepSpeed asks its `mpu`.

    deepspeed 0.19.8, runtime/engine.py and utils/groups.py; megatron-core 0.16.1 no longer has the
    get_model_parallel_* functions.
    """

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
