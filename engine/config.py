"""Options of the training loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from allinone.common.errors import ConfigError
from allinone.common.options import option, plain
from allinone.common.validation import COUNT, NOT_NEGATIVE, POSITIVE, Bounds, require

__all__ = ["RENAMED", "TrainConfig", "every", "plain"]

RENAMED = {"max-dossiers": "max-anomaly-reports"}
"""Flags of earlier versions → today's; old commands and old run folders are still accepted."""

LoggerName = Literal["tensorboard", "wandb", "mlflow"]
"""Values of --log-to."""


@dataclass(frozen=True)
class TrainConfig:
    """Options of a training run; those that DeepSpeed also knows are "auto" in ds_configs/.

    Each field's metadata states whether a resumed run may change it (common/options.py).
    """

    steps: int = 400_000
    """Optimizer steps of the run; 400,000 in the paper."""
    global_batch: int = 2048
    """Clips per optimizer step, over all ranks; 2,048 in the paper."""
    micro_batch: int = 16
    """Clips per rank and forward pass, limited by GPU memory. Gradients are accumulated over
    global batch / (micro-batch x data ranks) micro-batches."""
    tensor_parallel: int = option(1, resume="layout")
    """Ranks that share each attention and MLP layer (megatron-core) and see the same clips; the
    number of data ranks is ranks / this. For models that do not fit otherwise: it costs two
    all-reduces of activations per layer and direction, so keep a group within one node."""
    lr: float = 1e-4
    """Peak learning rate; 1e-4 in the paper's pre-training."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices and embedding tables (see engine/optim/adamw.py)."""
    beta1: float = 0.9
    """Decay rate of AdamW's first moment."""
    beta2: float = 0.98
    """Decay rate of AdamW's second moment; the paper's value, below the usual 0.999."""
    eps: float = 1e-8
    """Added to the square root of AdamW's second moment."""
    warmup: float = 0.1
    """Linear warm-up: a fraction of the steps if below 1, otherwise a number of steps."""
    schedule: Literal["linear", "cosine"] = "linear"
    """Shape of the decay to 0 after the warm-up."""
    clip_grad: float = option(1.0, earlier=1.0)
    """Maximum global gradient norm; 0 disables clipping. The original code does not clip, but a
    loss spike on 128 GPUs costs more than clipping does."""
    ema: float = option(0.0, earlier=0.0)
    """Decay of an exponential moving average of the fp32 weights, such as 0.9999; 0 keeps none.
    About the last 1 / (1 - decay) steps count. The average is evaluated in addition to the weights,
    saved in ema/ of every checkpoint, and needs 4 bytes per parameter, divided as the optimizer
    state."""
    ds_config: str = option("zero1_bf16", resume="layout")
    """Name in ds_configs/ (ZeRO stage and precision) or path of a DeepSpeed JSON file."""
    activation_checkpointing: bool = option(False, resume="may_change")
    """Recompute each block in the backward pass: less memory for about a third more time."""
    compile: bool | Literal["auto"] = option("auto", resume="may_change", earlier=False)
    """Compile each transformer block with torch.compile, which takes minutes in the first step.
    auto: on CUDA, except with tensor parallelism, where only pieces of a block can be compiled, and
    with ZeRO 3, where none can. With dropout, a compiled run draws other random numbers."""
    seed: int = 0
    """Seed of weights, data order, augmentation, masks and dropout."""
    log_every: int = option(50, resume="may_change")
    """Steps between two log lines and TensorBoard points. Only these steps wait for the device."""
    save_every: int = option(1000, resume="may_change")
    """Steps between two checkpoints. Checkpoints are also written at the end, on a signal and
    before an evaluation."""
    keep_last: int = option(2, resume="may_change")
    """Number of newest checkpoints to keep."""
    keep_every: int = option(0, resume="may_change")
    """Also keep checkpoints at multiples of this many steps; 0 keeps no others."""
    eval_every: int = option(0, resume="may_change")
    """Steps between two evaluations; 0 evaluates at the end only."""
    eval_at_start: bool = option(False, resume="may_change")
    """Also evaluate before the first step, so that curves begin with the untrained model. Such an
    evaluation selects no weights."""
    max_skipped: int = option(50, resume="may_change")
    """Consecutive steps skipped for a non-finite gradient after which the run stops. A few skipped
    steps are normal: fp16 finds its loss scale that way."""
    spike_deviations: float = option(10.0, resume="may_change")
    """A loss or gradient norm more than this many robust standard deviations above the median of
    the last 200 steps is a spike and gets an anomaly report (see engine/anomaly/detector.py);
    0 disables spike detection."""
    max_anomaly_reports: int = option(20, resume="may_change")
    """Maximum number of anomaly reports (non-finite steps and spikes) per run; each report repeats
    one step. 0 writes none."""
    straggler_ratio: float = option(1.5, resume="may_change")
    """Warn about a rank whose own work takes this many times the median of the other ranks in two
    consecutive logging intervals; 0 disables the warning."""
    hang_timeout_s: float = option(1800.0, resume="may_change")
    """Seconds without a finished step or evaluation batch after which a rank reports where it hangs
    and exits. The first step of a launch has at least 180 s."""
    device: Literal["auto", "cpu", "cuda"] = option("auto", resume="may_change")
    """Device to train on; auto uses CUDA if it is available."""
    accept_changed_data: bool = option(False, resume="may_change", recorded=False)
    """Continue a run although its data, annotations, labels or tokenizer have changed since it
    started. Without it, such a start is refused."""
    log_to: tuple[LoggerName, ...] = option(("tensorboard",), resume="may_change")
    """Where curves and sample pictures go, besides history.jsonl: tensorboard (OUT/tensorboard),
    wandb and mlflow (extras of the same names); several are possible, see docs/monitoring.md."""
    json: bool = option(False, resume="may_change")
    """Print progress as JSON lines instead of text."""
    quiet: bool = option(False, resume="may_change")
    """Print warnings and errors only."""
    verbose: bool = option(False, resume="may_change")
    """Also print debug messages."""

    def __post_init__(self) -> None:
        require(self, COUNT, ("steps", "global_batch", "micro_batch", "tensor_parallel"))
        require(self, COUNT, ("log_every", "save_every", "keep_last"))
        require(self, NOT_NEGATIVE, ("lr", "weight_decay", "warmup", "clip_grad", "seed"))
        require(self, NOT_NEGATIVE, ("keep_every", "eval_every", "max_skipped"))
        require(self, NOT_NEGATIVE, ("spike_deviations", "max_anomaly_reports", "straggler_ratio"))
        require(self, POSITIVE, ("eps", "hang_timeout_s"))
        require(self, Bounds(0, 1, below=True), ("beta1", "beta2", "ema"))
        if unknown := set(self.log_to) - set(get_args(LoggerName)):
            raise ConfigError(
                f"--log-to {' '.join(sorted(unknown))}: unknown; known are"
                f" {', '.join(get_args(LoggerName))}"
            )
        if self.quiet and self.verbose:
            raise ConfigError("--quiet and --verbose exclude each other; give one of them")

    def accumulation(self, world: int) -> int:
        """Micro-batches per rank and optimizer step on `world` data ranks.

        Raises:
            ConfigError: The global batch is not divisible; lists the micro-batches that fit.
        """
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


def every(step: int, interval: int, last: int | None = None) -> bool:
    """Whether something is due.

    Args:
        step: Finished steps.
        interval: Due at its multiples; 0: never.
        last: Due at this step too.
    """
    return step == last or (interval > 0 and step % interval == 0)
