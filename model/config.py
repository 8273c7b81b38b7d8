"""Configuration of All-in-one and its sizes by name."""

from __future__ import annotations

from typing import Any, Literal, get_args

from transformers import PretrainedConfig

Roll = Literal["roll", "average", "flatten", "channel"]
PatchOrder = Literal["raster", "shuffled"]

SIZES: dict[str, dict[str, int]] = {
    # not in the paper, for demos and tests: seconds per hundred steps on two CPU cores
    "nano": {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": 64,
        "max_text_len": 16,
        "projection_dim": 128,
    },
    # the paper's Ti, S and B have the shapes of DeiT-Ti, DeiT-S distilled and ViT-B
    "tiny": {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3},
    "small": {
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "distillation_token": True,
    },
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    # beyond the paper: the shapes of ViT-L and ViT-H
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "huge": {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16},
}


_LIMITS = {
    "hidden_size": 2**16,
    "num_hidden_layers": 2**10,
    "num_attention_heads": 2**12,
    "mlp_ratio": 2**8,
    "image_size": 2**14,
    "patch_size": 2**14,
    "num_frames": 2**12,
    "vocab_size": 2**24,
    "max_text_len": 2**16,
    "projection_dim": 2**16,
    "roll_divisor": 2**16,
}
"""Largest values, far beyond any model: a damaged or hostile config.json must not ask for terabytes
or for hours of building layers."""


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
    distillation_token: bool = False
    """DeiT's distillation token is the second visual token; it rolls like a patch.

    Such a model has no temporal embedding, like the original's distilled class. The default is what
    a config.json without this entry means: earlier versions never had the token.
    """
    num_frames: int = 3
    """Most frames per clip, T: rows of the temporal embedding, where there is one.

    Images (one frame) get no temporal embedding and do not roll.
    """
    vocab_size: int = 30522
    max_text_len: int = 40
    """Rows of the text position table: maximum tokens per text, [CLS] and [SEP] included."""
    projection_dim: int = 512
    """Width of the contrastive space."""
    image_heads: bool = False
    """Images have separate MLM and VTM heads (co-training, heads not shared)."""
    roll: str = "roll"
    """How frames exchange information: roll, average, flatten or channel (model/roll.py)."""
    roll_divisor: int = 8
    """n // roll_divisor of the n visual tokens roll one frame forward, and as many backward."""
    patch_order: str = "raster"
    """Which patches roll.

    raster: the first and last rows. shuffled: random ones in each frame, as in the training of the
    released weights.
    """
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.0
    drop_path: float = 0.1
    """Stochastic depth of the last block; the rate grows linearly from 0 in the first block."""

    def __post_init__(self, **kwargs: Any) -> None:
        self._set_task(kwargs)
        super().__post_init__(**kwargs)
        for name, limit in _LIMITS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"{name} must be a whole number, got {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
            if value > limit:
                raise ValueError(f"{name} must be at most {limit:,}, got {value:,}")
        if self.max_text_len < 3:
            raise ValueError(
                "max_text_len must be at least 3, for [CLS], a word piece and [SEP], got"
                f" {self.max_text_len}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads"
                f" {self.num_attention_heads}; change one of them"
            )
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size};"
                " change one of them"
            )
        for name, valid in (("roll", get_args(Roll)), ("patch_order", get_args(PatchOrder))):
            if getattr(self, name) not in valid:
                raise ValueError(
                    f"{name} must be one of {', '.join(valid)}, got {getattr(self, name)!r}"
                )
        for name in ("hidden_dropout", "attention_dropout", "drop_path"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 <= value < 1:
                raise ValueError(f"{name} is a probability in [0, 1), got {value!r}")

    def _set_task(self, kwargs: dict[str, Any]) -> None:
        """Check the entries of a fine-tuned model, and name its labels as transformers does.

        Raises:
            ValueError: `task` or `id2label` do not have the form that fine-tuning writes.
        """
        self.task: dict[str, Any] = kwargs.pop("task", None) or {}
        if not isinstance(self.task, dict):
            raise ValueError(f"task must be an object with the head's kind, got {self.task!r:.80}")
        labels = self.task.get("labels") or []
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise ValueError("task.labels must be a list of texts")
        names: Any = vars(self).get("id2label")
        # a training checkpoint states its labels under "task" only
        if labels and not (names and len(names) == len(labels)):
            names = dict(enumerate(labels))
        if names is None:
            return
        try:
            numbers = {int(number): str(name) for number, name in names.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError("id2label must map the numbers 0, 1, … to names") from error
        if sorted(numbers) != list(range(len(numbers))):
            raise ValueError("id2label must map the numbers 0, 1, … to names")
        self.id2label = numbers
        self.label2id = {name: number for number, name in numbers.items()}

    def to_dict(self) -> dict[str, Any]:
        """The entries of config.json; models without a task have none about it."""
        entries = super().to_dict()
        if not entries.get("task"):
            entries.pop("task", None)
        return entries

    @property
    def num_patches(self) -> int:
        """Patches per frame, P."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_prefix_tokens(self) -> int:
        """Visual tokens in front of the patches, 1 or 2: class token, distillation token."""
        return 2 if self.distillation_token else 1

    @property
    def num_visual_tokens(self) -> int:
        """Visual tokens of a frame, n."""
        return self.visual_tokens()

    def visual_tokens(self, patches: int | None = None) -> int:
        """Visual tokens of a frame of which that many patches are used; None: all."""
        return self.num_prefix_tokens + (self.num_patches if patches is None else patches)

    @property
    def has_temporal_embedding(self) -> bool:
        """Whether the patches of each frame get a learned embedding of the frame's number."""
        # The original creates the parameter for its distilled class but never adds it. Without a
        # gradient it would only take optimizer state and decay, so this model does not have it.
        return not self.distillation_token

    @classmethod
    def from_size(cls, size: str, **overrides: Any) -> AllInOneConfig:
        """Return the config of a named size with some values replaced.

        Raises:
            ValueError: The size or an option is unknown; the message lists the valid names.
        """
        if size not in SIZES:
            raise ValueError(f"unknown model size {size!r}; valid sizes: {', '.join(SIZES)}")
        fields = [name for name in AllInOneConfig.__annotations__ if name != "model_type"]
        unknown = sorted(set(overrides) - set(fields))
        if unknown:
            raise ValueError(
                f"unknown model option {', '.join(unknown)}; valid options: {', '.join(fields)}"
            )
        return cls(**{**SIZES[size], **overrides})

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers does; every unusable entry of a config.json is a ValueError."""
        _refuse_foreign(cls, config_dict)
        try:
            found = super().from_dict(config_dict, **kwargs)
        except ValueError:
            raise
        except Exception as error:  # strict dataclasses and setters raise many types
            raise ValueError(f"config.json has an unusable entry: {error}") from error
        config = found[0] if isinstance(found, tuple) else found
        if (parameters := config._approximate_parameters()) > MOST_PARAMETERS:
            raise ValueError(
                f"the sizes in config.json make a model of {parameters / 1e9:,.0f} billion"
                f" parameters; at most {MOST_PARAMETERS / 1e9:,.0f} billion are accepted"
            )
        return found

    def _approximate_parameters(self) -> int:
        """Elements of the matrices of all blocks, and of the tables of words and positions."""
        width = self.hidden_size
        rows = self.vocab_size + self.max_text_len + self.num_patches + self.num_frames
        block = (4 + 2 * self.mlp_ratio) * width**2
        return self.num_hidden_layers * block + (rows + 2 * self.projection_dim) * width


MOST_PARAMETERS = 10**11
"""Of a model whose config.json is read; its limits alone would allow terabytes."""
ATTENTION = (None, "eager", "sdpa")
"""Implementations of attention that a config.json may name; transformers takes any other name for
that of a program on the hub."""
DTYPES = ("float32", "float16", "bfloat16", "float64")


def _refuse_foreign(kind: type, entries: dict[str, Any]) -> None:
    """ValueError for entries of a config.json that name programs or replace attributes.

    Args:
        kind: The class of the configuration.
        entries: All entries.
    """
    for name in ("attn_implementation", "_attn_implementation", "experts_implementation"):
        if (value := entries.get(name)) not in ATTENTION:
            raise ValueError(
                f"config.json: {name} {value!r} is refused, because it may name a program; remove"
                " it, or use sdpa"
            )
    for name in ("dtype", "torch_dtype"):
        value = entries.get(name)
        # transformers looks the name up among everything that torch has
        if value is not None and str(value).removeprefix("torch.") not in DTYPES:
            raise ValueError(f"config.json: {name} {value!r} is not one of {', '.join(DTYPES)}")
    for name in entries:
        attribute = getattr(kind, name, None)
        fixed = isinstance(attribute, property) and attribute.fset is None
        if callable(attribute) or fixed or name.startswith("__"):
            raise ValueError(f"config.json: {name} is no entry of a configuration")
