"""A self-contained picture of a pre-trained model: loss curves, retrieval tables, gallery, masked
words. PNG files and one HTML page."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from allinone.common.atomic_io import atomic_path, write_atomic
from allinone.common.formatting import duration
from allinone.common.html import GRID, INK, RIGHT, WRONG, page, table_row

WAYS = {"text_to_video": "text → video", "video_to_text": "video → text"}


@dataclass(frozen=True)
class Query:
    """One row of the gallery: a caption, its top clips as frame strips, and where the right one
    ranks."""

    caption: str
    strips: Sequence[np.ndarray]
    """uint8 [T, H, W, 3] per clip, best first."""
    captions: Sequence[str]
    right: Sequence[bool]
    rank: int
    """1-based rank of the right clip."""


@dataclass(frozen=True)
class MaskedWord:
    """One masked word with the model's top guesses."""

    before: str
    after: str
    truth: str
    guesses: Sequence[tuple[str, float]]
    """(word piece, probability), best first."""
    strip: np.ndarray
    """uint8 [T, H, W, 3]"""


def loss_curves(history: Sequence[dict[str, Any]], target: Path) -> None:
    """One panel per objective: training loss over steps (left axis) and training accuracy in
    percent (right axis)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = [key.removesuffix("_loss") for key in _metric_names(history) if key.endswith("_loss")]
    titles = {"mlm": "masked words (MLM)", "vtm": "matching (VTM)", "vtc": "contrast (VTC)"}
    accuracies = {"mlm": "mlm_accuracy", "vtm": "vtm_accuracy", "vtc": "vtc_text_to_video_accuracy"}
    figure, axes = plt.subplots(
        1,
        max(len(names), 1),
        figsize=(4.2 * max(len(names), 1), 3.1),
        squeeze=False,
        layout="constrained",
    )
    for axis, name in zip(axes[0], names, strict=False):
        steps, losses = _series(history, f"{name}_loss")
        axis.plot(steps, losses, color="#0969da", linewidth=1.6)
        axis.set_title(titles.get(name, name), fontsize=11, color=INK)
        axis.set_xlabel("step")
        axis.set_ylabel("training loss", color="#0969da")
        axis.set_ylim(bottom=0)
        axis.grid(color=GRID)
        axis.spines[["top"]].set_visible(False)
        steps, accuracy = _series(history, accuracies.get(name, ""))
        if steps:
            twin = axis.twinx()
            twin.plot(
                steps,
                [100 * value for value in accuracy],
                color="#bf8700",
                linewidth=1.2,
                alpha=0.8,
            )
            twin.set_ylabel("training accuracy, %", color="#bf8700")
            twin.set_ylim(0, 100)
            twin.spines[["top"]].set_visible(False)
    with atomic_path(target) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def _metric_names(history: Sequence[dict[str, Any]]) -> list[str]:
    names: dict[str, None] = {}
    for row in history:
        names.update(dict.fromkeys(row.get("metrics", {})))
    return [name for name in names if "/" not in name]


def _series(history: Sequence[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    points = [
        (row["step"], row["metrics"][name]) for row in history if name in row.get("metrics", {})
    ]
    return [step for step, _ in points], [value for _, value in points]


def strip_image(frames: np.ndarray, frame: str | None = None, border: int = 4) -> Image.Image:
    """Frames [T, H, W, 3] side by side; a coloured frame around them when a colour is given."""
    picture = Image.fromarray(np.concatenate(list(frames), axis=1))
    canvas = Image.new(
        "RGB", (picture.width + 2 * border, picture.height + 2 * border), frame or "white"
    )
    canvas.paste(picture, (border, border))
    return canvas


def gallery_image(queries: Sequence[Query], target: Path) -> None:
    """The gallery as one PNG: a row per query, best clip left, the right one framed in green."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = max(len(query.strips) for query in queries)
    figure, axes = plt.subplots(
        len(queries), columns, figsize=(3.1 * columns, 1.62 * len(queries)), squeeze=False
    )
    figure.subplots_adjust(
        left=0.005, right=0.995, top=0.985, bottom=0.005, wspace=0.03, hspace=0.42
    )
    for row, query in zip(axes, queries, strict=True):
        for column, axis in enumerate(row):
            axis.axis("off")
            if column < len(query.strips):
                axis.imshow(
                    strip_image(query.strips[column], RIGHT if query.right[column] else WRONG)
                )
        row[0].set_title(
            f"“{query.caption}”   right clip: rank {query.rank}", loc="left", fontsize=10, color=INK
        )
    with atomic_path(target) as temporary:
        figure.savefig(temporary, dpi=90, format="png")
    plt.close(figure)


def masked_words_image(examples: Sequence[MaskedWord], target: Path) -> None:
    """Masked-word examples as one PNG: the clip, the sentence with its gap, and the top guesses as
    bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        len(examples), 2, figsize=(9.5, 1.55 * len(examples)), squeeze=False, width_ratios=(1.25, 1)
    )
    figure.subplots_adjust(left=0.01, right=0.97, top=0.965, bottom=0.01, wspace=0.28, hspace=0.5)
    for (left, right), example in zip(axes, examples, strict=True):
        left.imshow(strip_image(example.strip))
        left.axis("off")
        left.set_title(
            f"{example.before} [____] {example.after}".strip(), loc="left", fontsize=10, color=INK
        )
        words = [word for word, _ in example.guesses][::-1]
        chances = [100 * chance for _, chance in example.guesses][::-1]
        right.barh(
            words, chances, color=[RIGHT if word == example.truth else "#8c959f" for word in words]
        )
        right.set_xlim(0, 100)
        right.set_title(f"masked: {example.truth}", loc="left", fontsize=9, color=INK)
        right.tick_params(labelsize=8)
        right.set_xticks([])
        right.spines[["top", "right", "bottom"]].set_visible(False)
        for position, chance in enumerate(chances):
            right.text(chance + 1, position, f"{chance:.0f} %", va="center", fontsize=8, color=INK)
    with atomic_path(target) as temporary:
        figure.savefig(temporary, dpi=90, format="png")
    plt.close(figure)


def retrieval_rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """(split, direction, R@1, R@5, R@10, MdR) as text, chance beside each split."""
    rows = []
    for split, table in results.items():
        if not (isinstance(table, dict) and "text_to_video" in table):
            continue
        for way, title in [*WAYS.items(), ("chance", "chance")]:
            values = table[way]
            rows.append(
                (split, title, *(f"{values[key]:.1f}" for key in ("R@1", "R@5", "R@10", "MdR")))
            )
    return rows


def _data_uri(image: Image.Image | Path) -> str:
    if isinstance(image, Path):
        content, kind = image.read_bytes(), "png"
    else:
        buffer = BytesIO()
        image.save(buffer, "webp", quality=80)
        content, kind = buffer.getvalue(), "webp"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


_STYLE = """
td:nth-child(-n+2), th:nth-child(-n+2) { text-align: left } tr.chance { color: #6e7781 }
.query { margin: 1.1rem 0 } .query p { margin: 0 0 .3rem } .clips { display: grid; grid-template-columns: repeat(5, 1fr); gap: 6px }
figure { margin: 0 } figcaption { font-size: .72rem; color: #57606a; overflow-wrap: anywhere }
.right figcaption { color: #1a7f37; font-weight: 600 } .rank { color: #57606a; font-size: .85rem }
.word { display: grid; grid-template-columns: 300px 1fr; gap: 1rem; align-items: center; margin: .9rem 0 }
.gap { background: #fff8c5; border: 1px solid #d4a72c; border-radius: 4px; padding: 0 .4rem }
.bar { display: grid; grid-template-columns: 8rem 1fr; font-size: .82rem; align-items: center } .bar i { display: block; height: .7rem; background: #8c959f }
.bar.true i { background: #1a7f37 } .bar.true { font-weight: 600 }
"""


def _gallery_html(queries: Sequence[Query]) -> str:
    parts = []
    for query in queries:
        clips = "".join(
            f'<figure class="{"right" if right else ""}"><img alt="{html.escape(caption)}"'
            f' src="{_data_uri(strip_image(strip, RIGHT if right else WRONG))}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
            for strip, caption, right in zip(query.strips, query.captions, query.right, strict=True)
        )
        parts.append(
            f'<div class="query"><p><b>“{html.escape(query.caption)}”</b> <span class="rank">right'
            f' clip: rank {query.rank}</span></p><div class="clips">{clips}</div></div>'
        )
    return "".join(parts)


def _masked_html(examples: Sequence[MaskedWord]) -> str:
    parts = []
    for example in examples:
        bars = "".join(
            f'<div class="bar {"true" if word == example.truth else ""}"><span>{html.escape(word)}'
            f' {100 * chance:.0f} %</span><i style="width:{100 * chance:.1f}%"></i></div>'
            for word, chance in example.guesses
        )
        parts.append(
            '<div class="word"><img alt=""'
            f' src="{_data_uri(strip_image(example.strip))}"><div><p>{html.escape(example.before)}'
            f' <span class="gap" title="{html.escape(example.truth)}">?</span>'
            f' {html.escape(example.after)} <span class="rank">(masked:'
            f" {html.escape(example.truth)})</span></p>{bars}</div></div>"
        )
    return "".join(parts)


def write_report(
    folder: Path,
    results: dict[str, Any],
    history: Sequence[dict[str, Any]],
    gallery: Sequence[Query],
    masked: Sequence[MaskedWord],
    facts: Sequence[str],
) -> list[Path]:
    """Write results.json, three PNGs and report.html (needs no other file and no network); returns
    their paths, the page first."""
    folder.mkdir(parents=True, exist_ok=True)
    curves, pictures, words = (
        folder / "losses.png",
        folder / "gallery.png",
        folder / "masked_words.png",
    )
    loss_curves(history, curves)
    gallery_image(gallery, pictures)
    masked_words_image(masked, words)
    write_atomic(folder / "results.json", json.dumps(results, indent=1) + "\n")
    rows = "".join(
        table_row([html.escape(cell) for cell in row], css="chance" if row[1] == "chance" else "")
        for row in retrieval_rows(results)
    )
    seconds = ", ".join(f"{name} {duration(value)}" for name, value in results["seconds"].items())
    body = f"""<h1>What one transformer learned from {results["train_clips"]:,} clips</h1>
<p>{html.escape(seconds)} · masked words right on held-out clips {results["mlm_accuracy"]:.1f} % · pairs told right {results["vtm_accuracy"]:.1f} % (chance 50)</p>
<h2>Retrieval of held-out clips</h2>
<p>Each caption is compared with every clip of its split. R@K: percent of the captions whose own clip is among the first K. MdR: median rank (1 is best).
<b>val</b>: name and skin tone were seen in training, but never together. <b>val_unseen</b>: nothing of that name was seen.</p>
<table><tr><th>split</th><th>direction</th><th>R@1 %</th><th>R@5 %</th><th>R@10 %</th><th>MdR</th></tr>{rows}</table>
<h2>Losses</h2><img alt="training loss and accuracy over steps" src="{_data_uri(curves)}">
<h2>Gallery: caption → five best clips</h2><p>Each picture shows the three frames of a clip; the right clip is framed in green.</p>{_gallery_html(gallery)}
<h2>Masked words</h2><p>One word is hidden; the bars are the model's five best guesses from the rest of the sentence and the frames. Green: the hidden word.</p>
{_masked_html(masked)}
<h2>The run</h2><pre>{html.escape(chr(10).join(facts))}</pre>"""
    write_atomic(folder / "report.html", page("All-in-one: pre-training report", body, _STYLE))
    return [folder / "report.html", curves, pictures, words, folder / "results.json"]
