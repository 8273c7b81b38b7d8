"""Stage (b): results of the original code in every precision, and every kernel against its twin.

Errors are relative: the norm of the difference over the norm of what is expected. Bounds of the
16-bit precisions are multiples of the unit in the last place at 1 (bf16 2**-7, fp16 2**-10).
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

# before CUDA starts: cuDNN's convolutions use TF32 by default, with which fp32 has 10 bits
os.environ["NVIDIA_TF32_OVERRIDE"] = "0"

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from allinone.engine import ds_config, training_engine
from allinone.engine.config import TrainConfig
from allinone.engine.optim.adamw import SkippingAdamW, parameter_groups
from allinone.model import AllInOneConfig, AllInOneForPreTraining
from allinone.pretrain.objectives import optimal_transport
from tests.gpu.stage import CheckFn, Found, Settings, Skip
from tests.parity.trajectory import (
    DISTILLATION,
    OriginalAdamW,
    Trajectory,
    loss_differences,
    replay,
)

PARITY = Path(__file__).resolve().parents[1] / "parity"
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
GOLDEN_BOUNDS = {"fp32": 2e-5, "bf16": 6 * 2**-7, "fp16": 6 * 2**-10}
"""Relative error of features and logits. fp32 as in tests/model/test_golden.py, whose bound is
absolute; features after the last norm are about 1."""
TRAJECTORY_BOUNDS = {"fp32": 5e-5, "bf16": 0.1, "fp16": 0.02}
"""Absolute difference of any loss in any of the 18 steps; the losses are 0.7 to 5. In fp32 with the
original's AdamW, in 16 bits with ours, whose formula alone moves losses by up to 5e-4."""
LOSS_SCALE = 1024
"""Of the fp16 trajectory, fixed: a dynamic one skips the first steps."""


def checks(settings: Settings) -> dict[str, CheckFn]:
    """The checks of the stage, in order."""
    found: dict[str, CheckFn] = {}
    for precision in TYPES:
        for name in ("golden_dev", "golden_distilled_dev"):
            found[f"{name}, {precision}"] = partial(golden, settings, name, precision)
        found[f"trajectory_dev, {precision}"] = partial(trajectory, settings, precision)
    found["fused AdamW"] = lambda: adamw(settings)
    found["compiled word-patch alignment"] = lambda: word_patch_alignment(settings)
    for backend in ("MATH", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"):
        for masked in (True, False):
            title = f"attention, {backend}{', masked' if masked else ''}"
            found[title] = partial(attention, settings, backend, masked)
    found["compiled model"] = lambda: compiled_model(settings)
    return found


def relative_error(ours: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of `expected`, in float64 on the host."""
    ours, expected = ours.detach().cpu().double(), expected.detach().cpu().double()
    return float((ours - expected).norm() / expected.norm().clamp(min=1e-30))


def judge(errors: dict[str, float], bound: float, what: str) -> Found:
    """Compare the largest of some errors with a bound."""
    worst = max(errors, key=errors.__getitem__)
    # not `>`: NaN is a failure
    problem = not errors[worst] <= bound or any(error != error for error in errors.values())
    text = f"{what} {errors[worst]:.1e} ({worst}), bound {bound:.1e}"
    return Found(text, {**errors, "bound": bound}, problem=problem)


def golden(settings: Settings, name: str, precision: str) -> Found:
    """Features and logits of the joint pass from the original code's weights."""
    file = Trajectory.load(PARITY / f"{name}.json")
    if f"state_dict/{DISTILLATION}" in file.tensors:
        file.model_config.distillation_token = True
    dtype = TYPES[precision]
    model = file.model("state_dict").eval().to(settings.device, dtype)

    def stored(key: str) -> Tensor:
        return file.tensors[f"input/{key}"].to(settings.device)

    pixels = stored("pixels").to(dtype)
    ids, mask, order = (stored(key).long() for key in ("text_ids", "text_masks", "patch_perm"))
    errors = {}
    with torch.no_grad():
        for prefix, given in (("", None), ("perm_", order)):
            output = model(pixels, ids, mask, patch_order=given)
            ours = {
                "text_feats": output.text,
                "image_feats": output.video,
                "cls_feats": output.pooled,
                "itm_logits": model.vtm_head(output.pooled),
            }
            for key, value in ours.items():
                expected = file.tensors[f"output/{prefix}{key}"]
                errors[prefix + key] = relative_error(value, expected)
    return judge(errors, GOLDEN_BOUNDS[precision], "relative error")


def trajectory(settings: Settings, precision: str) -> Found:
    """18 optimizer steps of the original code through the real loop."""
    if precision == "fp16" and not settings.on_gpu:
        raise Skip("DeepSpeed does not train in fp16 on a CPU")
    file = Trajectory.load(PARITY / "trajectory_dev.json")
    stage = 0 if precision == "fp32" else 1
    config = replace(
        file.train_config(stage=stage, copies=1),
        ds_config=str(_ds_file(settings, f"zero{stage}_{precision}")),
        device=settings.device,
    )
    out = settings.folder / f"trajectory-{precision}"
    optimizer = OriginalAdamW if precision == "fp32" else SkippingAdamW
    with mock.patch.object(training_engine, "SkippingAdamW", optimizer):
        replay(file, config, out)
    found = loss_differences(file, out)
    found.pop("grad_norm")  # its size is that of the gradients, so no bound of a loss fits
    return judge(found, TRAJECTORY_BOUNDS[precision], "largest difference of a loss")


def _ds_file(settings: Settings, name: str) -> Path:
    """A file of ds_configs/, with a fixed loss scale in fp16."""
    options = ds_config.load(name)
    if options.get("fp16", {}).get("enabled"):
        options["fp16"] = {"enabled": True, "loss_scale": LOSS_SCALE}
    path = settings.folder / f"{name}.json"
    path.write_text(json.dumps(options))
    return path


def adamw(settings: Settings) -> Found:
    """The fused update with clipping and a skipped step, and torch's plain loop in float64."""
    config = TrainConfig(lr=1e-2, weight_decay=0.1, clip_grad=1.0)
    torch.manual_seed(0)
    start = nn.Sequential(nn.Linear(64, 48), nn.LayerNorm(48), nn.Linear(48, 7))
    twin = nn.Sequential(nn.Linear(64, 48), nn.LayerNorm(48), nn.Linear(48, 7)).double()
    twin.load_state_dict(start.state_dict())
    ours = start.to(settings.device)
    fused = SkippingAdamW(parameter_groups(ours, config.weight_decay), config)
    plain = torch.optim.AdamW(
        parameter_groups(twin, config.weight_decay),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        foreach=False,
        fused=False,
    )
    skipped = []
    for step in range(6):
        for parameter, other in zip(ours.parameters(), twin.parameters(), strict=True):
            gradient = torch.randn(parameter.shape)
            if step == 3:
                gradient.view(-1)[0] = float("inf")
            parameter.grad, other.grad = gradient.to(settings.device), gradient.double()
        fused.step()
        assert fused.skipped is not None
        skipped.append(bool(fused.skipped))
        if step != 3:
            nn.utils.clip_grad_norm_(twin.parameters(), config.clip_grad)
            plain.step()
    if skipped != [step == 3 for step in range(6)]:
        return Found(f"skipped steps: {skipped}; only the fourth is not finite", problem=True)
    errors = {
        name: relative_error(parameter, dict(twin.named_parameters())[name])
        for name, parameter in ours.named_parameters()
    }
    return judge(errors, 1e-5, "relative error after 5 steps and a skipped one")


def word_patch_alignment(settings: Settings) -> Found:
    """Distance and gradients, and the uncompiled ones in float32 on the CPU."""
    torch.manual_seed(0)
    text, video = torch.randn(4, 16, 64), torch.randn(4, 1 + 36, 64)
    # the last caption has no word between [CLS] and [SEP]
    lengths = torch.tensor([16, 9, 5, 2])
    mask = (torch.arange(16) < lengths[:, None]).long()

    def distance(device: str) -> tuple[Tensor, ...]:
        inputs = [t.to(device).requires_grad_() for t in (text, video)]
        found = optimal_transport.word_patch_distance(inputs[0], inputs[1], mask.to(device))
        return (found, *torch.autograd.grad(found.sum(), inputs))

    expected = distance("cpu")
    compiled = optimal_transport._compiled_iterations
    if settings.on_gpu:
        ours = distance(settings.device)
    else:
        # inductor would call a C++ compiler; the graph that it gets is made all the same
        backend = "inductor" if settings.compile else "eager"
        compiled = optimal_transport.CompiledFunction(
            optimal_transport.proximal_iterations, backend=backend
        )
        with mock.patch.object(optimal_transport, "proximal_iterations", compiled):
            ours = distance("cpu")
    if compiled._compiled is None or compiled._compiled is compiled._function:
        return Found("the iterations run uncompiled; see the log", problem=True)
    names = ("distance", "gradient of the words", "gradient of the patches")
    errors = dict(zip(names, map(relative_error, ours, expected), strict=True))
    return judge(errors, 1e-5, "relative error")


def attention(settings: Settings, backend: str, masked: bool) -> Found:
    """One backend of scaled_dot_product_attention, and plain attention in float64 on the CPU."""
    if not settings.on_gpu and backend not in ("MATH", "FLASH_ATTENTION"):
        raise Skip("this backend exists on GPUs only")
    heads, tokens, width = (12, 237, 64) if settings.on_gpu else (2, 21, 16)
    torch.manual_seed(0)
    q, k, v, weight = (torch.randn(4, heads, tokens, width) for _ in range(4))
    mask = None
    if masked:
        # padded words of a caption, as the model masks them
        mask = torch.ones(4, 1, 1, tokens, dtype=torch.bool)
        mask[1:, ..., 5:14] = False
    bounds = {torch.float32: 1e-5, torch.bfloat16: 2 * 2**-7, torch.float16: 2 * 2**-10}
    if backend in ("FLASH_ATTENTION", "CUDNN_ATTENTION") and settings.on_gpu:
        bounds.pop(torch.float32)
    errors, refused = {}, []
    for dtype, bound in bounds.items():
        inputs = [t.to(dtype) for t in (q, k, v, weight)]
        expected = _attend(*(t.double() for t in inputs), mask)
        try:
            with sdpa_kernel(getattr(SDPBackend, backend)):
                ours = _attend(
                    *(t.to(settings.device) for t in inputs),
                    None if mask is None else mask.to(settings.device),
                )
        except RuntimeError as error:
            if "No available kernel" not in str(error):
                raise
            refused.append(str(dtype).removeprefix("torch."))
            continue
        for name, value, other in zip(("output", "dq", "dk", "dv"), ours, expected, strict=True):
            # as multiples of the bound, so that types can be compared
            errors[f"{dtype} {name}".removeprefix("torch.")] = relative_error(value, other) / bound
    if not errors:
        raise Skip(f"torch has no such kernel for these inputs ({', '.join(refused)})")
    found = judge(errors, 1.0, "largest error in units of its bound")
    note = f"; refused: {', '.join(refused)}" if refused else ""
    return replace(found, summary=found.summary + note)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, weight: Tensor, mask: Tensor | None
) -> tuple[Tensor, ...]:
    """Output and gradients of (output * weight).sum()."""
    inputs = [t.detach().requires_grad_() for t in (q, k, v)]
    output = F.scaled_dot_product_attention(*inputs, attn_mask=mask)
    return (output, *torch.autograd.grad((output * weight).sum(), inputs))


def compiled_model(settings: Settings) -> Found:
    """Features and gradients of the compiled nano model, and the eager ones on the same device."""
    if not settings.compile:
        raise Skip("nothing is compiled on a CPU without --compile on: it takes minutes")
    config = AllInOneConfig.from_size(
        "nano", hidden_dropout=0.0, attention_dropout=0.0, drop_path=0.0
    )
    torch.manual_seed(0)
    model = AllInOneForPreTraining(config).to(settings.device)
    side = config.image_size
    pixels = torch.randn(2, config.num_frames, 3, side, side, device=settings.device)
    ids = torch.randint(5, config.vocab_size, (2, config.max_text_len), device=settings.device)

    def run() -> list[Tensor]:
        model.zero_grad()
        output = model(pixels, ids, torch.ones_like(ids))
        model.vtm_head(output.pooled).square().sum().backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        return [output.pooled.detach(), *gradients]

    expected = run()
    model.compile_blocks()
    ours = run()
    errors = {
        f"tensor {number}": relative_error(mine, other)
        for number, (mine, other) in enumerate(zip(ours, expected, strict=True))
        if other.any()
    }
    return judge(errors, 1e-3, "relative error of features and gradients")
