"""TensorBoard of a run: curves arranged as custom scalars, sample pictures, options as text.

The tags are those of engine/monitoring/scalars.py; docs/monitoring.md explains every curve.
TensorBoard gives each folder one colour. Therefore curves that share a chart are written into
folders of their own below the run's: one per objective, data set, or recall.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from allinone.common.options import flatten
from allinone.engine.monitoring.scalars import TRAIN

EVENTS = "events.out.tfevents.*"
Layout = dict[str, dict[str, list[Any]]]


def _exactly(*tags: str) -> list[Any]:
    return ["Multiline", [f"^{re.escape(tag)}$" for tag in tags]]


def layout(metrics: Iterable[str], mfu_convention: str) -> Layout:
    """The argument of add_custom_scalars: category → chart → tags.

    Charts of evaluation metrics are patterns, because validation sets are not known yet.

    Args:
        metrics: Names of the objectives' metrics, with /<data set> where there are several.
        mfu_convention: What an MFU of 1 means, for the title of that chart.
    """
    names = sorted(metrics)
    totals = [name for name in names if "/" not in name]
    losses = [name for name in totals if name.endswith("_loss")]
    others = [name for name in totals if not name.endswith("_loss")]
    charts: dict[str, list[Any]] = {
        "losses of the objectives": _exactly(*(f"train/{name}" for name in losses))
    }
    for name in sorted({name.split("/")[0] for name in names if "/" in name}):
        charts[f"{name} by data set"] = ["Multiline", [f"^train/{re.escape(name)}/"]]
    accuracies = [name for name in others if name.endswith("accuracy")]
    if accuracies:
        charts["accuracies on training samples (0 to 1)"] = _exactly(
            *(f"train/{name}" for name in accuracies)
        )
    for name in others:
        if name not in accuracies:
            charts[name] = _exactly(f"train/{name}")
    return {
        "1 Losses": charts,
        "2 Optimisation": {
            "learning rate": _exactly("run/lr"),
            "gradient norm before clipping": _exactly("run/grad_norm"),
            "share of steps with a norm above --clip-grad, or above 1 without clipping": _exactly(
                "run/clip_rate"
            ),
            "skipped steps, sum": _exactly("run/skipped_steps"),
        },
        "3 Speed": {
            "clips per second, all ranks": _exactly("run/samples_per_s"),
            f"MFU ({mfu_convention})": _exactly("run/mfu"),
            "share of time waiting for data, slowest rank": _exactly("run/data_wait"),
            "seconds per step": _exactly("run/step_s"),
            "own work per step of each rank, s: median, min, max": _margin("ranks/own_s"),
            "waiting for data per step of each rank, s: median, min, max": _margin("ranks/wait_s"),
            "memory of the largest rank, bytes": _exactly("run/memory_bytes"),
        },
        "4 Data": {"replaced clips, sum": _exactly("run/bad_clips")},
        "5 Evaluation": {
            "recall, text to video, %": ["Multiline", ["^eval/.*(text_to_video_|t2v/)R@"]],
            "recall, video to text, %": ["Multiline", ["^eval/.*(video_to_text_|v2t/)R@"]],
            "median rank, text to video": ["Multiline", ["^eval/.*(text_to_video_|t2v/)MdR$"]],
            "median rank, video to text": ["Multiline", ["^eval/.*(video_to_text_|v2t/)MdR$"]],
            "accuracy, %": ["Multiline", ["^eval/.*accuracy$"]],
            "items that could not be read": ["Multiline", ["^eval/.*missing$"]],
        },
    }


def _margin(tag: str) -> list[Any]:
    return ["Margin", [f"{tag}/median", f"{tag}/min", f"{tag}/max"]]


def sub_run(tag: str, losses: Collection[str]) -> str:
    """The folder below the run's for a tag; empty: the run's own.

    Args:
        tag: As in engine/monitoring/scalars.py.
        losses: Losses among the metrics of the same record, such as mlm_loss.
    """
    if tag.startswith(TRAIN):
        name, _, dataset = tag.removeprefix(TRAIN).partition("/")
        if dataset:
            return re.sub(r"[^\w-]", "_", dataset)  # one folder, whatever its name is
        objectives = (loss.removesuffix("_loss") for loss in losses)
        return next((one for one in objectives if name.startswith(f"{one}_")), "")
    if tag.startswith("eval/"):
        # R@5 is the line of the run's own folder: a seventh folder would be a pale grey
        scores = re.search(r"(?:(\w+)_accuracy|(R@(?!5$)\d+))$", tag)
        name = scores[1] or scores[2] if scores else ""
        # scores of the averaged weights (--ema) share the charts of the others
        return f"ema_{name}".strip("_") if tag.startswith("eval/ema/") else name
    return ""


def options_table(options: Mapping[str, Any]) -> str:
    """The run's options as a Markdown table."""
    rows = [f"| {name} | `{value}` |" for name, value in flatten(options).items()]
    return "\n".join(["| option | value |", "| --- | --- |", *rows])


def open_writer(folder: Path, **options: Any) -> Any:
    """A SummaryWriter whose file sorts after all others in `folder`.

    TensorBoard reads the files of a folder in the order of their names, which begin with the time
    of day, and a later file hides steps of earlier ones. After the clock was set back, or on a host
    whose clock is behind, the new file would be read first and the old one would hide its steps.

    Args:
        folder: Where to.
        options: Of SummaryWriter.
    """
    from tensorboard.summary.writer import event_file_writer
    from torch.utils.tensorboard import SummaryWriter

    names = (path.name.split(".")[3:4] for path in folder.glob(EVENTS))
    newest = max((int(stamp) for (stamp,) in names if stamp.isdecimal()), default=0)
    event_file_writer._AsyncWriterThread = _quiet(event_file_writer._AsyncWriterThread)
    clock = event_file_writer.time
    stamp = max(clock.time(), newest + 1)
    # the name is made when the file is opened, and takes no other argument
    event_file_writer.time = SimpleNamespace(time=lambda: stamp)
    try:
        return SummaryWriter(str(folder), **options)
    finally:
        event_file_writer.time = clock


def _quiet(thread: type[Any]) -> type[Any]:
    """TensorBoard's writing thread, without the traceback of a failed write.

    The error is raised again by the next call of the writer.
    """
    if getattr(thread, "quiet", False):
        return thread

    class Quiet(thread):
        quiet = True

        def run(self) -> None:
            with contextlib.suppress(OSError):
                super().run()

    return Quiet


class TensorBoardWriter:
    """Writes event files.

    Args:
        folder: Where to. Runs of earlier versions have all curves in it; of such a run, the curves
            of objectives continue in the folders below.
        start_step: Values of later steps, written by an earlier process, are hidden; of step 0,
            which has an evaluation, all values are.
        mfu_convention: What an MFU of 1 means.
    """

    def __init__(self, folder: Path, start_step: int, mfu_convention: str) -> None:
        self._folder = folder
        # steps after the checkpoint are trained again: without purge_step their curves would double
        self._purge_step = start_step + 1 if start_step else 0
        self._writers: dict[str, Any] = {}
        self._writer = self._of("")
        # also those that get no value for long: until then their last points would be wrong
        for path in sorted(folder.glob(f"*/{EVENTS}")):
            self._of(path.parent.name)
        self._convention = mfu_convention
        self._arranged: set[str] = set()

    def _of(self, name: str) -> Any:
        """The writer of a sub-run."""
        if name not in self._writers:
            self._writers[name] = open_writer(self._folder / name, purge_step=self._purge_step)
        return self._writers[name]

    def describe(self, options: Mapping[str, Any], facts: str, step: int) -> None:
        """Fill the text tab.

        Args:
            options: The run's options, nested.
            facts: Lines derived from them.
            step: Finished steps.
        """
        self._writer.add_text("run/options", options_table(options), step)
        self._writer.add_text(
            "run/derived", "\n".join(f"    {line}" for line in facts.splitlines()), step
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Extend the curves: tag → value."""
        names = {tag.removeprefix(TRAIN) for tag in values if tag.startswith(TRAIN)}
        if not names <= self._arranged:  # alternating co-training: some objectives appear later
            self._arranged |= names
            self._writer.add_custom_scalars(layout(self._arranged, self._convention))
        losses = [name for name in names if name.endswith("_loss")]
        used = {""}
        for tag, value in values.items():
            name = sub_run(tag, losses)
            used.add(name)
            self._of(name).add_scalar(tag, value, step)
        for name in sorted(used):
            self._of(name).flush()

    def pictures(self, step: int, pictures: Mapping[str, NDArray[np.uint8]]) -> None:
        """Add pictures: name → uint8 [H, W, 3]."""
        for name, picture in pictures.items():
            self._writer.add_image(name, picture, step, dataformats="HWC")
        self._writer.flush()

    def notes(self, step: int, name: str, lines: Sequence[str]) -> None:
        """Add text, such as the verdict of an anomaly report.

        Args:
            step: To which it belongs.
            name: The tag.
            lines: Shown as paragraphs.
        """
        self._writer.add_text(name, "\n\n".join(lines), step)
        self._writer.flush()

    def close(self, failed: bool = False) -> None:
        """Flush and close."""
        for writer in self._writers.values():
            writer.close()
