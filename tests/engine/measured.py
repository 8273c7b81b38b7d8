"""Measures what DeepSpeed's ranks hold and send: live tensors, allocator peaks, collectives.

`measure(cases)` forks the ranks of each case from this process (imported once; gloo over a file
store) and returns what every rank saw. The walker knows torch's garbage collector and where
weights, gradients and optimizer state are by definition; it does not know the formulas of
engine/planning/memory.py.
"""

from __future__ import annotations

import gc
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from allinone.data.loading.batch import Batch
from allinone.engine import Trainer
from allinone.engine.config import TrainConfig
from allinone.engine.ds_config import load
from allinone.engine.planning.estimate import BytesCounter
from allinone.model import AllInOneConfig, AllInOneForPreTraining
from allinone.pretrain.objectives import ObjectiveConfig, PretrainObjective
from allinone.tools.cluster.rank_server import RankProcesses

PLANNED = ("weights", "gradients", "optimizer", "buckets")
PARTS = ("weights", "gradients", "optimizer", "buckets", "other")
MASKED = 2
"""Masked tokens per clip of the made-up batches."""
OBJECTIVE = ObjectiveConfig(vtc=1.0, mlm_mean="micro-batch")  # every parameter gets a gradient


@dataclass(frozen=True)
class Case:
    """One configuration to measure."""

    stage: int
    precision: str
    world: int
    micro_batch: int = 2
    accumulation: int = 1
    bucket: int = 0
    """Elements of the reduce and prefetch buckets; 0: what ds_configs/ says."""
    checkpointing: bool = False
    model: dict[str, Any] = field(
        default_factory=lambda: {
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
        }
    )

    @property
    def name(self) -> str:
        """For tables."""
        extra = f", {self.accumulation} accumulated" * (
            self.accumulation > 1
        ) + f", bucket {self.bucket:,}" * bool(self.bucket)
        return f"ZeRO {self.stage} {self.precision}, {self.world} ranks{extra}"


@dataclass
class Seen:
    """One rank's measurements, bytes."""

    between: dict[str, int]
    backward: dict[str, int]
    """The moment of the backward pass with most bytes in weights, gradients, optimizer and
    buckets."""
    update: dict[str, int]
    """The same inside the optimizer step."""
    peak_backward: int
    """Highest allocator total of forward and backward above the level between steps."""
    peak_update: int
    collectives: dict[str, list[int]]
    """Collective → [calls, bytes handed to it] of one step, counted at torch.distributed."""
    logged: dict[str, list[int]]
    """The same by DeepSpeed's communication logger."""


def model_config(case: Case) -> AllInOneConfig:
    return AllInOneConfig.from_size("nano", **case.model)


class OneBatch:
    """The same synthetic micro-batch forever."""

    def __init__(self, config: AllInOneConfig) -> None:
        self.config = config

    def describe(self) -> str:
        return "made-up batches"

    def batches(
        self, *, first: int, rank: int, world: int, micro_batch: int, device: torch.device
    ) -> Iterator[Batch]:
        batch = make_batch(self.config, micro_batch)
        while True:
            yield batch


def make_batch(config: AllInOneConfig, clips: int, masked: int = MASKED) -> Batch:
    """Random pixels and words; `masked` tokens of each caption are masked."""
    length = config.max_text_len
    ids = torch.randint(5, config.vocab_size, (clips, length))
    positions = (torch.arange(clips)[:, None] * length + torch.arange(1, 1 + masked)).flatten()
    labels = torch.full_like(ids, -100)
    labels.view(-1)[positions] = ids.view(-1)[positions]
    pixels = torch.randn(clips, config.num_frames, 3, config.image_size, config.image_size)
    names = tuple(f"clip{number}" for number in range(clips))
    return Batch(
        pixels,
        ids,
        torch.ones_like(ids),
        ids,
        labels,
        positions,
        torch.zeros(clips, dtype=torch.long),
        ("made-up",),
        names,
        names,
        0,
    )


def _storages(tensors: Sequence[Any]) -> dict[int, int]:
    """Address → bytes of the storages behind some tensors."""
    found = {}
    for tensor in tensors:
        if (
            isinstance(tensor, Tensor)
            and tensor.device.type == "cpu"
            and tensor.layout == torch.strided
        ):
            storage = tensor.untyped_storage()
            if storage.nbytes():
                found[storage.data_ptr()] = storage.nbytes()
    return found


def _flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in _flat(item)]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _flat(item)]
    return []


def walk(
    engine: Any, base: torch.optim.Optimizer, background: dict[int, int], everything: bool = True
) -> dict[str, int]:
    """Bytes by part; a storage counts once, in the first part that holds it. `background` existed
    before the model. `everything` counts the tensors in no part as well, by a look at all Python
    objects."""
    wrapper, parameters = engine.optimizer, list(engine.module.parameters())
    tensors = (
        [item for item in gc.get_objects() if issubclass(type(item), Tensor)] if everything else []
    )
    masters = [p for group in base.param_groups for p in group["params"]]
    for name in (
        "single_partition_of_fp32_groups",
        "fp32_partitioned_groups_flat",
    ):  # DeepSpeed shows AdamW one group at a time
        masters += _flat(getattr(wrapper, name, None))
    gradients = [p.grad for p in [*parameters, *masters]] + _flat(
        [p.grad_accum for p in parameters if hasattr(p, "grad_accum")]
    )
    for name in (
        "averaged_gradients",
        "all_grad_tensors",
        "grads_in_partition",
        "grad_partitions_flat_buffer",
    ):
        gradients += _flat(getattr(wrapper, name, None))
    buckets = [bucket.buffer for bucket in getattr(wrapper, "ipg_buckets", {}).values()]
    parts = {
        "buckets": _flat(buckets),
        "weights": [*parameters, *_flat([getattr(p, "ds_tensor", None) for p in parameters])],
        "gradients": gradients,
        "optimizer": [*masters, *_flat([dict(state) for state in base.state.values()])],
        "other": tensors,
    }
    seen, found = set(background), {}
    for part, members in parts.items():
        storages = {
            address: size for address, size in _storages(members).items() if address not in seen
        }
        seen |= set(storages)
        found[part] = sum(storages.values())
    return {part: found[part] for part in PARTS}


class Traffic:
    """Counts what is handed to torch.distributed's collectives. Payload of a gather or scatter: the
    complete tensor, not a rank's share."""

    def __init__(self) -> None:
        self.counts: dict[str, list[int]] = {}
        for name in BytesCounter.NAMES:
            setattr(torch.distributed, name, self._wrap(name, getattr(torch.distributed, name)))

    def _wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            payload = [*args, *kwargs.values()]
            size = max(
                (
                    sum(t.numel() * t.element_size() for t in _flat(item))
                    for item in payload
                    if _flat(item)
                ),
                default=0,
            )
            calls, total = self.counts.get(name, [0, 0])
            self.counts[name] = [calls + 1, total + size]
            return function(*args, **kwargs)

        return counted


MARK = "the optimizer's step begins"


def allocator_peaks(profiler: Any) -> tuple[int, int]:
    """Highest totals of torch's CPU allocator, above the level at the start, before and after MARK:
    every tensor counts, also what only C++ holds."""
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    level, update, peaks = 0, 0, [0, 0]
    for event in events:
        if event.name() == MARK:
            update = 1
            peaks[1] = level
        elif event.name() == "[memory]":
            level += event.nbytes()
            peaks[update] = max(peaks[update], level)
    return peaks[0], peaks[1]


def run_rank(case: Case, rank: int, folder: Path) -> Seen:
    """One rank: three steps of the real loop, the last two measured."""
    gc.freeze()  # the walker's look at all objects leaves out what was there before the fork
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(case.world),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(case.world),
    )
    traffic = Traffic()
    store = torch.distributed.FileStore(str(folder / "store"), case.world)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=case.world)
    ds = load(f"zero{case.stage}_{case.precision}")
    if case.bucket:
        sizes = ("reduce_bucket_size", "allgather_bucket_size", "stage3_prefetch_bucket_size")
        ds["zero_optimization"].update(
            {name: case.bucket for name in sizes if name in ds["zero_optimization"]}
        )
    ds["comms_logger"] = {"enabled": True, "prof_all": True}
    path = folder / f"ds-{rank}.json"
    path.write_text(json.dumps(ds))
    background = _storages([item for item in gc.get_objects() if issubclass(type(item), Tensor)])
    config = TrainConfig(
        steps=10,
        global_batch=case.micro_batch * case.world * case.accumulation,
        micro_batch=case.micro_batch,
        ds_config=str(path),
        activation_checkpointing=case.checkpointing,
        device="cpu",
    )
    made = model_config(case)
    run = Trainer(
        config,
        model=AllInOneForPreTraining(made),
        objective=PretrainObjective(OBJECTIVE),
        data=OneBatch(made),  # type: ignore[arg-type]
        run_config={},
        out=folder / f"out-{rank}",
    )
    run._start_engine()
    batches = run.spec.data.batches(
        first=0, rank=rank, world=case.world, micro_batch=case.micro_batch, device=run.device
    )
    background |= _storages(_flat(list(vars(next(batches)).values())))
    run._train_step(
        run.by_step(batches)
    )  # the first step makes the moments and traces ZeRO 3's order
    run._train_step(run.by_step(batches))
    gc.collect()
    gc.disable()
    return _measure_step(run, batches, background, traffic)


def _measure_step(
    run: Trainer, batches: Iterator[Batch], background: dict[int, int], traffic: Traffic
) -> Seen:
    from deepspeed.comm import comm

    engine, base = run.engine.deepspeed, run.engine.optimizer
    between = walk(engine, base, background)
    traffic.counts.clear()
    comm.comms_logger.comms_dict.clear()
    moments: dict[str, list[dict[str, int]]] = {"backward": [], "update": []}

    def state(parts: dict[str, int]) -> int:
        return sum(parts[part] for part in PLANNED)

    handles = [
        p.register_post_accumulate_grad_hook(
            lambda _: moments["backward"].append(walk(engine, base, background, everything=False))
        )
        for p in engine.module.parameters()
    ]
    step, steps = base.step, moments["update"]

    def watched() -> None:
        steps.append(walk(engine, base, background))
        step()
        steps.append(walk(engine, base, background))

    base.step = watched  # type: ignore[method-assign]
    run._train_step(run.by_step(batches))
    counts = {name: list(value) for name, value in traffic.counts.items()}
    logged = {
        name: [
            sum(row[0] for row in sizes.values()),
            sum(size * row[0] for size, row in sizes.items()),
        ]
        for name, sizes in comm.comms_logger.comms_dict.items()
    }
    for handle in handles:
        handle.remove()
    base.step = step  # type: ignore[method-assign]
    backward, update = _peaks(run, batches)
    return Seen(
        between,
        max(moments["backward"], key=state),
        max(moments["update"], key=state),
        backward,
        update,
        counts,
        logged,
    )


def _peaks(run: Trainer, batches: Iterator[Batch]) -> tuple[int, int]:
    """Allocator peaks (of forward and backward, of the optimizer step), bytes above the level
    between steps."""
    engine = run.engine.deepspeed
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        for micro in range(run.accumulation):
            loss, _ = engine(next(batches))
            engine.backward(loss)
            del loss
            if micro == run.accumulation - 1:
                with torch.profiler.record_function(MARK):
                    pass
            engine.step()
    return allocator_peaks(profiler)


def _rank_main(case: Case, folder: Path, rank: int) -> int:
    (folder / f"rank-{rank}.json").write_text(json.dumps(asdict(run_rank(case, rank, folder))))
    return 0


def measure(case: Case) -> list[Seen]:
    """Every rank's measurements. Raises RuntimeError with the ranks' last lines where one fails."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = RankProcesses(
            case.world, Path(folder) / "logs", partial(_rank_main, case, Path(folder))
        )
        if any(ranks.finish(200)):
            raise RuntimeError(f"{case.name}: {ranks.output()[-3000:]}")
        return [
            Seen(**json.loads((Path(folder) / f"rank-{rank}.json").read_text()))
            for rank in range(case.world)
        ]
