"""What an entry script declares: a benchmark is data, not code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from allinone.common.errors import ConfigError
from allinone.finetune.annotations.schema import AnnotationError, Split, assert_disjoint
from allinone.finetune.config import FinetuneConfig
from allinone.finetune.tasks.base import EvalOutput, Task


@dataclass(frozen=True)
class Splits:
    """Names of a variant's splits, as the annotation reader knows them."""

    train: str
    """Empty: there is nothing to train on, the benchmark is evaluated only."""
    val: str
    """Chooses the best weights; held out of train where the benchmark has none. Empty: the last
    weights are taken."""
    test: str


@dataclass(frozen=True)
class Benchmark:
    """One benchmark over one protocol, with published values."""

    name: str
    """Name of the entry script."""
    protocol: type[Task]
    load: Callable[..., Split]
    """(annotations, split, variant) → items."""
    variants: Mapping[str, Splits]
    """Variant → its splits; the first is the default. One may be called ""."""
    config: FinetuneConfig
    """Published hyper-parameters: those of the original code's configuration of this task; `task`
    holds the protocol's options."""
    archives: str
    """Where the official media come from, for the message about a missing folder."""
    reads_media: bool = False
    """Whether the annotations lie partly in the media folder (VCR's boxes): `load` gets it as a
    fourth argument."""
    submission: tuple[str, Callable[[Path, Split, EvalOutput], None]] | None = None
    """Name of the file for the benchmark's test server, and what writes it (finetune.submissions)
    from the outcome's rows."""

    def read(self, config: FinetuneConfig, split: str, variant: str) -> Split:
        """One split; AnnotationError where its files are missing or of another format."""
        if self.reads_media:
            return self.load(config.annotations, split, variant, config.media)
        return self.load(config.annotations, split, variant)

    def splits(self, config: FinetuneConfig) -> tuple[str, Splits]:
        """(variant, its splits with those that the options name); ConfigError lists the valid
        variants."""
        variant = config.variant or next(iter(self.variants))
        if variant not in self.variants:
            raise ConfigError(
                f"{self.name} has no --variant {variant!r}; valid variants:"
                f" {', '.join(filter(None, self.variants))}"
                + (", or none" if "" in self.variants and len(self.variants) > 1 else "")
            )
        own = self.variants[variant]
        chosen = Splits(
            config.train_split or own.train,
            config.val_split or own.val,
            config.eval_split or own.test,
        )
        if chosen.val == own.test or (chosen.val and chosen.val in (chosen.train, own.test)):
            raise ConfigError(
                f"--val-split {chosen.val} is the split that is trained or tested on: the best"
                " weights may not be chosen by it"
            )
        return variant, chosen


@dataclass(frozen=True)
class LoadedSplits:
    """The splits of a run. What is not needed or not there is None."""

    variant: str
    train: Split | None
    val: Split | None
    test: Split


def load_splits(benchmark: Benchmark, config: FinetuneConfig) -> LoadedSplits:
    """Read the annotations. Raises AnnotationError where they are missing, of another format,
    empty, or overlap."""
    variant, names = benchmark.splits(config)
    if not names.train and not config.eval_only:
        raise ConfigError(
            f"{benchmark.name} has no training split; give --eval-only, or --train-split and"
            " --val-split"
        )
    test = benchmark.read(config, names.test, variant)
    if config.eval_only:
        # what a head depends on (an answer vocabulary) is compared with the checkpoint's where the
        # files are there
        try:
            train = benchmark.read(config, names.train, variant) if names.train else None
        except AnnotationError:
            train = None
        return LoadedSplits(variant, train, None, test)
    train = benchmark.read(config, names.train, variant)
    val = benchmark.read(config, names.val, variant) if names.val else None
    assert_disjoint(*(split for split in (train, val, test) if split is not None))
    return LoadedSplits(variant, train, val, test)
