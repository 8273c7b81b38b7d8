"""From a benchmark and its options to a result: read annotations, find media, train, choose the
best weights, evaluate."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import tyro
from torch import nn

from allinone.common.errors import ConfigError, DataError
from allinone.common.processes import forkserver_context
from allinone.data.loading.bad_clips import ENOUGH
from allinone.engine import Trainer, ds_config
from allinone.engine.checkpoint import manager
from allinone.engine.checkpoint.best import Selection
from allinone.engine.command_line import refuse_unknown
from allinone.engine.distributed import launch
from allinone.engine.distributed.collectives import collective_timeout_s, run_on_rank0
from allinone.engine.distributed.signals import StopSignals
from allinone.finetune.annotations.schema import Split
from allinone.finetune.benchmark import Benchmark, LoadedSplits, load_splits
from allinone.finetune.config import FinetuneConfig
from allinone.finetune.cost import run_activations, training_flops
from allinone.finetune.evaluation.cache import Cache
from allinone.finetune.evaluation.evaluator import (
    EvaluationSettings,
    Evaluator,
    shown_media,
    subset,
)
from allinone.finetune.evaluation.results import EvaluationResult, write_predictions, write_result
from allinone.finetune.evaluation.table import table
from allinone.finetune.inputs.clip_reader import Reader
from allinone.finetune.inputs.loader import Source, TaskStream
from allinone.finetune.inputs.media_library import MediaLibrary
from allinone.finetune.tasks.base import EvalOutput, Task
from allinone.finetune.tasks.task_model import (
    TASK_HEAD,
    SourceCheckpoint,
    TaskModel,
    build_model,
    check_head,
    has_head,
    read_source_checkpoint,
    size_name,
    task_config,
)
from allinone.model import AllInOneConfig

SELECT = "select"
"""Name of the number that the validation chooses by, in history and TensorBoard."""
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class FinetuneJob:
    """One run of a benchmark."""

    def __init__(self, benchmark: Benchmark, config: FinetuneConfig) -> None:
        self.benchmark, self.config = benchmark, config
        self.place, self.device = launch.start(
            config.train.device, collective_timeout_s(config.train.hang_timeout_s)
        )
        if config.loader.workers:
            forkserver_context()  # it imports while this process reads
        self.loaded: LoadedSplits = load_splits(benchmark, config)
        self.protocol: Task = benchmark.protocol(config.task)
        self.origin: SourceCheckpoint = read_source_checkpoint(config.checkpoint)
        self.model_config: AllInOneConfig = task_config(
            self.origin, config.size, config.model_overrides()
        )
        self.protocol.media, self.protocol.image_size = config.media, self.model_config.image_size
        self.protocol.learn(self.loaded.train, self.origin, eval_only=config.eval_only)
        self.library = MediaLibrary(
            config.media,
            config.cache,
            source=benchmark.archives,
            picture_rate=config.picture_rate,
            workers=config.loader.workers * 2,
        )
        plan = self.protocol.plan(zero_shot=config.eval_only and not self.origin.task)
        if config.eval_only and plan.make and not has_head(self.origin, plan):
            self.protocol.check_zero_shot(self.origin)
        check_head(self.origin, plan)
        self.train_split: Split | None = None
        if not config.eval_only:
            assert self.loaded.train is not None
            self.train_split = self.protocol.usable(self.loaded.train)
            self.config = config.with_steps(len(self.train_split.items))
        self._tell_splits()

    def run(self) -> EvaluationResult:
        """Train (unless --eval-only), then evaluate with the best weights."""
        used = (
            [self.loaded.test]
            if self.config.eval_only
            else [self.train_split, self.loaded.val, self.loaded.test]
        )
        media = [clip for split in used if split is not None for clip in shown_media(split)]
        self.library.prepare(media, quiet=self.config.train.json)
        for split in used:
            if split is not None:
                self._tell_missing(split)
        if self.config.eval_only:
            return self.evaluate(self.origin, alone=True)
        self._train()
        gc.collect()  # the engine's buffers
        best = manager.best_weights(self.config.out)
        return self.evaluate(read_source_checkpoint(best), alone=False)

    def _train(self) -> None:
        config, split = self.config, self.train_split
        assert split is not None
        plan = self.protocol.plan(zero_shot=False)
        model = build_model(self.origin, self.model_config, plan, config.train.seed)
        model.config.task |= {
            "benchmark": self.benchmark.name,
            "variant": self.loaded.variant,
            **self._pretrained_on(self.origin),
        }
        self.say(f"weights: {self.origin.report}")
        clip = config.clip(self.model_config)
        reader = Reader(self.library, clip, config.loader)
        ids = [item.id for item in split.items]
        source = Source(
            f"{self.benchmark.name}/{split.name}",
            ids,
            self.protocol.train_examples(split),
            reader,
            clip,
        )
        ledger = None if launch.repeats(config.train.tensor_parallel) else config.out / "bad_clips"
        data = TaskStream(source, config.loader, seed=config.train.seed, ledger=ledger)
        Trainer(
            config.train,
            model=model,
            objective=self.protocol,
            data=data,
            run_config=config.as_json(),
            evaluate=self._validation(),
            flops_per_sample=training_flops(
                self.protocol.passes(), self.model_config, frozen=plan.frozen
            ),
            activations=(
                None
                if plan.frozen
                else run_activations(self.protocol.passes(), self.model_config, config.train)
            ),
            out=config.out,
            head_patterns=(TASK_HEAD,),
            head_lr_mult=config.head_lr_mult,
            select=Selection(SELECT, config.patience) if self.loaded.val else None,
        ).train()

    def _validation(self) -> Callable[[nn.Module, torch.device], Mapping[str, float]] | None:
        if self.loaded.val is None:
            return None
        split = subset(self.loaded.val, self.config.val_items)

        def validate(model: nn.Module, device: torch.device) -> Mapping[str, float]:
            assert isinstance(model, TaskModel)
            evaluator = Evaluator(
                model, self.library, replace(self._settings(), views=1, quiet=True), device
            )
            outcome = self.protocol.evaluate(model, evaluator, split)
            values = {f"val/{name}": score.value for name, score in outcome.scores.items()}
            return {
                SELECT: self.protocol.select(outcome),
                **values,
                "val/missing": float(len(outcome.missing)),
            }

        return validate

    def _settings(self) -> EvaluationSettings:
        config = self.config
        return EvaluationSettings(
            config.clip(self.model_config),
            config.loader,
            config.views,
            config.eval_batch,
            config.train.json,
        )

    def evaluate(self, origin: SourceCheckpoint, *, alone: bool) -> EvaluationResult:
        """Score the test split with these weights, `alone` without training before; finished
        batches are taken from the cache in OUT/cache."""
        config, split = self.config, self.loaded.test
        plan = self.protocol.plan(zero_shot=alone and not origin.task)
        trained_on = "-".join(
            filter(None, (origin.task.get("benchmark"), origin.task.get("variant")))
        )
        zero_shot = alone and origin.task.get("benchmark") != self.benchmark.name
        if zero_shot and trained_on:
            self.say(
                f"warning: the checkpoint was fine-tuned on {trained_on}. If it saw videos of"
                f" {split.name}, the result is leaked"
            )
        model = build_model(origin, self.model_config, plan, config.train.seed)
        self.say(f"evaluation on {split.name}, weights: {origin.report}")
        precision = ds_config.precision(ds_config.load(config.train.ds_config))
        model = model.to(self.device, _DTYPES[precision]).eval()
        if hasattr(model, "task_head"):
            model.task_head.float()  # scores in half precision tie
        scope = self._scope(origin, plan.facts, precision, zero_shot)
        evaluator = Evaluator(
            model, self.library, self._settings(), self.device, Cache(config.out / "cache", scope)
        )
        signals = StopSignals()
        try:
            evaluator.watch(signals)
            outcome = self.protocol.evaluate(model, evaluator, split)
        finally:
            signals.restore()
        result = self._result(origin, model, outcome, zero_shot)
        run_on_rank0(lambda: self._publish(result, outcome))
        return result

    def _scope(
        self, origin: SourceCheckpoint, facts: Mapping[str, Any], precision: str, zero_shot: bool
    ) -> str:
        """What all cached results of this evaluation depend on beside the items."""
        config = self.config
        data = {
            name: getattr(config.loader, name)
            for name in ("eval_crop", "mean", "std", "frames_from", "decoder")
        }
        values = {
            "weights": origin.sha256,
            "model": {
                name: getattr(self.model_config, name)
                for name in sorted(AllInOneConfig.__annotations__)
            },
            "facts": facts,
            "precision": precision,
            "zero_shot": zero_shot,
            "seed": config.train.seed,
            "frames": config.frames,
            "views": config.views,
            "batch": config.eval_batch,
            "data": data,
            "device": self.device.type,
            "torch": torch.__version__,
        }
        return json.dumps(values, sort_keys=True, default=str)

    def _pretrained_on(self, origin: SourceCheckpoint) -> dict[str, str]:
        """What the checkpoint says, under what --pretraining says."""
        return origin.pretrained_on | (
            {"pretraining": self.config.pretraining} if self.config.pretraining else {}
        )

    def _result(
        self, origin: SourceCheckpoint, model: TaskModel, outcome: EvalOutput, zero_shot: bool
    ) -> EvaluationResult:
        config, split = self.config, self.loaded.test
        code, pretrained_on = manager.code_version(), self._pretrained_on(origin)
        pretraining = pretrained_on.pop("pretraining", "")
        return EvaluationResult(
            benchmark=self.benchmark.name,
            variant=self.loaded.variant,
            split=split.name,
            protocol=self.protocol.name,
            zero_shot=zero_shot,
            frames=config.frames,
            views=config.views,
            image_size=self.model_config.image_size,
            max_text_len=self.model_config.max_text_len,
            model_size=size_name(self.model_config),
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            checkpoint=str(origin.path),
            checkpoint_sha256=origin.sha256,
            items=len(split.items),
            scores=outcome.scores,
            pretraining=pretraining,
            missing=tuple(outcome.missing),
            details={
                **outcome.details,
                **pretrained_on,
                "roll": self.model_config.roll,
                "fine_tuned_on": {
                    name: origin.task[name]
                    for name in ("benchmark", "variant")
                    if name in origin.task
                },
                "notes": list(split.notes),
            },
            settings=config.as_json(),
            code=code.get("commit", code["version"]),
        )

    def _publish(self, result: EvaluationResult, outcome: EvalOutput) -> None:
        out = self.config.out
        path = write_result(out, result)
        write_predictions(out / "predictions" / f"{result.name}.jsonl", outcome.rows)
        if self.benchmark.submission:
            name, write = self.benchmark.submission
            write(out / "predictions" / name, self.loaded.test, outcome)
        self._to_tensorboard(result)
        self.say(table(result))
        self.say(f"{path}: written, with predictions/{result.name}.jsonl beside it")

    def _to_tensorboard(self, result: EvaluationResult) -> None:
        from torch.utils.tensorboard import SummaryWriter

        board = SummaryWriter(str(self.config.out / "tensorboard"))
        for name, score in result.scores.items():
            board.add_scalar(f"{result.split}/{name}", score.value, self.config.train.steps)
        board.close()

    def _tell_splits(self) -> None:
        loaded = self.loaded
        for role, split in (
            ("train", self.train_split),
            ("validation", loaded.val),
            ("test", loaded.test),
        ):
            if split is not None:
                self.say(
                    f"{role}: {split.name}, {len(split.items):,} items from"
                    f" {', '.join(split.files)}"
                )
                for note in split.notes:
                    self.say(f"  {note}")

    def _tell_missing(self, split: Split) -> None:
        """Name what cannot be shown; stop before training where it is too much of the training
        split."""
        reasons = {clip.id: self.library.reason(clip) for clip in shown_media(split)}
        bad = {name: reason for name, reason in reasons.items() if reason}
        if not bad:
            return
        shown = "; ".join(f"{name}: {reason}" for name, reason in list(bad.items())[:3])
        self.say(
            f"warning: {len(bad):,} of {len(reasons):,} media of {split.name} cannot be used"
            f" ({shown})"
        )
        limit = self.config.loader.max_bad_share
        if split is self.train_split and len(reasons) >= ENOUGH and len(bad) > limit * len(reasons):
            raise DataError(
                f"{len(bad):,} of {len(reasons):,} media to train on cannot be used, more than"
                f" --max-bad-share {limit}: {shown}. Source: {self.benchmark.archives}"
            )

    def say(self, text: str) -> None:
        """A message for people, from rank 0."""
        if self.place.rank == 0:
            print(text, file=sys.stderr if self.config.train.json else sys.stdout, flush=True)


def fine_tune(benchmark: Benchmark, config: FinetuneConfig) -> EvaluationResult:
    """Run a benchmark to its result, resuming what stands in `config.out`. Raises ConfigError for
    what a user can mend."""
    try:
        job = FinetuneJob(benchmark, config)
    except (
        ValueError
    ) as error:  # while training, a ValueError is a fault of the program and keeps its traceback
        raise ConfigError(str(error)) from error
    return job.run()


def parse(benchmark: Benchmark, argv: Sequence[str]) -> FinetuneConfig:
    """Options from the command line; exits with the valid names after an unknown one."""
    prog = f"finetune/{benchmark.name}.py"
    refuse_unknown(argv, benchmark.config, prog)
    return tyro.cli(
        FinetuneConfig,
        default=benchmark.config,
        args=list(argv),
        prog=prog,
        description=sys.modules["__main__"].__doc__,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )


def main(benchmark: Benchmark, argv: Sequence[str] | None = None) -> int:
    """Command line entry of a benchmark's script; returns the exit code."""
    config = parse(
        benchmark, launch.without_launcher_arguments(sys.argv[1:] if argv is None else argv)
    )
    return launch.main(lambda: fine_tune(benchmark, config))
