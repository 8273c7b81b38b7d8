"""The figures of a pre-training report: loss curves, retrieval examples, masked words."""

from __future__ import annotations

import functools
import itertools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np
from PIL import Image, ImageOps

from allinone.common.atomic_io import atomic_path
from allinone.common.formatting import percent_text, shortened
from allinone.common.html import BORDER, CORRECT, GRID, INK, MUTED
from allinone.pretrain.objectives import registry

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")

_OBJECTIVE_COLOURS = ("#0969da", "#bc4c00", "#8250df", "#0a7d83", "#bf3989", "#7d6500")
"""One per row of the figure of losses; none is the green of correct items."""
_BAR_COLOUR = "#8c959f"
_BORDER_PX = 4

History = Sequence[Mapping[str, Any]]
"""Rows of a run's history.jsonl."""


@dataclass(frozen=True)
class RankedClip:
    """A clip that was found for a caption."""

    frames: np.ndarray
    """uint8 [T, H, W, 3]"""
    caption: str
    """Its own caption."""
    rank: int
    """1 is best."""
    correct: bool
    """Whether it is the clip of the caption that was searched."""


@dataclass(frozen=True)
class RetrievalExample:
    """A caption with the clips that rank first for it, and its own clip if that ranks lower."""

    caption: str
    clips: Sequence[RankedClip]
    """Best first."""

    @property
    def rank(self) -> int:
        """1-based rank of the caption's own clip."""
        return next(clip.rank for clip in self.clips if clip.correct)


@dataclass(frozen=True)
class WordBar:
    """One word of a MaskedWord, as pictures and pages show it."""

    label: str
    probability: float
    correct: bool

    @property
    def percent(self) -> str:
        """The probability as text, such as 41 % or 0.3 %."""
        return percent_text(self.probability)


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
    rank: int
    """1-based rank of the masked word among all word pieces."""
    probability: float
    """Of the masked word."""

    @property
    def bars(self) -> list[WordBar]:
        """The guesses, followed by the masked word if it is not among them."""
        bars = [
            # by rank: two word pieces may be the same text
            WordBar(word, probability, number == self.rank)
            for number, (word, probability) in enumerate(self.guesses, 1)
        ]
        if self.rank > len(bars):
            bars.append(WordBar(f"{self.truth} (rank {self.rank:,})", self.probability, True))
        return bars


def clip_image(frames: np.ndarray, border: str = "white") -> Image.Image:
    """Frames [T, H, W, 3] side by side with a border of the given colour."""
    image = Image.fromarray(np.concatenate(list(frames), axis=1))
    return ImageOps.expand(image, _BORDER_PX, border)


def ranked_image(clip: RankedClip) -> Image.Image:
    """A clip that was found; the correct one has a green border."""
    return clip_image(clip.frames, CORRECT if clip.correct else BORDER)


@dataclass(frozen=True)
class LossPanel:
    """What the figure of losses shows of one objective."""

    title: str
    loss: str
    """Metric of the history."""
    accuracy: str | None
    """Metric of the history, between 0 and 1; None if there is none."""
    held_out: str | None = None
    """Score of the evaluations, in percent, without the name of the set; None for images."""


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
                panels.append(
                    LossPanel(
                        f"{objective.title}{suffix}",
                        loss,
                        accuracy if accuracy in metrics else None,
                        None if prefix else objective.held_out_metric,
                    )
                )
    return panels


def held_out_series(history: History, score: str) -> dict[str, tuple[list[int], list[float]]]:
    """A score of the evaluations: set → (steps, percent).

    Args:
        history: Rows of history.jsonl.
        score: Without the name of the set, such as mlm_accuracy.
    """
    found: dict[str, tuple[list[int], list[float]]] = {}
    for row in history:
        for name, value in (row.get("evaluation") or {}).items():
            group, _, last = name.rpartition("/")
            if last == score and value is not None:
                steps, values = found.setdefault(group, ([], []))
                steps.append(row["step"])
                values.append(value)
    return found


def plot_losses(history: History, target: Path, chance: Mapping[str, float] | None = None) -> None:
    """Write a PNG with one row per objective: loss on the left, accuracy on the right.

    Args:
        history: Rows of history.jsonl.
        target: The PNG.
        chance: What guessing gives, drawn as a dashed line: a loss of the history → nats, a score
            of the evaluations with the name of the set → percent.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    panels, known = loss_panels(history), chance or {}
    rows = max(len(panels), 1)
    figure = Figure(figsize=(10, 0.4 + 2.1 * rows), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False, sharex=True)
    # strict=False: without a panel, one empty row is left
    for number, (pair, panel) in enumerate(zip(grid, panels, strict=False)):
        colour = _OBJECTIVE_COLOURS[number % len(_OBJECTIVE_COLOURS)]
        _plot_loss(pair[0], history, panel, colour, known.get(panel.loss))
        _plot_scores(pair[1], history, panel, colour, known)
        for axes in pair:
            axes.grid(color=GRID)
            axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("step")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    figure.align_ylabels(grid[:, 0])
    _save(figure, target, dpi=110)


def _plot_loss(
    axes: Axes, history: History, panel: LossPanel, colour: str, chance: float | None
) -> None:
    steps, losses = _series(history, panel.loss)
    axes.set_title(panel.title, loc="left", fontsize=11, fontweight="bold", color=INK)
    # the loss of an objective without a chance level is no cross-entropy
    axes.set_ylabel("training loss" if chance is None else "training loss, nats")
    _plot_line(axes, steps, losses, color=colour)
    finite = [value for value in (*losses, chance) if value is not None]
    if min(finite, default=0) >= 0:
        axes.set_ylim(0, 1.2 * max(finite, default=1) or 1)
    if chance is not None:
        axes.axhline(chance, color=MUTED, linestyle="--", linewidth=1)
        axes.annotate(
            f"chance {chance:.2f}",
            (1, chance),
            xycoords=axes.get_yaxis_transform(),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            fontsize=9,
            color=MUTED,
        )


def _plot_scores(
    axes: Axes, history: History, panel: LossPanel, colour: str, chance: Mapping[str, float]
) -> None:
    """Accuracy on training batches as a line, scores on held-out clips as points."""
    held_out = held_out_series(history, panel.held_out) if panel.held_out else {}
    if panel.accuracy is None and not held_out:
        axes.set_visible(False)
        return
    if panel.accuracy is not None:
        steps, accuracies = _series(history, panel.accuracy)
        percent = [100 * value for value in accuracies]
        _plot_line(axes, steps, percent, color=colour, label="training accuracy")
    score = (panel.held_out or "").rpartition("_")[2]
    levels = {}
    for (name, (steps, values)), marker in zip(held_out.items(), itertools.cycle("os^Dv")):
        label = f"held-out {score}, {name}"
        (points,) = axes.plot(steps, values, marker, color=colour, label=label, zorder=3)
        points.set(markeredgecolor=INK, clip_on=False)
        if (level := chance.get(f"{name}/{panel.held_out}")) is not None:
            levels[round(level, 1)] = level
    for shown, level in levels.items():
        label = f"held-out chance, {shown:g} %"
        axes.axhline(level, color=MUTED, linestyle="--", linewidth=1, label=label)
    axes.set_ylabel(f"accuracy and {score}, %" if score.startswith("R@") else "accuracy, %")
    axes.set_ylim(0, 104)  # markers at 100 % are not cut
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.05), frameon=False, fontsize=9)


def _plot_line(axes: Axes, steps: Sequence[int], values: Sequence[float], **style: Any) -> None:
    # a line through one point shows nothing
    axes.plot(steps, values, "-" if len(steps) > 1 else ".", linewidth=1.8, **style)


def _series(history: History, name: str) -> tuple[list[int], list[float]]:
    rows = [row for row in history if row.get("metrics", {}).get(name) is not None]
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
    """Write a PNG with a row per caption: its best clips from left to right, then its own clip if
    that ranks lower; rank and caption below each, the correct one in green."""
    from matplotlib.figure import Figure

    columns = max(len(example.clips) for example in examples)
    height = 0.1 + 1.66 * len(examples)
    figure = Figure(figsize=(2.05 * columns, height))
    # inches: the first caption above, three lines of text below
    top, bottom = 1 - 0.3 / height, 0.6 / height
    figure.subplots_adjust(left=0.006, right=0.994, top=top, bottom=bottom, wspace=0.05, hspace=1.2)
    grid = figure.subplots(len(examples), columns, squeeze=False)
    for row, example in zip(grid, examples, strict=True):
        for axes in row:
            axes.axis("off")
        for axes, clip in zip(row, example.clips, strict=False):
            axes.imshow(ranked_image(clip))
            colour, weight = (CORRECT, "bold") if clip.correct else (MUTED, "normal")
            # characters that fit below a picture; bold ones are wider
            text, width = f"{clip.rank}. {clip.caption}", 23 if clip.correct else 25
            lines = textwrap.wrap(text, width, max_lines=3, placeholder=" …")
            style = {"fontsize": 9, "color": colour, "fontweight": weight, "linespacing": 1.1}
            place = axes.transAxes
            axes.text(0, -0.06, "\n".join(lines), va="top", transform=place, **style)
        title = f"“{shortened(example.caption)}”: correct clip at rank {example.rank}"
        row[0].set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=INK)
    _save(figure, target, dpi=100)


@_plain_text
def plot_masked_words(examples: Sequence[MaskedWord], target: Path) -> None:
    """Write a PNG with a row per masked word: the clip, the sentence with its gap, and bars for the
    top guesses and the masked word."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.8 * len(examples)))
    figure.subplots_adjust(left=0.01, right=0.99, top=0.965, bottom=0.01, wspace=0.02, hspace=0.45)
    grid = figure.subplots(len(examples), 2, squeeze=False, width_ratios=(1.1, 1))
    for (left, right), example in zip(grid, examples, strict=True):
        left.imshow(clip_image(example.frames))
        left.set_anchor("W")
        left.axis("off")
        # the nearest words on both sides
        before, after = shortened(example.before[::-1])[::-1], shortened(example.after)
        sentence = f"{before} [____] {after}".strip()
        left.set_title(sentence, loc="left", fontsize=10, fontweight="bold", color=INK)
        _plot_guesses(right, example)
    _save(figure, target, dpi=100)


def _plot_guesses(axes: Axes, example: MaskedWord) -> None:
    """Bars on a pale track, so that a bar of nearly 0 % also shows where it is."""
    axes.axis("off")
    title = f"masked: {shortened(example.truth)}, rank {example.rank:,}"
    axes.set_title(title, loc="left", fontsize=9, color=MUTED)
    plot = axes.inset_axes((0.36, 0, 0.5, 1))
    plot.axis("off")
    plot.set_xlim(0, 1)
    plot.set_ylim(max(6, len(example.bars)) - 0.5, -0.5)  # best first
    for row, bar in enumerate(example.bars):
        plot.barh(row, 1, 0.62, color=GRID)
        plot.barh(row, bar.probability, 0.62, color=CORRECT if bar.correct else _BAR_COLOUR)
        style: dict[str, Any] = {"va": "center", "fontsize": 9}
        style["color"], style["fontweight"] = (CORRECT, "bold") if bar.correct else (INK, "normal")
        plot.text(-0.03, row, textwrap.shorten(bar.label, 24), ha="right", **style)
        plot.text(1.03, row, bar.percent, **style)


def _save(figure: Figure, target: Path, dpi: int) -> None:
    with atomic_path(target) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")
