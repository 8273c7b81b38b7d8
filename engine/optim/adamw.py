"""AdamW, its parameter groups, the schedule, and steps that are skipped without waiting for the
device."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from allinone.engine.config import TrainConfig


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    head_patterns: Iterable[str] = (),
    head_lr_mult: float = 1.0,
) -> list[dict[str, Any]]:
    """Groups {decay, no decay} x {base, head learning rate}; empty ones are left out.

    No decay for biases, for every normalisation weight and for the logit scale, that is for all
    parameters of one dimension. The original decides by substrings of names, which decays the
    LayerNorm weights inside its answer heads and gives no head rate to its rank heads: both are
    slips and not repeated. Embeddings, class token and positions decay, as in the original.
    """
    patterns = tuple(head_patterns)
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            head = any(pattern in name for pattern in patterns)
            groups.setdefault((parameter.dim() > 1, head), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": weight_decay if decays else 0.0,
            "lr_mult": head_lr_mult if head else 1.0,
        }
        for (decays, head), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def learning_rate(config: TrainConfig, step: int) -> float:
    """Rate of step 1..steps. Linear warm-up reaches the peak at its last step; then linear or
    cosine decay reaches 0 after the last step.

    The original's first step has rate 0, a step for nothing; here step 1 has peak / warm-up steps.
    """
    warmup = config.warmup_steps()
    if step <= warmup:
        return config.lr * step / warmup
    left = (config.steps - step + 1) / max(config.steps - warmup, 1)
    return config.lr * (
        left if config.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))
    )


class SkippingAdamW(torch.optim.AdamW):
    """Fused AdamW that clips, and leaves weights, moments and step counts alone when the gradient
    is not finite, all on the device.

    torch's fused kernels take two device scalars: `found_inf` (1: change nothing) and `grad_scale`
    (gradients are divided by it). Both follow from one number, the norm of the whole gradient over
    all ranks, so all ranks and ZeRO partitions decide alike and the host waits for nothing.
    `deciding` is false where DeepSpeed clips and skips by itself, waiting for the device: ZeRO 3,
    fp16, and ZeRO 0 in bf16 (engine/ds_config.py says which). With ZeRO 1 and 2 this optimizer sees
    one partition of one group per call; the loop then sets `norm_of` to DeepSpeed's norm of all
    partitions, which it reduces before the first call of a step.
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
        self._clip, self._deciding = config.clip_grad, deciding
        self.norm_of: Callable[[], Tensor] | None = None
        """Global gradient norm before clipping; None: this optimizer sees the whole gradient and
        computes it."""
        self.grad_norm: Tensor | None = None
        """float32 scalar of the last step, before clipping; None where DeepSpeed decides."""
        self.skipped: Tensor | None = None
        """float32 scalar, 1 after a skipped step; None where DeepSpeed decides."""

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # no caller wants the loss
        """One update, or none."""
        if self._deciding:
            norm = self.norm_of() if self.norm_of else self._norm()
            self.grad_norm, self.skipped = norm, (~torch.isfinite(norm)).float()
            self.found_inf = self.skipped
            self.grad_scale = ((norm + 1e-6) / self._clip).clamp(min=1.0) if self._clip else None
        super().step(closure)

    def _norm(self) -> Tensor:
        gradients = [
            p.grad for group in self.param_groups for p in group["params"] if p.grad is not None
        ]
        return torch.nn.utils.get_total_norm(gradients, foreach=True).float()


def outcome(engine: Any, optimizer: SkippingAdamW, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of the step just done, as device scalars: 1 if it was skipped, and the norm of the whole
    gradient before clipping (nan where DeepSpeed keeps none). DeepSpeed's word counts where it
    decides by itself, or refused the gradient before our optimizer saw it, whose norm is an older
    one.
    """
    if getattr(engine.optimizer, "overflow", False):
        return torch.ones((), device=device), torch.full((), math.nan, device=device)
    skipped = torch.zeros((), device=device) if optimizer.skipped is None else optimizer.skipped
    norm = optimizer.grad_norm if optimizer.grad_norm is not None else engine.get_global_grad_norm()
    if (
        optimizer.grad_norm is None
        and norm is not None
        and type(engine.optimizer).__name__ == "FP16_UnfusedOptimizer"
    ):
        norm = (
            norm / engine.optimizer.loss_scale_config.cur_scale
        )  # ZeRO 0 in fp16: DeepSpeed's norm is of the scaled gradient
    if not isinstance(norm, Tensor):
        norm = torch.tensor(math.nan if norm is None else float(norm), device=device)
    return skipped, norm


def import_muon() -> None:
    """DeepSpeed imports its Muon to see that the optimizer is another one. If it may compile Muon's
    functions on that occasion, torch's compiler comes with them: 4.5 s and 116 MiB of every rank
    (torch 2.13)."""
    from deepspeed.runtime import compiler

    compiling = compiler.compile
    compiler.compile = lambda: (
        compiler.dummy_decorator
    )  # what it does itself where torch has no compiler
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        compiler.compile = compiling
