"""Runs a benchmark: read annotations, find media, train, select the best weights, evaluate."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from allinone.common.atomic_io import content_hash
from allinone.common.errors import ConfigError, DataError
from allinone.common.options import RunInput
from allinone.common.processes import forkserver_context
from allinone.common.run_lock import RunLock, claim
from allinone.data.fingerprint import files_fingerprint, tokenizer_fingerprint
from allinone.data.loading.bad_clips import MIN_CLIPS_SEEN
from allinone.engine import Trainer
from allinone.engine.callbacks.evaluation import OF_AVERAGE
from allinone.engine.checkpoint.best import Selection
from allinone.engine.checkpoint.weights import best_weights
from allinone.engine.distributed import launch
from allinone.engine.distributed.collectives import collective_timeout_s, run_on_rank0
from allinone.finetune.annotations.schema import Split
from allinone.finetune.benchmark import Benchmark, LoadedSplits, load_splits
from allinone.finetune.config import FinetuneConfig, resolve_data
from allinone.finetune.cost import run_activations, training_flops
from allinone.finetune.evaluation.evaluator import Evaluator, media_of, subset
from allinone.finetune.evaluation.results import EvaluationResult, chance_of
from allinone.finetune.final_evaluation import FinalEvaluation, evaluation_settings, provenance
from allinone.finetune.folds import MEAN, mean_of_folds
from allinone.finetune.inputs.clip_reader import MediaReader
from allinone.finetune.inputs.loader import TaskSource, TaskStream
from allinone.finetune.inputs.media_library import MediaLibrary
from allinone.finetune.task_model.layer_decay import layer_scale
from allinone.finetune.task_model.model import (
    TASK_HEAD,
    HeadSpec,
    TaskModel,
    build_model,
    check_fit,
    check_head,
    has_head,
)
from allinone.finetune.task_model.source import (
    SourceCheckpoint,
    read_source_checkpoint,
    task_config,
)
from allinone.finetune.tasks import task_class
from allinone.finetune.tasks.base import Task
from allinone.model import AllInOneConfig

log = logging.getLogger(__name__)

SELECT = "select"
"""Name of the score that selects the best weights, in history.jsonl and TensorBoard."""


class FinetuneJob:
    """One run of a benchmark: everything that can be checked before media are opened is checked by
    the constructor."""

    def __init__(self, benchmark: Benchmark, config: FinetuneConfig) -> None:
        self.benchmark = benchmark
        _, self.device = launch.start(
            config.train.device, collective_timeout_s(config.train.hang_timeout_s)
        )
        if config.loader.readers:
            forkserver_context()  # its imports run while this process reads annotations
        self.splits: LoadedSplits = load_splits(benchmark, config)
        kind = config.weights if config.eval_only else "raw"
        self.source: SourceCheckpoint = read_source_checkpoint(config.checkpoint, kind=kind)
        log.info("checkpoint: %s", self.source.what)
        data, line = resolve_data(
            config.loader,
            benchmark.config.loader,
            None if config.eval_only else config.out,
            self.source.data,
        )
        config = replace(config, loader=data)
        log.info("frames: %s", line)
        self.model_config: AllInOneConfig = task_config(
            self.source, config.size, config.model_overrides()
        )
        self.task: Task = task_class(benchmark.task)(config.task)
        self.task.media = config.media
        self.task.image_size = self.model_config.image_size
        self.task.setup(self.splits.train, self.source, eval_only=config.eval_only)
        self._check_head(config)
        self.library = MediaLibrary(
            config.media,
            config.cache,
            source=benchmark.archives,
            picture_rate=config.picture_rate,
            max_pixels=config.loader.max_pixels,
            workers=config.loader.readers * 2,
        )
        self.train_split: Split | None = None
        if not config.eval_only:
            assert self.splits.train is not None
            self.train_split = self.task.trainable(self.splits.train)
            config = config.with_steps(len(self.train_split.items))
        self.config = config

    def _check_head(self, config: FinetuneConfig) -> None:
        eval_only = config.eval_only
        spec = self.task.head_spec(zero_shot=eval_only and not self.source.task)
        if eval_only and spec.build and not has_head(self.source, spec):
            self.task.check_zero_shot(self.source)
        check_head(self.source, spec)
        if spec.frozen and config.layer_decay != 1:
            raise ConfigError(
                f"--layer-decay {config.layer_decay} has no effect on a frozen backbone; train all"
                " parameters with --probe full, or leave it out"
            )
        # before media are probed, which takes hours for a large benchmark
        check_fit(self.source, self.model_config, spec)

    def run(self) -> EvaluationResult:
        """Train (unless --eval-only), then evaluate with the best weights.

        Raises:
            ConfigError: Another process uses the folder.
        """
        locks: list[RunLock] = []
        run_on_rank0(lambda: locks.append(claim(self.config.out)))
        try:
            return self._run()
        finally:
            for lock in locks:
                lock.release()

    def _run(self) -> EvaluationResult:
        self._log_splits()
        self._prepare_media()
        if self.config.eval_only:
            return self._evaluate(self.source, trained_here=False)
        self._train()
        gc.collect()  # frees the engine's buffers, which form reference cycles
        best = best_weights(self.config.out, self.config.weights)
        return self._evaluate(read_source_checkpoint(best), trained_here=True)

    def _evaluate(self, source: SourceCheckpoint, *, trained_here: bool) -> EvaluationResult:
        evaluation = FinalEvaluation(
            self.benchmark,
            self.config,
            self.task,
            self.splits,
            self.model_config,
            self.library,
            self.device,
        )
        return evaluation.run(source, trained_here=trained_here)

    def _train(self) -> None:
        config, split, task = self.config, self.train_split, self.task
        assert split is not None
        spec = task.head_spec(zero_shot=False)
        model = build_model(self.source, self.model_config, spec, config.train.seed)
        model.config.task |= {
            "benchmark": self.benchmark.name,
            "variant": self.splits.variant,
            **provenance(config, self.source),
        }
        log.info("weights: %s", self.source.report)
        passes, data = task.backbone_passes(), self._training_data(split)
        flops = training_flops(
            passes,
            self.model_config,
            frozen=spec.frozen,
            text_tokens=data.text_tokens(config.train.micro_batch),
        )
        chance: dict[str, float] = {}
        selected = f"{OF_AVERAGE}{SELECT}" if config.weights == "ema" else SELECT
        Trainer(
            config.train,
            model=model,
            objective=task,
            data=data,
            run_config=config.as_json(self._inputs(spec)),
            evaluate=self._validation(chance),
            chance=chance,
            flops_per_sample=flops,
            activations=(
                None if spec.frozen else run_activations(passes, self.model_config, config.train)
            ),
            out=config.out,
            head_patterns=(TASK_HEAD,),
            head_lr_mult=config.head_lr_mult,
            lr_scale=layer_scale(config.layer_decay, self.model_config.num_hidden_layers),
            select=Selection(selected, config.patience) if self.splits.val else None,
        ).train()

    def _inputs(self, spec: HeadSpec) -> dict[str, RunInput]:
        """What a resumed run must find unchanged: rows of a head belong to labels, for example."""
        config, splits = self.config, self.splits
        named = {"train": splits.train, "val": splits.val, "test": splits.test}
        inputs = {
            f"annotations-{role}": RunInput(
                f"the annotations of split {split.name}",
                partial(files_fingerprint, map(Path, split.files), config.annotations),
                "annotations",
            )
            for role, split in named.items()
            if split is not None
        }
        labels = json.dumps(spec.metadata.get("labels", []), ensure_ascii=False).encode()
        sha256 = self.source.sha256
        return {
            **inputs,
            "labels": RunInput("the label list", lambda: {"labels": content_hash(labels)}),
            "tokenizer": RunInput("the tokenizer", tokenizer_fingerprint),
            "checkpoint": RunInput(
                f"--checkpoint {config.checkpoint}", lambda: {"weights": sha256}, "checkpoint"
            ),
        }

    def _training_data(self, split: Split) -> TaskStream:
        config = self.config
        clip = config.clip(self.model_config)
        source = TaskSource(
            f"{self.benchmark.name}/{split.name}",
            [item.id for item in split.items],
            self.task.examples(split),
            MediaReader(self.library, clip, config.loader),
            clip,
        )
        # ranks of one tensor-parallel group read the same clips: only the first logs bad ones
        repeats = launch.repeats(config.train.tensor_parallel)
        bad_clips = None if repeats else config.out / "bad_clips"
        return TaskStream(source, config.loader, seed=config.train.seed, bad_clips=bad_clips)

    def _validation(
        self, chance: dict[str, float]
    ) -> Callable[[nn.Module, torch.device], Mapping[str, float]] | None:
        """The evaluation of val; it fills `chance`: score → what guessing gives."""
        if self.splits.val is None:
            return None
        split = subset(self.splits.val, self.config.val_items)
        settings = evaluation_settings(self.config, self.model_config)
        settings = replace(settings, views=1, quiet=True)

        def validate(model: nn.Module, device: torch.device) -> Mapping[str, float]:
            assert isinstance(model, TaskModel)
            output = self.task.evaluate(
                model, Evaluator(model, self.library, settings, device), split
            )
            values = {f"val/{name}": score.value for name, score in output.scores.items()}
            guessed = chance_of(output)
            chance.update({f"val/{name}": value for name, value in guessed.items()})
            return {
                SELECT: self.task.select(output),
                **values,
                "val/missing": float(len(output.missing)),
            }

        return validate

    def _log_splits(self) -> None:
        splits = {
            "train": self.train_split,
            "validation": self.splits.val,
            "test": self.splits.test,
        }
        for role, split in splits.items():
            if split is not None:
                count, files = len(split.items), ", ".join(split.files)
                log.info("%s: %s, %s items from %s", role, split.name, f"{count:,}", files)
                for note in split.notes:
                    log.info("  %s", note)

    def _prepare_media(self) -> None:
        """Probe all media of the run; warn about unusable ones."""
        splits = [self.train_split, self.splits.val, self.splits.test]
        used = [split for split in splits if split is not None]
        media = [clip for split in used for clip in media_of(split)]
        self.library.prepare(media, quiet=self.config.train.json)
        for split in used:
            self._check_media(split)

    def _check_media(self, split: Split) -> None:
        """Warn about unusable media; DataError if they are too large a share of the training
        split."""
        reasons = {clip.id: self.library.reason(clip) for clip in media_of(split)}
        bad = {name: reason for name, reason in reasons.items() if reason}
        if not bad:
            return
        shown = "; ".join(f"{name}: {reason}" for name, reason in list(bad.items())[:3])
        count = f"{len(bad):,} of {len(reasons):,} media of {split.name}"
        log.warning("%s cannot be used (%s)", count, shown)
        limit = self.config.loader.max_bad_share
        if (
            split is self.train_split
            and len(reasons) >= MIN_CLIPS_SEEN
            and len(bad) > limit * len(reasons)
        ):
            raise DataError(
                f"{count} cannot be used, more than --max-bad-share {limit}: {shown}. Source:"
                f" {self.benchmark.archives}"
            )


def fine_tune(benchmark: Benchmark, config: FinetuneConfig) -> EvaluationResult:
    """Run one variant of a benchmark to its result, resuming what `config.out` holds.

    Raises:
        ConfigError: Options contradict each other, the checkpoint or the annotations.
        DataError: Media are missing, or too many of them are unusable.
    """
    try:
        job = FinetuneJob(benchmark, config)
    except ValueError as error:
        # During training a ValueError is a bug and keeps its traceback.
        raise ConfigError(str(error)) from error
    result = job.run()
    log.info(
        "next:\n  allinone report %s    # the result%s\n  tensorboard --logdir %s",
        config.out,
        ", right and wrong items" if benchmark.name == "own" else " next to the paper's",
        config.out,
    )
    return result


def run_benchmark(benchmark: Benchmark, config: FinetuneConfig) -> EvaluationResult:
    """Run a benchmark: all folds if it averages them and no single one was chosen."""
    if benchmark.averages_folds and config.variant in ("", MEAN):
        return mean_of_folds(benchmark, config, fine_tune)
    return fine_tune(benchmark, config)
