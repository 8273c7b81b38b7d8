"""Configuration of All-in-one and its sizes by name."""

from __future__ import annotations

from typing import Any, Literal, get_args

from transformers import PretrainedConfig

Roll = Literal["roll", "average", "flatten", "channel"]
PatchOrder = Literal["raster", "shuffled"]

SIZES: dict[str, dict[str, int]] = {
    # nano is ours, for demos and tests: seconds per hundred steps on two CPU cores
    "nano": {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": 64,
        "max_text_len": 16,
        "projection_dim": 128,
    },
    # the paper's Ti, S and B: the shapes of ViT/DeiT. S of the released weights has DeiT's
    # distillation token on top, which nothing reads
    "tiny": {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3},
    "small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    # beyond the paper: the shapes of ViT-L and ViT-H
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "huge": {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16},
}


class AllInOneConfig(PretrainedConfig):
    """Shape and regularisation of the model. Defaults are the paper's base size."""

    model_type = "all_in_one"

    hidden_size: int = 768
    """Width C of the transformer."""
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: int = 4
    """Width of the MLP's hidden layer as a multiple of C."""
    image_size: int = 224
    """Height and width of a frame, pixels."""
    patch_size: int = 16
    num_frames: int = 3
    """Rows of the temporal embedding: the longest clip, T. One-frame inputs (images) use no row and
    do not roll."""
    vocab_size: int = 30522
    max_text_len: int = 40
    """Rows of the text position table: the longest caption in word pieces, [CLS] and [SEP]
    included."""
    projection_dim: int = 512
    """Width of the contrastive space."""
    image_heads: bool = False
    """Images have an MLM and a VTM head of their own, besides those of video (co-training, heads
    not shared)."""
    roll: str = "roll"
    """How frames exchange information: roll, average, flatten or channel (model/roll.py)."""
    roll_divisor: int = 8
    """n // roll_divisor of the n visual tokens roll one frame forward, and as many one frame
    back."""
    patch_order: str = "raster"
    """raster: the first and last rows of patches roll. shuffled: a random choice per frame, as the
    released weights were trained with."""
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.0
    drop_path: float = 0.1
    """Stochastic depth of the last block; grows linearly from 0 over the blocks."""

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for name in (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "mlp_ratio",
            "image_size",
            "patch_size",
            "num_frames",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_text_len < 3:
            raise ValueError(
                "max_text_len must be at least 3, for [CLS], a word piece and [SEP], got"
                f" {self.max_text_len}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads"
                f" {self.num_attention_heads}"
            )
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )
        for name, valid in (("roll", get_args(Roll)), ("patch_order", get_args(PatchOrder))):
            if getattr(self, name) not in valid:
                raise ValueError(
                    f"{name} must be one of {', '.join(valid)}, got {getattr(self, name)!r}"
                )
        for name in ("hidden_dropout", "attention_dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is a probability in [0, 1), got {getattr(self, name)}")

    @property
    def num_patches(self) -> int:
        """Patches per frame, P."""
        return (self.image_size // self.patch_size) ** 2

    @classmethod
    def from_size(cls, size: str, **overrides: Any) -> AllInOneConfig:
        """The config of a size by name with single values changed; unknown names raise ValueError
        that lists the valid ones."""
        if size not in SIZES:
            raise ValueError(f"unknown model size {size!r}; valid sizes: {', '.join(SIZES)}")
        fields = [name for name in AllInOneConfig.__annotations__ if name != "model_type"]
        unknown = sorted(set(overrides) - set(fields))
        if unknown:
            raise ValueError(
                f"unknown model option {', '.join(unknown)}; valid options: {', '.join(fields)}"
            )
        return cls(**{**SIZES[size], **overrides})
