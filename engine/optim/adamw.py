"""AdamW with parameter groups, and clipping and skipped steps that do not wait for the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from allinone.engine.config import TrainConfig
from allinone.engine.deepspeed_adapter import global_gradient_norm, step_overflowed

LrScale = Callable[[str], float]
"""Name of a parameter → multiple of the learning rate."""


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    head_patterns: Iterable[str] = (),
    head_lr_mult: float = 1.0,
    lr_scale: LrScale | None = None,
) -> list[dict[str, Any]]:
    """Optimizer groups {decay, no decay} x {learning rates}, without empty ones.

    Parameters of one dimension do not decay: biases, normalisation weights and the logit scale.
    Embeddings, class token and positions decay, as in the original code. The original decides by
    substrings of names, which decays the LayerNorm weights inside its answer heads and gives its
    rank heads no head learning rate; both look unintended and are not repeated.

    Args:
        module: The model; parameters without gradient are left out.
        weight_decay: Decay of parameters of two or more dimensions.
        head_patterns: Parameters whose name contains one of these belong to the head.
        head_lr_mult: Learning rate of the head as a multiple of the base rate.
        lr_scale: Further multiple of the rate by parameter name; None: 1. Parameters of equal
            multiples and decay share a group, because DeepSpeed pads and gathers each group.

    Returns:
        Groups for the optimizer with the additional key `lr_mult`.
    """
    patterns = tuple(head_patterns)
    groups: dict[tuple[bool, bool, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            head = any(pattern in name for pattern in patterns)
            scale = 1.0 if lr_scale is None else lr_scale(name)
            groups.setdefault((parameter.dim() > 1, head, scale), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": weight_decay if decays else 0.0,
            "lr_mult": scale * (head_lr_mult if head else 1.0),
        }
        # a fixed order: checkpoints store optimizer state by the group's number
        for (decays, head, scale), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


class SkippingAdamW(torch.optim.AdamW):
    """Fused AdamW that clips, and skips the update if the gradient is not finite, on the device.

    A skipped step leaves weights, moments and step counts as they are. torch's fused kernels take
    two device scalars: `found_inf` (1: change nothing) and `grad_scale` (gradients are divided by
    it). Both follow from one number, the norm of the complete gradient over all ranks. So all ranks
    and ZeRO partitions take the same decision, and the host does not wait.

    With ZeRO 1 and 2 the optimizer sees one partition of one group per call; the trainer then sets
    `norm_of` to DeepSpeed's norm over all partitions, reduced before the first call of a step.

    Args:
        groups: From `parameter_groups`.
        config: Learning rate, betas, eps, weight decay and clipping norm.
        deciding: False if DeepSpeed clips and skips itself, which makes the host wait: ZeRO 3,
            fp16, and ZeRO 0 in bf16 (see ds_config.clips_itself).
    """

    def __init__(
        self, groups: list[dict[str, Any]], config: TrainConfig, deciding: bool = True
    ) -> None:
        super().__init__(
            groups,
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self._clip = config.clip_grad
        self._deciding = deciding
        self.norm_of: Callable[[], Tensor] | None = None
        """Returns the global gradient norm before clipping. None: this optimizer sees the complete
        gradient and computes the norm itself."""
        self.grad_norm: Tensor | None = None
        """float32 scalar of the last step, before clipping; None if DeepSpeed decides."""
        self.skipped: Tensor | None = None
        """float32 scalar, 1 after a skipped step; None if DeepSpeed decides."""

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # no caller uses the loss
        """One update, or none if the gradient is not finite."""
        if self._deciding:
            norm = self.norm_of() if self.norm_of else self._norm()
            self.grad_norm = norm
            self.skipped = (~torch.isfinite(norm)).float()
            # the same tensor: the kernel reads the flag on the device, and logging reads it later
            self.found_inf = self.skipped
            # 1e-6 as in torch.nn.utils.clip_grad_norm_
            self.grad_scale = ((norm + 1e-6) / self._clip).clamp(min=1.0) if self._clip else None
        super().step(closure)

    def _norm(self) -> Tensor:
        gradients = [
            p.grad for group in self.param_groups for p in group["params"] if p.grad is not None
        ]
        # a non-finite element makes the norm non-finite, so no separate check is needed
        return torch.nn.utils.get_total_norm(gradients, foreach=True).float()


def outcome(engine: Any, optimizer: SkippingAdamW, device: torch.device) -> tuple[Tensor, Tensor]:
    """Outcome of the last step, without waiting for the device.

    Use DeepSpeed's overflow flag if DeepSpeed skips steps itself, or if it rejected the gradient
    before calling our optimizer, whose norm is then that of an earlier step.

    Args:
        engine: DeepSpeed's engine.
        optimizer: The optimizer inside it.
        device: Device of the results.

    Returns:
        Two scalars: 1 if the step was skipped, else 0; and the norm of the complete gradient before
        clipping, NaN if DeepSpeed keeps none.
    """
    if step_overflowed(engine):
        return torch.ones((), device=device), torch.full((), math.nan, device=device)
    skipped = torch.zeros((), device=device) if optimizer.skipped is None else optimizer.skipped
    norm = optimizer.grad_norm if optimizer.grad_norm is not None else global_gradient_norm(engine)
    if not isinstance(norm, Tensor):
        # filled on the device: torch.tensor would copy from the host and wait
        norm = torch.full((), math.nan if norm is None else float(norm), device=device)
    return skipped, norm
