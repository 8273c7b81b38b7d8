"""Model, optimizer and DeepSpeed engine of a run: one micro-batch at a time, save, load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from allinone.common.errors import ConfigError
from allinone.engine import deepspeed_adapter, ds_config
from allinone.engine.checkpoint import manager, reshard
from allinone.engine.checkpoint.weight_average import WeightAverage
from allinone.engine.compilation import compile_model
from allinone.engine.config import TrainConfig
from allinone.engine.distributed.topology import Layout
from allinone.engine.monitoring.stopwatch import DeviceTimer
from allinone.engine.objective import StepModule
from allinone.engine.optim.adamw import SkippingAdamW, outcome, parameter_groups
from allinone.engine.optim.schedule import learning_rate
from allinone.engine.planning.estimate import RunEstimate, plan_run
from allinone.engine.run_spec import RunSpec


class TrainingEngine:
    """Prepares the model for training and wraps it in DeepSpeed; collective.

    Args:
        config: Training options.
        spec: Model, objective and facts about them.
        ds: Resolved DeepSpeed options.
        layout: This rank's position.
        device: This rank's device.

    Raises:
        ConfigError: The model does not support an option.
    """

    def __init__(
        self,
        config: TrainConfig,
        spec: RunSpec,
        ds: dict[str, Any],
        layout: Layout,
        device: torch.device,
    ) -> None:
        import deepspeed

        self._config, self._layout, self._device = config, layout, device
        self.model = spec.model
        self.forward_timer = DeviceTimer(device)
        if device.type == "cpu":
            deepspeed_adapter.skip_inference_op_on_cpu()
        deepspeed_adapter.import_muon()
        deepspeed_adapter.drop_known_warnings()
        torch.manual_seed(config.seed)
        # of the complete model: tensor parallelism below leaves this rank with its shards
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())
        mpu = self._prepare_model(ds)
        module = StepModule(self.model, spec.objective).to(device)
        groups = parameter_groups(
            module, config.weight_decay, spec.head_patterns, spec.head_lr_mult, spec.lr_scale
        )
        self.lr_multiples = tuple(sorted({group["lr_mult"] for group in groups}))
        """Multiples of the learning rate of the parameter groups."""
        # before DeepSpeed, which replaces the parameters in these groups by its flat partitions
        self._state_layout = reshard.describe(self.model, groups, ds, layout)
        sizes = [[parameter.numel() for parameter in group["params"]] for group in groups]
        self.estimate = RunEstimate(
            plan_run(
                config,
                ds,
                sizes,
                layout,
                device,
                spec.flops_per_sample,
                spec.activations,
                # counting takes seconds, and rank 0 alone shows the plan
                spec.counted if layout.rank == 0 else None,
                self._compiled,
            )
        )
        self.optimizer = SkippingAdamW(groups, config, deciding=ds_config.clips_itself(ds))
        self.deepspeed, *_ = deepspeed.initialize(
            model=module,
            optimizer=self.optimizer,
            config=ds,
            mpu=mpu,
            dist_init_required=False,  # launch.start has set up the ranks, with our time-out
        )
        deepspeed_adapter.allow_minimum_loss_scale(self.deepspeed)
        deepspeed_adapter.order_on_device(self.deepspeed)
        self.estimate.count_bytes()
        self._writer = manager.StateWriter(self.deepspeed)
        self._set_norm_source(module, ds_config.stage(ds))
        self.average: WeightAverage | None = None
        """Moving average of the weights, with --ema."""
        if config.ema:
            self.average = WeightAverage(
                self.deepspeed.optimizer, self.model, config.ema, ds_config.stage(ds)
            )

    def _prepare_model(self, ds: Mapping[str, Any]) -> Any:
        """Recomputation, tensor parallelism, compilation; returns DeepSpeed's `mpu`."""
        config, mpu = self._config, None
        if config.activation_checkpointing:
            if not isinstance(self.model, PreTrainedModel):
                raise ConfigError(
                    f"--activation-checkpointing: {type(self.model).__name__} cannot recompute its"
                    " blocks; switch it off"
                )
            self.model.gradient_checkpointing_enable()
        if self._layout.tensor > 1:
            from allinone.engine.distributed import tensor_parallel

            # before the parameter groups and DeepSpeed, which keep references to the parameters
            tensor_parallel.divide(self.model, self._layout)
            mpu = tensor_parallel.DeepSpeedView
        self._compiled = compile_model(self.model, config, ds, self._device)
        return mpu

    def _set_norm_source(self, module: nn.Module, stage: int) -> None:
        """Where the optimizer gets the norm of the complete gradient, if it sees only a part."""
        # the optimizer sees one partition of one group per call; DeepSpeed has the sum over all
        if stage in (1, 2):
            self.optimizer.norm_of = lambda: deepspeed_adapter.partitioned_gradient_norm(
                self.deepspeed
            )
        # shards of other ranks are missing here, and replicated parameters must count only once
        elif stage == 0 and self._layout.tensor > 1:
            from allinone.engine.distributed import tensor_parallel

            parameters = list(module.parameters())
            self.optimizer.norm_of = lambda: tensor_parallel.gradient_norm(parameters, self._layout)

    @property
    def module(self) -> nn.Module:
        """The module that DeepSpeed drives."""
        return self.deepspeed.module

    def set_learning_rate(self, step: int) -> None:
        """Set every group's rate for a step (1, 2, ...)."""
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate(self._config, step) * group["lr_mult"]

    def train_micro_batch(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Forward, backward, and the optimizer step after the last micro-batch of a step.

        Returns:
            The loss and name → (sum, count), on the device.
        """
        with self.estimate.counting():
            with self.forward_timer.running():
                loss, metrics = self.deepspeed(batch)
            self.deepspeed.backward(loss)
            self.deepspeed.step()
        return loss, metrics

    def update_average(self) -> None:
        """Average the weights of the finished step, with --ema."""
        if self.average is not None:
            self.average.update()

    def outcome(self) -> tuple[Tensor, Tensor]:
        """(1 if the last step was skipped, norm of its gradient), scalars on the device."""
        return outcome(self.deepspeed, self.optimizer, self._device)

    def save(self, out: Path, facts: Mapping[str, Any]) -> Path:
        """Publish a checkpoint; collective. Raises CheckpointError on every rank."""
        return manager.save(
            self.deepspeed,
            self._writer,
            self.model,
            out,
            facts,
            self._state_layout,
            self.average,
        )

    def save_best(self, out: Path, facts: Mapping[str, Any]) -> Path:
        """Publish the weights as the run's best ones; collective."""
        return manager.save_best(self.model, self.deepspeed.optimizer, out, facts, self.average)

    def load(self, folder: Path) -> tuple[dict[str, Any], str]:
        """Restore a checkpoint; collective.

        Returns:
            Its run.json, and the changes of the layout in words.
        """
        found = manager.load(self.deepspeed, self.model, folder, self._state_layout)
        if self.average is not None:
            self.average.load(folder)
        return found
