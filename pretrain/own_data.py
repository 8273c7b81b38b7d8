"""The recipe `own`: values that follow from the data set and the device.

A run of the recipe records the values, so that its resumption does not derive them again.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, fields, replace

from allinone.common.earlier_runs import recorded_options
from allinone.common.errors import ConfigError, DataError
from allinone.common.options import option
from allinone.data.config import DatasetSpec
from allinone.engine.config import TrainConfig
from allinone.pretrain.config import VIT_SOURCES, PretrainConfig

log = logging.getLogger(__name__)

TEXT_LEN = 40
"""Tokens per caption, the paper's; more only if over 1 % of the captions are longer."""
FEWEST = 8
"""Clips per rank and step, where there are as many."""
LONGEST_TEXT = 128
"""Tokens; attention over a clip's tokens grows with every one of them."""


@dataclass(frozen=True)
class Scale:
    """How long and in which batches a device trains."""

    epochs: int
    steps: tuple[int, int]
    """Fewest and most steps."""
    batch: int
    """Largest global batch per rank."""
    micro_batch: int
    ds_config: str


SCALES = {
    # a forward and backward pass of tiny at 224 px takes most of a second per clip on two cores
    "cpu": Scale(epochs=10, steps=(50, 1000), batch=16, micro_batch=8, ds_config="zero1_fp32"),
    "cuda": Scale(
        epochs=40, steps=(500, 20_000), batch=256, micro_batch=32, ds_config="zero1_bf16"
    ),
}


@dataclass(frozen=True)
class OwnTrainConfig(TrainConfig):
    """Options of the training loop, where 0 is derived from the data and the device."""

    steps: int = 0
    """Optimizer steps; 0: 10 epochs on a CPU (50 to 1,000 steps), 40 on GPUs (500 to 20,000)."""
    global_batch: int = 0
    """Clips per optimizer step over all ranks; 0: a quarter of the clips, 8 to 16 per rank on a CPU
    and 8 to 256 on a GPU."""
    micro_batch: int = 0
    """Clips per forward pass and rank; 0: at most 8 on a CPU and 32 on a GPU."""
    log_every: int = option(0, resume="may_change")
    """Steps between two log lines; 0: a 20th of the steps."""
    save_every: int = option(0, resume="may_change")
    """Steps between two checkpoints; 0: an eighth of the steps."""
    eval_every: int = option(0, resume="may_change")
    """Steps between two evaluations; 0: an eighth of the steps."""
    ds_config: str = option("auto", resume="layout")
    """Name in ds_configs/ or path of a DeepSpeed JSON file; auto: zero1_fp32 on a CPU, zero1_bf16
    on GPUs."""

    def __post_init__(self) -> None:
        derived = ("steps", "global_batch", "micro_batch", "log_every", "save_every")
        TrainConfig(**{**vars(self), **{name: getattr(self, name) or 1 for name in derived}})


def resolve(config: PretrainConfig, device: str, world: int) -> PretrainConfig:
    """Replace what the recipe `own` derives; other runs are returned as they are.

    Args:
        config: Options as given.
        device: cpu or cuda.
        world: Number of ranks.

    Raises:
        ConfigError: --data is missing, or --out, which says where the run is kept.
        DataError: The data set is unfinished or damaged, or has no split train.
    """
    if not isinstance(config.train, OwnTrainConfig):
        return config
    specs = config.train_specs()
    from allinone.data.index import choose_split, dataset_facts  # imports pyarrow

    clips = 0
    for spec in specs:
        known = dataset_facts(spec.path)["clips"]
        clips += known[choose_split(spec.path, known, spec.split)]
    recorded = recorded_options(config.out)
    # a resumed run keeps its values, also on another device
    kept = {
        name: recorded[f"train.{name}"]
        for name in ("steps", "global_batch", "micro_batch")
        if getattr(config.train, name) == 0 and f"train.{name}" in recorded
    }
    given = replace(config.train, **kept)
    train = _train(given, clips, device, world // config.train.tensor_parallel)
    model = config.model
    if model.max_text_len is None:
        model = replace(model, max_text_len=recorded.get("model.max_text_len") or _text_len(specs))
    return replace(config, train=train, model=model, val=config.val or _validation(specs))


def require_places(config: PretrainConfig) -> None:
    """ConfigError if the recipe `own` was not given --data or --out."""
    if isinstance(config.train, OwnTrainConfig) and (not config.data or not config.out.name):
        missing = [
            name
            for name, given in (("--data", config.data), ("--out", config.out.name))
            if not given
        ]
        raise ConfigError(
            f"recipe own needs {' and '.join(missing)}, for example: allinone train own --data"
            " prepared/mine --out runs/mine",
            hint="allinone prepare my.csv --out prepared/mine makes the data set",
        )


def _train(given: OwnTrainConfig, clips: int, device: str, world: int) -> TrainConfig:
    scale = SCALES[device]
    # at least 8 where there are as many: the contrastive loss needs other clips in a batch
    share = max(1, min(scale.batch, clips // world, max(FEWEST, clips // (4 * world))))
    # a power of two per rank, so that micro-batches divide it
    batch = given.global_batch or world * 2 ** int(math.log2(share))
    per_rank = max(1, batch // world)
    micro = given.micro_batch or math.gcd(per_rank, scale.micro_batch)
    steps = given.steps
    if not steps:
        fewest, most = scale.steps
        steps = min(most, max(fewest, math.ceil(scale.epochs * clips / batch)))
    return TrainConfig(
        **{entry.name: getattr(given, entry.name) for entry in fields(TrainConfig)}
        | {
            "steps": steps,
            "global_batch": batch,
            "micro_batch": micro,
            "log_every": given.log_every or max(1, steps // 20),
            "save_every": given.save_every or max(1, steps // 8),
            "eval_every": given.eval_every or max(1, steps // 8),
            "ds_config": scale.ds_config if given.ds_config == "auto" else given.ds_config,
        }
    )


def _text_len(specs: list[DatasetSpec]) -> int:
    from allinone.data.captions import caption_lengths

    needed = max(caption_lengths(spec.path, spec.split).quantile(0.99) for spec in specs)
    return min(LONGEST_TEXT, max(TEXT_LEN, 8 * math.ceil(needed / 8)))


def _validation(specs: list[DatasetSpec]) -> tuple[str, ...]:
    """The validation splits of the data sets, as values of --val."""
    from allinone.data.index import choose_split, dataset_facts

    found = []
    for spec in specs:
        try:
            name = choose_split(spec.path, dataset_facts(spec.path)["clips"], "val")
        except DataError as error:
            log.warning(
                "nothing is evaluated on %s: %s. prepare --val-share 0.1 makes a split val",
                spec.path,
                error,
            )
        else:
            found.append(f"{spec.path}:{name}")
    return tuple(found)


def suggest_weights(config: PretrainConfig) -> None:
    """Log how to start from ImageNet weights, if the recipe `own` starts from random ones."""
    if not isinstance(config.train, OwnTrainConfig):
        return
    if config.model.init_from is None and config.model.size in VIT_SOURCES:
        source, size = VIT_SOURCES[config.model.size], config.model.size
        log.info(
            "random initial weights; ImageNet weights learn faster from few clips: allinone convert"
            " from-vit %s --size %s --out weights/vit-%s, then --init-from weights/vit-%s",
            source,
            size,
            size,
            size,
        )
