"""Trains with the original code of All-in-one, from a checkout that the caller has.

Nothing of that code is here: its modules are imported from the checkout
(https://github.com/showlab/all-in-one), and libraries that it needs but a training step hardly uses
are replaced by stubs where they are not installed. Its AdamW, which transformers has removed, is
torch's.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from allinone.common.errors import InputError
from allinone.data.loading.batch import Batch
from allinone.model import AllInOneConfig

REPLACED = (
    "cv2", "decord", "einops", "ffmpeg", "pandas", "pytorch_lightning", "pytorchvideo", "sacred",
    "skimage", "timm", "torchvision",
)  # fmt: skip
"""Libraries that may be replaced by stubs."""
BACKBONES = {
    "tiny": "vit_deit_tiny_patch16_224",
    "small": "vit_deit_small_distilled_patch16_224",
    "base": "vit_base_patch16_224",
}
"""Size → name of the original's function."""
NEEDED = Path("AllInOne/modules/allinone_module.py")


class Anything:
    """Stands for a function or class that a training step does not use."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if args and callable(args[0]) else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()


class LightningModule(nn.Module):
    """What a step uses of pytorch_lightning's."""

    def save_hyperparameters(self) -> None:
        """Keep the constructor's `config`."""
        self.hparams = SimpleNamespace(config=sys._getframe(1).f_locals["config"])

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Log nothing."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device


class Metric(nn.Module):
    """What a step uses of pytorch_lightning's: states, and a value per call."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def add_state(self, name: str, default: Tensor, **kwargs: Any) -> None:
        """Define a state."""
        self.register_buffer(name, default, persistent=False)

    def forward(self, *args: Any) -> Any:
        """Update, and return the value so far."""
        self.update(*args)
        return self.compute()


class DropPath(nn.Module):
    """Stochastic depth per row (Huang et al., ECCV 2016), as timm has it."""

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.drop_prob:
            return x
        kept = torch.rand(x.shape[0], *[1] * (x.dim() - 1), device=x.device) >= self.drop_prob
        return x * kept.to(x.dtype) / (1 - self.drop_prob)


STUBS: dict[str, Any] = {
    "LightningModule": LightningModule,
    "Metric": Metric,
    "DropPath": DropPath,
    "IMAGENET_DEFAULT_MEAN": (0.485, 0.456, 0.406),
    "IMAGENET_DEFAULT_STD": (0.229, 0.224, 0.225),
    "register_model": lambda function: function,
    "to_2tuple": lambda value: (value, value),
    "trunc_normal_": nn.init.trunc_normal_,
}
"""Name → what a stub module has under it; everything else is Anything."""


class _Stub(ModuleType):
    __path__: Sequence[str] = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return STUBS.get(name, Anything)


class StubFinder(MetaPathFinder, Loader):
    """Finds missing libraries of `REPLACED`; comes last, so that installed ones are used."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """A stub for a library of `REPLACED` and its submodules."""
        found = fullname.partition(".")[0] in REPLACED
        return ModuleSpec(fullname, self, is_package=True) if found else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The stub."""
        return _Stub(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


def original_config(size: str, config: AllInOneConfig) -> dict[str, Any]:
    """The original's options for MLM + ITM, which includes 0.1 WPA."""
    losses = (
        "itm itc mlm mpp ind_itc vcop vqa openend_vqa mc_vqa nlvr2 irtr multiple_choice vcr_q2a"
        " zs_classify"
    )
    return {
        "loss_names": {name: int(name in ("itm", "mlm")) for name in losses.split()},
        "vit": BACKBONES[size],
        "hidden_size": config.hidden_size,
        "num_heads": config.num_attention_heads,
        "num_layers": config.num_hidden_layers,
        "mlp_ratio": config.mlp_ratio,
        "drop_rate": config.hidden_dropout,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "max_image_len": -1,
        "num_frames": config.num_frames,
        "max_text_len": config.max_text_len,
        "vocab_size": config.vocab_size,
        "shared_embedding_dim": config.projection_dim,
        "load_path": "",
        "test_only": False,
        "linear_evaluation": False,
        "learning_rate": 1e-4,
    }


def original_batch(batch: Batch) -> dict[str, Any]:
    """The same clips and words under the original's keys."""
    return {
        "text": list(batch.captions),
        "text_ids": batch.text_ids,
        "text_labels": torch.full_like(batch.text_ids, -100),
        "text_ids_mlm": batch.mlm_ids,
        "text_labels_mlm": batch.mlm_labels,
        "text_masks": batch.text_mask,
        "image": [batch.pixels],
        "false_image_0": [batch.pixels.roll(1, 0)],
    }


def original_step(
    checkout: Path, size: str, config: AllInOneConfig, batch: Batch
) -> Callable[[], None]:
    """Build the original's model; the result runs one training step.

    Args:
        checkout: Folder with the original code.
        size: tiny, small or base.
        config: The same size here.
        batch: The micro-batch of every step.

    Raises:
        InputError: The folder does not fit, or the size does not exist there.
    """
    if not (checkout / NEEDED).is_file():
        raise InputError(
            f"--against {checkout}: there is no {NEEDED}; give a checkout of"
            " https://github.com/showlab/all-in-one"
        )
    if size not in BACKBONES:
        raise InputError(
            f"--against needs --size {', '.join(BACKBONES)}; {size} is not one of them"
        )
    try:
        model = _build(checkout, size, config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.98))
        inputs = original_batch(batch)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            model.training_step(inputs, 0).backward()
            optimizer.step()

        step()  # a part that does not fit shows here
    # foreign code: whatever it raises becomes one line that names the folder
    except Exception as error:
        raise InputError(
            f"--against {checkout}: its training step does not run here:"
            f" {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        ) from error
    return step


def _build(checkout: Path, size: str, config: AllInOneConfig) -> Any:
    import transformers.optimization

    finder = StubFinder()
    sys.meta_path.append(finder)
    sys.path.insert(0, str(checkout))
    if not hasattr(transformers.optimization, "AdamW"):
        vars(transformers.optimization)["AdamW"] = torch.optim.AdamW
    try:
        module = importlib.import_module("AllInOne.modules.allinone_module")
        backbone = getattr(module.vit, BACKBONES[size])
        # without weights from the network
        setattr(
            module.vit,
            BACKBONES[size],
            lambda pretrained, config: backbone(pretrained=False, config=config),
        )
        return module.AllinoneTransformerSS(original_config(size, config)).train()
    finally:
        sys.path.remove(str(checkout))
        sys.meta_path.remove(finder)
