"""The final evaluation of a run: scores the test split and writes result, predictions and the file
for the test server."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import torch

from allinone.engine import ds_config
from allinone.engine.checkpoint import manager
from allinone.engine.distributed.collectives import run_on_rank0
from allinone.engine.distributed.signals import StopSignals
from allinone.engine.monitoring.tensorboard import open_writer
from allinone.finetune.benchmark import Benchmark, LoadedSplits
from allinone.finetune.config import FinetuneConfig
from allinone.finetune.evaluation import submissions
from allinone.finetune.evaluation.cache import Cache
from allinone.finetune.evaluation.evaluator import EvaluationSettings, Evaluator
from allinone.finetune.evaluation.official_counts import with_official_count
from allinone.finetune.evaluation.results import (
    PREDICTIONS,
    EvalOutput,
    EvaluationResult,
    write_predictions,
    write_result,
)
from allinone.finetune.evaluation.table import table
from allinone.finetune.inputs.media_library import MediaLibrary
from allinone.finetune.task_model.model import HeadSpec, TaskModel, build_model, has_head
from allinone.finetune.task_model.source import SourceCheckpoint, size_name
from allinone.finetune.tasks.base import Task
from allinone.model import AllInOneConfig

log = logging.getLogger(__name__)

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_CACHED_DATA_OPTIONS = ("eval_crop", "mean", "std", "frames_from", "decoder")
"""Options of the data path that change pixels in evaluation."""


def evaluation_settings(config: FinetuneConfig, model_config: AllInOneConfig) -> EvaluationSettings:
    """How a run's evaluation reads items."""
    return EvaluationSettings(
        config.clip(model_config),
        config.loader,
        config.views,
        config.eval_batch,
        quiet=config.train.json,
    )


def provenance(config: FinetuneConfig, source: SourceCheckpoint) -> dict[str, str]:
    """What the checkpoint records about its pre-training; --pretraining has precedence."""
    stated = {"pretraining": config.pretraining} if config.pretraining else {}
    return source.pretrained_on | stated


class FinalEvaluation:
    """Scores the test split of a run with given weights.

    Args:
        benchmark: What is evaluated.
        config: Options of the run.
        task: The benchmark's task, set up.
        splits: Its `test` is scored.
        model_config: Shape of the model, with the task's resolution, frames and text length.
        library: The media files.
        device: Where the model runs.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        config: FinetuneConfig,
        task: Task,
        splits: LoadedSplits,
        model_config: AllInOneConfig,
        library: MediaLibrary,
        device: torch.device,
    ) -> None:
        self.benchmark = benchmark
        self.config = config
        self.task = task
        self.splits = splits
        self.model_config = model_config
        self.library = library
        self.device = device

    def run(self, source: SourceCheckpoint, *, trained_here: bool) -> EvaluationResult:
        """Score the test split and write the result. Collective.

        Args:
            source: The weights. Batches evaluated before with the same weights and settings are
                taken from OUT/cache.
            trained_here: This run trained the weights, on this benchmark.
        """
        config, split = self.config, self.splits.test
        # a fine-tuned checkpoint brings its own head, a pre-trained one its VTM head
        spec = self.task.head_spec(zero_shot=not trained_here and not source.task)
        # a checkpoint of another benchmark counts as zero-shot, with a warning about leaks; files
        # of the original do not name theirs, so a head of this task counts as fine-tuned
        tuned = source.task.get("benchmark") == self.benchmark.name or (
            bool(source.heads) and has_head(source, spec)
        )
        zero_shot = not trained_here and not tuned
        self._warn_of_leak(source, zero_shot)
        model = build_model(source, self.model_config, spec, config.train.seed)
        log.info("evaluation on %s, weights: %s", split.name, source.report)
        precision = ds_config.precision(ds_config.load(config.train.ds_config))
        # in the precision of training: bf16 weights are those that were selected
        model = model.to(self.device, _DTYPES[precision]).eval()
        if hasattr(model, "task_head"):
            model.task_head.float()  # half precision would make scores tie
        scope = self._cache_scope(source, spec, precision, zero_shot)
        evaluator = Evaluator(
            model,
            self.library,
            evaluation_settings(config, self.model_config),
            self.device,
            Cache(config.out / "cache", scope),
        )
        signals = StopSignals()
        try:
            evaluator.watch(signals)
            output = self.task.evaluate(model, evaluator, split)
        finally:
            signals.restore()
        result = self._result(source, model, output, zero_shot)
        run_on_rank0(lambda: self._publish(result, output))
        return result

    def _warn_of_leak(self, source: SourceCheckpoint, zero_shot: bool) -> None:
        names = (source.task.get("benchmark"), source.task.get("variant"))
        trained_on = "-".join(filter(None, names))
        if zero_shot and trained_on:
            log.warning(
                "the checkpoint was fine-tuned on %s. If it saw videos of %s, the result is leaked",
                trained_on,
                self.splits.test.name,
            )

    def _cache_scope(
        self, source: SourceCheckpoint, spec: HeadSpec, precision: str, zero_shot: bool
    ) -> str:
        """Everything that cached batch results depend on, apart from the items. The keys are part
        of the cache format: with other keys, finished batches are not found again."""
        config = self.config
        values: dict[str, Any] = {
            "weights": source.sha256,
            "model": {
                name: getattr(self.model_config, name)
                for name in sorted(AllInOneConfig.__annotations__)
                # results from before the option existed stay valid
                if name != "distillation_token" or self.model_config.distillation_token
            },
            "facts": spec.metadata,
            "precision": precision,
            "zero_shot": zero_shot,
            "seed": config.train.seed,
            "frames": config.frames,
            "views": config.views,
            "batch": config.eval_batch,
            "data": {name: getattr(config.loader, name) for name in _CACHED_DATA_OPTIONS},
            "device": self.device.type,
            "torch": torch.__version__,
        }
        if config.loader.geometry != "crop":  # results of earlier versions stay valid
            values["data"]["geometry"] = config.loader.geometry
        if config.loader.augment_backend == "torch":  # results of DALI, the default, stay valid
            values["augmentation"] = "torch"
        return json.dumps(values, sort_keys=True, default=str)

    def _result(
        self, source: SourceCheckpoint, model: TaskModel, output: EvalOutput, zero_shot: bool
    ) -> EvaluationResult:
        config, split = self.config, self.splits.test
        code = manager.code_version()
        pretrained_on = provenance(config, source)
        pretraining = pretrained_on.pop("pretraining", "")
        result = EvaluationResult(
            benchmark=self.benchmark.name,
            variant=self.splits.variant,
            split=split.name,
            protocol=self.task.name,
            zero_shot=zero_shot,
            frames=config.frames,
            views=config.views,
            image_size=self.model_config.image_size,
            max_text_len=self.model_config.max_text_len,
            model_size=size_name(self.model_config),
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            checkpoint=str(source.path),
            checkpoint_sha256=source.sha256,
            items=len(split.items),
            scores=output.scores,
            pretraining=pretraining,
            missing=tuple(output.missing),
            details={
                **output.details,
                **pretrained_on,
                "roll": self.model_config.roll,
                "fine_tuned_on": _fine_tuned_on(source.task),
                "notes": list(split.notes),
            },
            settings=config.as_json(),
            code=code.get("commit", code["version"]),
        )
        return with_official_count(result)

    def _publish(self, result: EvaluationResult, output: EvalOutput) -> None:
        folder = self.config.out / PREDICTIONS
        # first the result: it renames the predictions of another setting
        path = write_result(self.config.out, result)
        write_predictions(folder / f"{result.name}.jsonl", output.rows)
        if self.benchmark.submission:
            name, write = submissions.WRITERS[self.benchmark.submission]
            write(folder / name, self.splits.test, output)
        self._write_tensorboard(result)
        log.info("%s", table(result))
        log.info("wrote %s and %s/%s.jsonl", path, PREDICTIONS, result.name)

    def _write_tensorboard(self, result: EvaluationResult) -> None:
        writer = open_writer(self.config.out / "tensorboard")
        for name, score in result.scores.items():
            writer.add_scalar(f"{result.split}/{name}", score.value, self.config.train.steps)
        writer.close()


def _fine_tuned_on(task: Mapping[str, Any]) -> dict[str, Any]:
    return {name: task[name] for name in ("benchmark", "variant") if name in task}
