#!/usr/bin/env python3
"""Token clusters as a picture (the paper's Figure 12): the patches of all frames grouped by k-means
over their features.

    python tools/clusters.py --checkpoint runs/demo/train --video clip.mp4 --groups 4 --out clusters
    python tools/clusters.py --checkpoint runs/a --compare runs/b --video clip.mp4

Writes clusters.png and clusters.html. Same colour = same cluster, over all frames. The features are
those of the joint pass with --text after the last block and the final norm, scaled to unit length,
before the mean over frames; each is drawn where its patch came from, however often it has rolled.
--fine 4 reads each frame 16 times, moved by quarters of a patch, for a map four times as fine in
both directions: what small models with 4 x 4 patches need. With --compare the clusters of a second
model are drawn below; they are its own, and take the colours of the first model's clusters that
they share most patches with.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from allinone.common.command import at_least_one
from allinone.common.command_line import run_command
from allinone.common.errors import InputError
from allinone.tools.inspection.checkpoints import LoadedModel, load_checkpoint
from allinone.tools.inspection.figure import (
    FORMATS,
    FRAME_COLOURS,
    PAPER,
    Section,
    Sheet,
    cells,
    column,
    label,
    legend,
    row,
    tinted,
)
from allinone.tools.inspection.media_inputs import ClipReader, InputClip, TextReader, upscaled
from allinone.tools.inspection.patch_attribution import fine_patch_features

STARTS, ROUNDS = 10, 100
LEAD = (
    "All patches of all frames are grouped by how alike their features are after the last block"
    " (k-means). Same colour = same cluster, in every frame: a colour that follows a thing from"
    " frame to frame says that its patches stay alike to the model while it moves. Mind that random"
    " weights, too, tell things apart by their colours: what a model has learned shows only beside"
    " another one (--compare)."
)


def kmeans(points: NDArray[np.float32], groups: int, seed: int) -> NDArray[np.int64]:
    """Cluster of each point [N, C], int64 [N], numbered by falling size. The best of STARTS runs of
    Lloyd's algorithm from k-means++ starts (Arthur and Vassilvitskii, SODA 2007). Equal seeds give
    equal clusters; InputError for more groups than points.
    """
    if groups > len(points):
        raise InputError(f"--groups {groups} is more than the {len(points)} patches of the clip")
    random = np.random.default_rng(seed)
    exact = points.astype(np.float64)
    best, best_cost = np.zeros(len(exact), dtype=np.int64), np.inf
    for _ in range(STARTS):
        centres = _spread(exact, groups, random)
        for _ in range(ROUNDS):
            labels = _distances(exact, centres).argmin(1)
            moved = np.stack(
                [
                    exact[labels == g].mean(0) if (labels == g).any() else centre
                    for g, centre in enumerate(centres)
                ]
            )
            if np.array_equal(moved, centres):
                break
            centres = moved
        distances = _distances(exact, centres)
        cost = distances.min(1).sum()
        if cost < best_cost:
            best, best_cost = distances.argmin(1), cost
    by_size = np.argsort(-np.bincount(best, minlength=groups), kind="stable")
    return np.argsort(by_size)[best]


def _distances(points: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((points[:, None] - centres[None]) ** 2).sum(-1)


def _spread(
    points: NDArray[np.float64], groups: int, random: np.random.Generator
) -> NDArray[np.float64]:
    chosen = [int(random.integers(len(points)))]
    for _ in range(1, groups):
        distance = _distances(points, points[chosen]).min(1)
        total = distance.sum()
        odds = distance / total if total > 0 else np.full(len(points), 1 / len(points))
        chosen.append(int(random.choice(len(points), p=odds)))
    return points[chosen]


def like(labels: NDArray[np.int64], others: NDArray[np.int64], groups: int) -> NDArray[np.int64]:
    """`labels` renumbered so that its clusters carry the numbers of those clusters of `others` that
    they share most points with."""
    shared = np.zeros((groups, groups), dtype=np.int64)
    np.add.at(shared, (labels, others), 1)
    new = np.full(groups, -1, dtype=np.int64)
    free = set(range(groups))
    for flat in np.argsort(-shared, axis=None, kind="stable"):
        own, other = divmod(int(flat), groups)
        if new[own] < 0 and other in free:
            new[own] = other
            free.remove(other)
    return new[labels]


def cluster(
    loaded: LoadedModel, clip: InputClip, text: str, groups: int, seed: int, fine: int = 1
) -> NDArray[np.int64]:
    """Cluster of every patch of a clip, int64 [T, fine^2 * P]."""
    features = fine_patch_features(
        loaded, clip, TextReader(loaded.model.config)(text), fine
    ).numpy()
    points = features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-8)
    return kmeans(points.reshape(-1, points.shape[-1]), groups, seed).reshape(features.shape[:2])


def painted(picture: Image.Image, labels: NDArray[np.int64]) -> Image.Image:
    """A frame with each patch tinted in the colour of its cluster [P], clusters parted by white
    lines."""
    grid = round(len(labels) ** 0.5)
    image = picture.copy()
    boxes = cells(picture.width, grid)
    for box, number in zip(boxes, labels, strict=True):
        image.paste(tinted(picture.crop(box), FRAME_COLOURS[number % len(FRAME_COLOURS)], 0.5), box)
    pen = ImageDraw.Draw(image)
    for index, (left, top, right, bottom) in enumerate(boxes):
        if (index + 1) % grid and labels[index] != labels[index + 1]:
            pen.line((right, top, right, bottom), fill=PAPER, width=3)
        if index + grid < len(labels) and labels[index] != labels[index + grid]:
            pen.line((left, bottom, right, bottom), fill=PAPER, width=3)
    return image


def draw(clip: InputClip, models: Sequence[tuple[str, NDArray[np.int64]]], groups: int) -> Section:
    """Frames above, below them the same frames with the clusters [T, cells] of each model,
    legend."""
    frames = len(clip.pictures)
    side = max(128, min(230, 900 // frames))
    pictures = [upscaled(picture, side) for picture in clip.pictures]
    titles = [label(f"frame {number}") for number in range(1, frames + 1)]
    lines = [
        row([column([title, picture], 4) for title, picture in zip(titles, pictures, strict=True)])
    ]
    for name, labels in models:
        painted_frames = row(
            [painted(picture, mine) for picture, mine in zip(pictures, labels, strict=True)]
        )
        lines.append(
            column([*([label(name, bold=True)] if len(models) > 1 else []), painted_frames], 4)
        )
    entries = [
        (FRAME_COLOURS[number % len(FRAME_COLOURS)], f"cluster {number + 1}")
        for number in range(groups)
    ]
    lines.append(legend(entries, lines[0].width))
    alt = "; ".join(
        f"clusters of {name}, a list per frame in raster order: {labels.tolist()}"
        for name, labels in models
    )
    return Section(clip.path.name, column(lines, 12), alt=alt)


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="tools/clusters.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        metavar="DIR",
        help="save_pretrained folder, checkpoint, or run",
    )
    parser.add_argument(
        "--compare", type=Path, metavar="DIR", help="a second model, drawn below the first"
    )
    parser.add_argument(
        "--names", nargs="+", metavar="NAME", help="titles of the models (default: their folders)"
    )
    parser.add_argument("--video", type=Path, nargs="+", required=True, metavar="FILE")
    parser.add_argument(
        "--text", default="", metavar="T", help="text of the joint pass (default: none)"
    )
    parser.add_argument(
        "--groups",
        type=at_least_one,
        default=4,
        metavar="K",
        help="clusters (default: %(default)s)",
    )
    parser.add_argument(
        "--fine",
        type=at_least_one,
        default=1,
        metavar="N",
        help="read the clip N x N times, moved by 1/N patch (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the k-means starts (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("clusters"),
        metavar="STEM",
        help="files to write, without ending (default: %(default)s)",
    )
    parser.add_argument(
        "--formats", nargs="+", choices=FORMATS, default=["png", "html"], help="default: png html"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s"
    )
    return parser


def _sections(args: argparse.Namespace) -> list[Section]:
    folders = [
        (args.checkpoint, "--checkpoint"),
        *([(args.compare, "--compare")] if args.compare else []),
    ]
    names = args.names or [str(folder) for folder, _ in folders]
    if len(names) != len(folders):
        raise InputError(f"{len(names)} --names for {len(folders)} model(s)")
    models = [load_checkpoint(folder, args.device, option) for folder, option in folders]
    sections = []
    for video in args.video:
        clips = [ClipReader(loaded.model.config, loaded.data)(video) for loaded in models]
        labels = [
            cluster(loaded, clip, args.text, args.groups, args.seed, args.fine)
            for loaded, clip in zip(models, clips, strict=True)
        ]
        if len(labels) > 1:
            if labels[0].shape != labels[1].shape:
                raise InputError(
                    "--checkpoint and --compare do not cut the clip into equally many frames and"
                    " patches"
                )
            labels[1] = like(labels[1].ravel(), labels[0].ravel(), args.groups).reshape(
                labels[0].shape
            )
        sections.append(draw(clips[0], list(zip(names, labels, strict=True)), args.groups))
    return sections


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code: 0 done, 2 an error that you can mend."""
    args = build_parser().parse_args(argv)

    def tool() -> None:
        text = f"text of the joint pass: “{args.text}”" if args.text else "joint pass without words"
        finer = (
            f"each frame read {args.fine**2} times, moved by 1/{args.fine} patch; "
            if args.fine > 1
            else ""
        )
        sheet = Sheet(
            "Which patches the model finds alike",
            LEAD,
            _sections(args),
            f"{finer}{text}; k-means, seed {args.seed}",
        )
        for path in sheet.save(args.out, args.formats):
            print(path)

    return run_command(tool)


if __name__ == "__main__":
    sys.exit(main())
