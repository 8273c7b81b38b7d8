"""Options of the training loop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from allinone.common.errors import ConfigError
from allinone.common.validation import COUNT, NOT_NEGATIVE, POSITIVE, Bounds, require


@dataclass(frozen=True)
class TrainConfig:
    """One run of the loop. Values that ds_configs/*.json also know stand there as "auto"."""

    steps: int = 400_000
    """Optimizer steps of the whole run (the paper's count)."""
    global_batch: int = 2048
    """Clips per optimizer step over all ranks."""
    micro_batch: int = 16
    """Clips per rank and forward pass; what fits in memory. Accumulation follows: global / (micro x
    data ranks)."""
    tensor_parallel: int = 1
    """Ranks that share every attention and MLP layer (megatron-core) and see the same clips; ranks
    / this = data ranks. For models that do not fit otherwise: it costs two all-reduces of
    activations per layer and direction, so keep a group within one machine."""
    lr: float = 1e-4
    """Peak learning rate."""
    weight_decay: float = 0.01
    """Decoupled weight decay of the matrices and tables (engine/optim/adamw.py says which)."""
    beta1: float = 0.9
    """Decay of AdamW's first moment."""
    beta2: float = 0.98
    """Decay of AdamW's second moment; the paper's value, shorter than the usual 0.999."""
    eps: float = 1e-8
    """Added to the root of AdamW's second moment."""
    warmup: float = 0.1
    """Linear warm-up: a share of the steps if below 1, else a number of steps."""
    schedule: Literal["linear", "cosine"] = "linear"
    """Decay to 0 after the warm-up."""
    clip_grad: float = 1.0
    """Largest global gradient norm; 0 switches clipping off. The original does not clip; a spike at
    128 GPUs costs more than the clip."""
    ds_config: str = "zero1_bf16"
    """Name in ds_configs/ (ZeRO stage and precision) or path of a DeepSpeed JSON file."""
    activation_checkpointing: bool = False
    """Recompute each block in the backward pass: memory for about a third more time."""
    compile: bool = False
    """Compile the model with torch.compile."""
    seed: int = 0
    """Weights, data order, augmentation, masks and dropout follow from it."""
    log_every: int = 50
    """Steps between two lines of progress, history and TensorBoard; the only steps that wait for
    the device."""
    save_every: int = 1000
    """Steps between two checkpoints; more are written at the end, on a signal and before an
    evaluation."""
    keep_last: int = 2
    """Newest checkpoints that stay."""
    keep_every: int = 0
    """Checkpoints at multiples of this many steps stay for ever; 0 keeps none."""
    eval_every: int = 0
    """Steps between two evaluations; 0 evaluates at the end only."""
    max_skipped: int = 50
    """Steps in a row skipped for a non-finite gradient after which the run stops. Single ones are
    normal: fp16 finds its loss scale by them."""
    spike_deviations: float = 10.0
    """A loss or gradient norm this many robust deviations above the median of the last 200 steps is
    a spike and gets a dossier (engine/anomaly/detector.py states the rule); 0 looks for none."""
    max_dossiers: int = 20
    """Dossiers that a run writes on non-finite steps and spikes; each computes one step again. 0
    writes none."""
    straggler_ratio: float = 1.5
    """A rank whose own work takes this many times the median of the others', in two logging
    intervals in a row, is warned of; 0 never warns."""
    hang_timeout_s: float = 1800.0
    """Seconds without a finished step, or batch of an evaluation, after which a rank prints where
    it hangs and ends; the first step of a launch has at least 180."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA where there is one."""
    json: bool = False
    """Print progress as JSON lines instead of text."""

    def __post_init__(self) -> None:
        counts = (
            "steps",
            "global_batch",
            "micro_batch",
            "tensor_parallel",
            "log_every",
            "save_every",
            "keep_last",
        )
        require(self, COUNT, counts)
        require(
            self,
            NOT_NEGATIVE,
            (
                "lr",
                "weight_decay",
                "warmup",
                "clip_grad",
                "keep_every",
                "eval_every",
                "max_skipped",
                "seed",
            ),
        )
        require(self, NOT_NEGATIVE, ("spike_deviations", "max_dossiers", "straggler_ratio"))
        require(self, POSITIVE, ("eps", "hang_timeout_s"))
        require(self, Bounds(0, 1, below=True), ("beta1", "beta2"))

    def accumulation(self, world: int) -> int:
        """Micro-batches per rank and step; raises ConfigError with the micro-batches that would
        divide."""
        if self.global_batch % (self.micro_batch * world) == 0:
            return self.global_batch // (self.micro_batch * world)
        if self.global_batch % world:
            raise ConfigError(
                f"--global-batch {self.global_batch} is not a multiple of the {world} ranks; change"
                " one of the two"
            )
        share = self.global_batch // world
        valid = [n for n in range(1, share + 1) if share % n == 0]
        raise ConfigError(
            f"--global-batch {self.global_batch} is not a multiple of --micro-batch"
            f" {self.micro_batch} x {world} ranks; valid micro-batches:"
            f" {', '.join(map(str, valid))}"
        )

    def warmup_steps(self) -> int:
        """Length of the warm-up in steps."""
        return int(self.warmup) if self.warmup >= 1 else round(self.warmup * self.steps)


HARMLESS = frozenset(
    {
        "log_every",
        "save_every",
        "keep_last",
        "keep_every",
        "eval_every",
        "max_skipped",
        "spike_deviations",
        "max_dossiers",
        "straggler_ratio",
        "hang_timeout_s",
        "json",
        "device",
        "compile",
    }
    | {
        "activation_checkpointing",
        "tensor_parallel",
        "out",
        "val",
        "val_items",
        "workers",
        "image_workers",
        "dali_threads",
        "pipelines",
        "prefetch",
        "backend",
        "clip_timeout_s",
        "max_bad_share",
    }
)
"""Options that may change when a run is resumed: none of them changes what is computed beyond
rounding."""


def every(step: int, interval: int, last: int | None = None) -> bool:
    """Is it time? True at multiples of `interval` (0: never), and at `last`."""
    return step == last or (interval > 0 and step % interval == 0)


def plain(value: Any) -> Any:
    """Options as JSON knows them: paths become text, tuples lists."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
