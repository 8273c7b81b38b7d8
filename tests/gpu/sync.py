"""Stage (c): between two logging steps the host does not wait for the device.

On a GPU, torch raises at a wait (`torch.cuda.set_sync_debug_mode`), and waits that it does not
know, those for streams, events and the device, are counted here. On every device a dispatch mode
counts the operators whose result the host needs: the analogue that also works on a CPU.
"""

from __future__ import annotations

import contextlib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch.utils._python_dispatch import TorchDispatchMode

from allinone.common.paths import ROOT
from allinone.engine.callbacks.base import Callback, Due
from allinone.engine.trainer import Trainer
from allinone.model.all_in_one import AllInOnePreTrainedModel
from tests.benchmarks.train_step import StepOptions, make_trainer
from tests.gpu.stage import CheckFn, Found, Settings, Skip

LOG_EVERY = 4
WATCHED = 2
"""Steps, all between two logging steps and after the first interval."""
WAITING = {
    "_local_scalar_dense": "item()",
    "nonzero": "nonzero()",
    "masked_select": "masked_select()",
    "_unique2": "unique()",
    "unique_consecutive": "unique_consecutive()",
    "equal": "equal()",
    "repeat_interleave.Tensor": "repeat_interleave(Tensor)",
}
"""Operators whose result decides something on the host."""


def checks(settings: Settings) -> dict[str, CheckFn]:
    """The checks of the stage, in order."""
    return {
        "operators that wait": lambda: operators(settings),
        "waits for streams, events and the device": lambda: explicit_waits(settings),
        "torch's sync debug mode": lambda: debug_mode(settings),
        "operators that wait, compiled": lambda: compiled_operators(settings),
        "explicit waits and sync debug mode, compiled": lambda: compiled_step(settings),
    }


def caller() -> str:
    """FILE:LINE FUNCTION of the innermost frame that is neither torch's nor of this module."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if "torch" not in path.parts and frame.filename != __file__ and path.name != "mock.py":
            shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else Path(*path.parts[-3:])
            return f"{shown}:{frame.lineno} {frame.name}"
    return "unknown"


class WaitCounter(TorchDispatchMode):
    """Counts operators that would make the host wait, by operator and caller.

    Args:
        on_gpu: Whether the training is on a GPU. On a CPU, numbers that become tensors count: which
            of them would be copied to a device is not known there.
    """

    def __init__(self, on_gpu: bool) -> None:
        super().__init__()
        self._on_gpu = on_gpu
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        what = _wait_of(func, args, kwargs or {}, result)
        if not what and not self._on_gpu and func is torch.ops.aten.lift_fresh.default:
            what = "tensor of a number"
        if what:
            self.counts[f"{what} at {caller()}"] += 1
        return result


def _wait_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> str:
    """What an operator waits for; "" if it does not wait.

    Args:
        func: The operator.
        args: Its arguments.
        kwargs: Its named arguments.
        result: What it returned.
    """
    packet, _, overload = str(func).removeprefix("aten.").partition(".")
    for name in (packet, f"{packet}.{overload}"):
        if name in WAITING:
            return WAITING[name]
    # the shape of a result that is selected by a boolean mask depends on the mask's content
    if packet in ("index", "index_put_", "index_put") and any(
        isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1] or ()
    ):
        return "boolean index"
    if packet in ("_to_copy", "copy_"):
        source = args[1] if packet == "copy_" else args[0]
        non_blocking = kwargs.get("non_blocking", packet == "copy_" and len(args) > 2 and args[2])
        if source.device.type != "cpu" and result.device.type == "cpu":
            return "copy to the host"
        # from pageable memory the copy is complete when the call returns
        if source.device.type == "cpu" and result.device.type != "cpu" and not non_blocking:
            return "copy from the host"
    return ""


class Watch(Callback):
    """Enters a context for the steps between two logging steps.

    Args:
        enter: Makes the context.
        after: Step after which the context is entered.
        count: Number of steps in it.
    """

    def __init__(
        self,
        enter: Callable[[], contextlib.AbstractContextManager[Any]],
        after: int = LOG_EVERY,
        count: int = WATCHED,
    ) -> None:
        self._enter, self._after, self._count = enter, after, count
        self._stack = contextlib.ExitStack()
        self.steps = 0

    def on_step_end(self, trainer: Trainer, due: Due) -> None:
        if trainer.step == self._after:
            self._stack.enter_context(self._enter())
        elif trainer.step == self._after + self._count:
            self._stack.close()
            self.steps = self._count

    def on_close(self, trainer: Trainer, error: BaseException | None) -> None:
        self._stack.close()


def _train(
    settings: Settings, enter: Callable[[], Any], name: str, size: str = "", compiled: bool = False
) -> None:
    """Train, with a context around the steps between two logging steps.

    Args:
        settings: Micro-batch and device.
        enter: Makes the context.
        name: Folder of the run.
        size: Of the model; default: all sizes run the same operators, and a small one starts
            sooner.
        compiled: With compiled blocks.
    """
    options = StepOptions(
        size=size or ("tiny" if settings.on_gpu else settings.size),
        micro_batch=settings.micro_batch,
        steps=LOG_EVERY + WATCHED + 1,
        log_every=LOG_EVERY,
        ds_config="zero1_bf16",
        # compiled, the graphs are those of the speed stage, which finds them in torch's cache
        wpa=0.0 if compiled else 0.1,
        compile=compiled,
        device=settings.device,
    )
    run = make_trainer(options, settings.folder / name, options.steps)
    watch = Watch(enter)
    run.callbacks = (watch, *run.callbacks)
    run.train()
    assert watch.steps == WATCHED


def _counted(counts: Counter[str], what: str) -> Found:
    listed = "; ".join(f"{number / WATCHED:g} x {name}" for name, number in counts.most_common(6))
    total = sum(counts.values()) / WATCHED
    text = f"{total:g} {what} per step" + (f": {listed}" if listed else "")
    return Found(text, {"per_step": total, "counts": dict(counts)}, problem=bool(counts))


def operators(settings: Settings) -> Found:
    """Count with the dispatch mode."""
    counter = WaitCounter(settings.on_gpu)
    _train(settings, lambda: counter, "operators")
    return _counted(counter.counts, "operators that wait")


def explicit_waits(settings: Settings) -> Found:
    """Count calls that torch's sync debug mode does not see."""
    if not settings.on_gpu:
        raise Skip("a CPU has no streams and events")
    counts: Counter[str] = Counter()
    _train(settings, lambda: counting_waits(counts), "explicit")
    return _counted(counts, "explicit waits")


@contextlib.contextmanager
def counting_waits(counts: Counter[str]) -> Iterator[None]:
    """Count waits for streams, events and the device by caller."""

    def counting(owner: Any, name: str) -> Any:
        original = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            counts[f"{getattr(owner, '__name__', owner)}.{name} at {caller()}"] += 1
            return original(*args, **kwargs)

        return mock.patch.object(owner, name, counted)

    with contextlib.ExitStack() as stack:
        for owner in (torch.cuda, torch.cuda.Stream, torch.cuda.Event):
            stack.enter_context(counting(owner, "synchronize"))
        yield


@contextlib.contextmanager
def strict() -> Iterator[None]:
    """Any wait that torch knows is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def debug_mode(settings: Settings) -> Found:
    """Train the steps in which any wait that torch knows is an error."""
    if not settings.on_gpu:
        raise Skip("torch.cuda.set_sync_debug_mode needs CUDA")
    return _strictly(lambda: _train(settings, strict, "debug-mode"))


def _strictly(train: Callable[[], None]) -> Found:
    """What training in torch's strict mode found."""
    try:
        train()
    except RuntimeError as error:
        if "synchronizing CUDA operation" not in str(error):
            raise
        traceback.print_exc()
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if "torch" not in Path(frame.filename).parts]
        where = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "unknown"
        return Found(f"the host waits at {where}: {own[-1].line if own else ''}", problem=True)
    return Found(f"{WATCHED} steps without a wait")


class GraphScan:
    """A compiler that looks for operators that wait in every graph, and then runs it as it is."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.graphs = self.operators = self.runs = 0

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Let the model's blocks be compiled by this."""
        original = AllInOnePreTrainedModel.compile_blocks
        backend = aot_autograd(fw_compiler=self._compile, bw_compiler=self._compile)

        def compile_blocks(model: AllInOnePreTrainedModel, **options: Any) -> None:
            original(model, **{**options, "backend": backend})

        with mock.patch.object(AllInOnePreTrainedModel, "compile_blocks", compile_blocks):
            yield

    def _compile(self, graph: fx.GraphModule, inputs: Any) -> Any:
        self.graphs += 1
        for node in graph.graph.nodes:
            if node.op == "call_function":
                self.operators += 1
                packet, _, overload = str(node.target).removeprefix("aten.").partition(".")
                for name in (packet, f"{packet}.{overload}"):
                    if name in WAITING:
                        self.counts[f"{WAITING[name]} in a graph"] += 1

        def run(*args: Any) -> Any:
            self.runs += 1
            return graph(*args)

        return make_boxed_func(run)


def compiled_operators(settings: Settings) -> Found:
    """Look for operators that wait in the graphs of the compiled blocks.

    A dispatch mode does not see them: torch runs no graph inside of one.
    """
    scan, runs = GraphScan(), 0

    @contextlib.contextmanager
    def watched() -> Iterator[None]:
        nonlocal runs
        before = scan.runs
        yield
        runs = scan.runs - before

    torch._dynamo.reset()
    with scan.compiling():
        _train(settings, watched, "graphs", compiled=True)
    torch._dynamo.reset()
    found = _counted(scan.counts, "operators that wait")
    text = f"{scan.graphs} graphs of {scan.operators} operators: {found.summary}"
    values = {**found.values, "graphs": scan.graphs, "runs_per_step": runs / WATCHED}
    return Found(text, values, problem=found.problem or not runs)


def compiled_step(settings: Settings) -> Found:
    """Train the compiled step as `debug_mode` does, and count as `explicit_waits` does."""
    if not settings.on_gpu:
        raise Skip("a CPU has no streams and events, and no sync debug mode")
    if not settings.compile:
        raise Skip("--compile is off")
    counts: Counter[str] = Counter()

    @contextlib.contextmanager
    def both() -> Iterator[None]:
        with counting_waits(counts), strict():
            yield

    found = _strictly(lambda: _train(settings, both, "compiled", size=settings.size, compiled=True))
    if found.problem:
        return found
    return _counted(counts, "explicit waits")
