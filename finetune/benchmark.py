"""What an entry script declares. A benchmark is data, not code.

How to add a benchmark:

1. **Reader**: `annotations/<family>.py` with `load(folder, split, **options) -> Split`. It reads
   the official files with the helpers of `annotations/common.py` (`find`, `json_rows`, `table`,
   `Builder`), reports every row that it leaves out, and compares counts with the official ones.
2. **Items**: use the item class of `annotations/schema.py` that the task reads: RetrievalItem,
   QAItem, ChoiceItem, ClipChoiceItem, VCRItem or LabelItem. Only a task of a new kind needs a new
   class, a module in `tasks/` (listed in `tasks.TASKS`) and options in `tasks/options.py`.
3. **Script**: copy the closest `finetune/<name>.py`. Its docstring gives the command, the hardware
   and the published numbers; `BENCHMARK` names reader, splits, task and published hyper-parameters.
4. **Test**: a writer of a tiny made-up copy in `tests/finetune/official/` and one line in SCRIPTS
   of `tests/finetune/test_scripts.py`, which trains two steps and evaluates every item.

Nothing here imports torch: `--help` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from allinone.common.errors import ConfigError
from allinone.common.options import with_values
from allinone.finetune.annotations.schema import AnnotationError, Split, assert_disjoint
from allinone.finetune.config import FinetuneConfig

NO_SPLIT = "none"
"""Value of --val-split for a run that selects no weights."""
FOLDS = "fold-*"
"""Folders inside OUT that hold the runs of official folds."""


@dataclass(frozen=True)
class Splits:
    """Names of a variant's splits, as the annotation reader knows them."""

    train: str
    """Empty if there is no training split: the benchmark is only evaluated."""
    val: str
    """Selects the best weights; held out of train if the benchmark has none. Empty: the last
    weights are used."""
    test: str


@dataclass(frozen=True)
class Benchmark:
    """One benchmark with its task and its published hyper-parameters."""

    name: str
    """Name of the entry script."""
    task: str
    """Module in finetune/tasks/ (see `tasks.TASKS`); imported only once a run starts."""
    load: Callable[..., Split]
    """(annotations, split, variant) → items."""
    variants: Mapping[str, Splits]
    """Variant → its splits; the first is the default. One may be called ""."""
    config: FinetuneConfig
    """Published hyper-parameters, those of the original code's configuration of this task; `task`
    holds the task's options."""
    archives: str
    """Where to get the official media, for the message about a missing folder."""
    description: str = ""
    """The script's docstring, shown by --help."""
    reads_media: bool = False
    """Whether annotations are partly stored in the media folder (VCR's boxes): `load` gets it as a
    fourth argument."""
    submission: str = ""
    """Key in evaluation.submissions.WRITERS of the file for the benchmark's test server."""
    variant_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Variant → its defaults by dotted name, where they differ from `config` (COCO 1K:
    {"task.folds": 5}). Flags override them."""
    averages_folds: bool = False
    """Whether the variant "mean" runs all other variants, the official folds, and averages them."""

    def read(self, config: FinetuneConfig, split: str, variant: str) -> Split:
        """Read one split.

        Args:
            config: Options with the annotation and media folders.
            split: Name of the split, as the reader knows it.
            variant: One of `variants`.

        Raises:
            AnnotationError: Files are missing or have another format.
        """
        if self.reads_media:
            return self.load(config.annotations, split, variant, config.media)
        return self.load(config.annotations, split, variant)

    def defaults(self, config: FinetuneConfig, variant: str) -> FinetuneConfig:
        """The options with the defaults of a variant."""
        defaults: FinetuneConfig = with_values(config, self.variant_options.get(variant, {}))
        return defaults

    def splits(self, config: FinetuneConfig) -> tuple[str, Splits]:
        """(variant, its splits, overridden by the options); ConfigError for an unknown variant, or
        if the best weights would be selected on training or test data."""
        variant = config.variant or next(iter(self.variants))
        if variant not in self.variants:
            raise ConfigError(
                f"{self.name} has no --variant {variant!r}; valid variants:"
                f" {', '.join(filter(None, self.variants)) or 'none, leave the option out'}"
                + (", or none" if "" in self.variants and len(self.variants) > 1 else "")
            )
        own = self.variants[variant]
        chosen = Splits(
            config.train_split or own.train,
            "" if config.val_split == NO_SPLIT else config.val_split or own.val,
            config.eval_split or own.test,
        )
        if chosen.val == own.test or (chosen.val and chosen.val in (chosen.train, own.test)):
            raise ConfigError(
                f"--val-split {chosen.val} is the training or test split: the best weights may not"
                " be chosen by it"
            )
        return variant, chosen


@dataclass(frozen=True)
class LoadedSplits:
    """The splits of a run. What is not needed or not available is None."""

    variant: str
    train: Split | None
    val: Split | None
    test: Split


def load_splits(benchmark: Benchmark, config: FinetuneConfig) -> LoadedSplits:
    """Read the annotations of all splits that a run needs.

    Raises:
        AnnotationError: Files are missing, empty, of another format, or splits share media.
        ConfigError: The splits do not fit the options.
    """
    variant, names = benchmark.splits(config)
    if not names.train and not config.eval_only:
        raise ConfigError(
            f"{benchmark.name} has no training split; give --eval-only, or --train-split and"
            " --val-split"
        )
    test = benchmark.read(config, names.test, variant)
    if config.eval_only:
        # The training split defines the answer vocabulary or the classes. If its files are here,
        # they are compared with the checkpoint's; evaluation works without them.
        try:
            train = benchmark.read(config, names.train, variant) if names.train else None
        except AnnotationError:
            train = None
        return LoadedSplits(variant, train, None, test)
    train = benchmark.read(config, names.train, variant)
    val = benchmark.read(config, names.val, variant) if names.val else None
    # in training only: an evaluation cannot leak what it does not learn
    assert_disjoint(*(split for split in (train, val, test) if split is not None))
    return LoadedSplits(variant, train, val, test)
