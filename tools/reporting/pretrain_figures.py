"""The figures of a pre-training report: loss curves, retrieval examples, masked words."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np
from PIL import Image, ImageOps

from allinone.common.atomic_io import atomic_path
from allinone.common.formatting import shortened
from allinone.common.html import BORDER, CORRECT, GRID, INK
from allinone.pretrain.objectives import registry

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")

_LOSS_COLOUR, _ACCURACY_COLOUR, _BAR_COLOUR = "#0969da", "#bf8700", "#8c959f"
_BORDER_PX = 4

History = Sequence[Mapping[str, Any]]
"""Rows of a run's history.jsonl."""


@dataclass(frozen=True)
class RetrievalExample:
    """A caption with the clips that rank first for it."""

    caption: str
    frames: Sequence[np.ndarray]
    """uint8 [T, H, W, 3] per clip, best first."""
    captions: Sequence[str]
    """The clips' own captions."""
    correct: Sequence[bool]
    """Whether a clip is the caption's own."""
    rank: int
    """1-based rank of the caption's own clip."""


@dataclass(frozen=True)
class MaskedWord:
    """A masked word with the model's top guesses."""

    before: str
    after: str
    truth: str
    guesses: Sequence[tuple[str, float]]
    """(word piece, probability), best first."""
    frames: np.ndarray
    """uint8 [T, H, W, 3]"""


def clip_image(frames: np.ndarray, border: str = "white") -> Image.Image:
    """Frames [T, H, W, 3] side by side with a border of the given colour."""
    image = Image.fromarray(np.concatenate(list(frames), axis=1))
    return ImageOps.expand(image, _BORDER_PX, border)


def example_images(example: RetrievalExample) -> list[Image.Image]:
    """The clips of an example, best first; the correct one has a green border."""
    return [
        clip_image(frames, CORRECT if correct else BORDER)
        for frames, correct in zip(example.frames, example.correct, strict=True)
    ]


@dataclass(frozen=True)
class LossPanel:
    """What the figure of losses shows of one objective."""

    title: str
    loss: str
    """Metric of the history."""
    accuracy: str | None
    """Metric of the history, between 0 and 1; None if there is none."""


def loss_panels(history: History) -> list[LossPanel]:
    """The objectives of the registry whose losses are in the history.

    In co-training, the losses of the images follow those of the video; their metrics have the
    prefix `image_`.
    """
    metrics = {name for row in history for name in row.get("metrics", {})}
    panels = []
    for prefix, suffix in (("", ""), ("image_", ", images")):
        for objective in registry.OBJECTIVES:
            # an objective without a metric gives image_None, which no history holds
            loss = f"{prefix}{objective.loss_metric}"
            accuracy = f"{prefix}{objective.accuracy_metric}"
            if loss in metrics:
                title = f"{objective.title}{suffix}"
                panels.append(LossPanel(title, loss, accuracy if accuracy in metrics else None))
    return panels


def plot_losses(history: History, target: Path) -> None:
    """Write a PNG with one panel per objective: training loss (left axis) and accuracy in percent
    (right axis) over steps."""
    from matplotlib.figure import Figure

    panels = loss_panels(history)
    columns = max(len(panels), 1)
    figure = Figure(figsize=(4.2 * columns, 3.1), layout="constrained")
    # strict=False: without a panel, one empty subplot is left
    for axes, panel in zip(figure.subplots(1, columns, squeeze=False)[0], panels, strict=False):
        axes.set_title(panel.title, fontsize=11, color=INK)
        axes.plot(*_series(history, panel.loss), color=_LOSS_COLOUR, linewidth=1.6)
        axes.set_xlabel("step")
        axes.set_ylabel("training loss", color=_LOSS_COLOUR)
        axes.set_ylim(bottom=0)
        axes.grid(color=GRID)
        axes.spines[["top"]].set_visible(False)
        if panel.accuracy is not None:
            _plot_accuracy(axes, *_series(history, panel.accuracy))
    _save(figure, target, dpi=110)


def _plot_accuracy(axes: Axes, steps: Sequence[int], accuracies: Sequence[float]) -> None:
    twin = axes.twinx()
    percent = [100 * value for value in accuracies]
    twin.plot(steps, percent, color=_ACCURACY_COLOUR, linewidth=1.2, alpha=0.8)
    twin.set_ylabel("training accuracy, %", color=_ACCURACY_COLOUR)
    twin.set_ylim(0, 100)
    twin.spines[["top"]].set_visible(False)


def _series(history: History, name: str) -> tuple[list[int], list[float]]:
    rows = [row for row in history if name in row.get("metrics", {})]
    return [row["step"] for row in rows], [row["metrics"][name] for row in rows]


def _plain_text(plot: Callable[P, None]) -> Callable[P, None]:
    """Show texts as they are: matplotlib would read `$` in a caption as the start of a formula."""

    @functools.wraps(plot)
    def wrapped(*args: P.args, **options: P.kwargs) -> None:
        from matplotlib import rc_context

        with rc_context({"text.parse_math": False}):
            plot(*args, **options)

    return wrapped


@_plain_text
def plot_retrieval_examples(examples: Sequence[RetrievalExample], target: Path) -> None:
    """Write a PNG with a row per caption: its best clips from left to right, the correct one with a
    green border."""
    from matplotlib.figure import Figure

    columns = max(len(example.frames) for example in examples)
    figure = Figure(figsize=(3.1 * columns, 1.62 * len(examples)))
    figure.subplots_adjust(
        left=0.005, right=0.995, top=0.985, bottom=0.005, wspace=0.03, hspace=0.42
    )
    grid = figure.subplots(len(examples), columns, squeeze=False)
    for row, example in zip(grid, examples, strict=True):
        for axes in row:
            axes.axis("off")
        for axes, image in zip(row, example_images(example), strict=False):
            axes.imshow(image)
        title = f"“{shortened(example.caption)}”   correct clip: rank {example.rank}"
        row[0].set_title(title, loc="left", fontsize=10, color=INK)
    _save(figure, target, dpi=90)


@_plain_text
def plot_masked_words(examples: Sequence[MaskedWord], target: Path) -> None:
    """Write a PNG with a row per masked word: the clip, the sentence with its gap, and the top
    guesses as bars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 1.55 * len(examples)))
    figure.subplots_adjust(left=0.01, right=0.97, top=0.965, bottom=0.01, wspace=0.28, hspace=0.5)
    grid = figure.subplots(len(examples), 2, squeeze=False, width_ratios=(1.25, 1))
    for (left, right), example in zip(grid, examples, strict=True):
        left.imshow(clip_image(example.frames))
        left.axis("off")
        # the nearest words on both sides
        before, after = shortened(example.before[::-1])[::-1], shortened(example.after)
        sentence = f"{before} [____] {after}".strip()
        left.set_title(sentence, loc="left", fontsize=10, color=INK)
        _plot_guesses(right, example)
    _save(figure, target, dpi=90)


def _plot_guesses(axes: Axes, example: MaskedWord) -> None:
    words = [shortened(word) for word, _ in example.guesses]
    percent = [100 * probability for _, probability in example.guesses]
    colours = [CORRECT if word == example.truth else _BAR_COLOUR for word, _ in example.guesses]
    bars = axes.barh(words, percent, color=colours)
    axes.bar_label(bars, fmt="%.0f %%", padding=3, fontsize=8, color=INK)
    axes.invert_yaxis()  # best first
    axes.set_xlim(0, 100)
    axes.set_title(f"masked: {shortened(example.truth)}", loc="left", fontsize=9, color=INK)
    axes.tick_params(labelsize=8)
    axes.set_xticks([])
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _save(figure: Figure, target: Path, dpi: int) -> None:
    with atomic_path(target) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")
