#!/usr/bin/env python3
"""Clusters of patch tokens (the paper's Figure 12): k-means over the features of all frames.

    python tools/clusters.py --checkpoint runs/demo/train --video clip.mp4 --groups 4 --out clusters
    python tools/clusters.py --checkpoint runs/a --compare runs/b --video clip.mp4

Writes clusters.png and clusters.html. Same colour = same cluster in all frames. The features are
those of the joint pass with --text, after the last block and the final norm and before the mean
over frames, scaled to unit length; each is drawn where its patch came from, regardless of rolls.
--fine 4 reads each frame 16 times, shifted by quarters of a patch, for a map four times as fine in
both directions, which small models with 4 x 4 patches need. With --compare the clusters of a second
model are drawn below; they are computed independently and take the colours of the first model's
clusters that they overlap most.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.common.command_line import parse, run_command
from allinone.common.errors import InputError
from allinone.common.validation import COUNT, require
from allinone.tools.inspection.options import FigureOptions, InspectionOptions

if TYPE_CHECKING:
    from allinone.tools.inspection.figure import Section


@dataclass(frozen=True, kw_only=True)
class ClusterOptions(InspectionOptions, FigureOptions):
    """Options of tools/clusters.py."""

    compare: Path | None = None
    """A second model, drawn below the first."""
    names: tuple[str, ...] = ()
    """Titles of the models; their folders by default."""
    video: tuple[Path, ...]
    """Video files."""
    text: str = ""
    """Text of the joint pass; none by default."""
    groups: int = 4
    """Number of clusters, at least 1."""
    fine: int = 1
    """Read the clip N x N times, shifted by 1/N patch; must divide the patch size."""
    seed: int = 0
    """Seed of the k-means starts."""
    out: Path = Path("clusters")
    """Files to write, without extension."""

    def check(self) -> None:
        """Raise InputError for values that cannot be used."""
        require(self, COUNT, ("groups", "fine"))
        models = 1 if self.compare is None else 2
        if self.names and len(self.names) != models:
            raise InputError(f"{len(self.names)} --names for {models} model(s)")


def _sections(options: ClusterOptions) -> list[Section]:
    """One section per clip."""
    from allinone.tools.inspection.checkpoints import load_checkpoint
    from allinone.tools.inspection.cluster_figure import cluster_section
    from allinone.tools.inspection.clustering import cluster_patches, match_labels
    from allinone.tools.inspection.media_inputs import ClipReader

    folders = [(options.checkpoint, "--checkpoint")]
    if options.compare is not None:
        folders.append((options.compare, "--compare"))
    names = options.names or tuple(str(folder) for folder, _ in folders)
    models = [load_checkpoint(folder, options.device, flag) for folder, flag in folders]
    for loaded in models:
        print(f"weights: {loaded.what}", file=sys.stderr)
    sections = []
    for video in options.video:
        clips = [ClipReader(loaded.model.config, loaded.data)(video) for loaded in models]
        labels = [
            cluster_patches(loaded, clip, options.text, options.groups, options.seed, options.fine)
            for loaded, clip in zip(models, clips, strict=True)
        ]
        if len(labels) > 1:
            first, second = labels
            if first.shape != second.shape:
                raise InputError(
                    "--checkpoint and --compare must have equal numbers of frames and patches, got"
                    f" {list(first.shape)} and {list(second.shape)}"
                )
            matched = match_labels(second.ravel(), first.ravel(), options.groups)
            labels[1] = matched.reshape(first.shape)
        sections.append(
            cluster_section(clips[0], list(zip(names, labels, strict=True)), options.groups)
        )
    return sections


def _run(argv: Sequence[str]) -> None:
    options = parse(ClusterOptions, argv, prog="tools/clusters.py", description=__doc__ or "")
    options.check()
    from allinone.tools.inspection.cluster_figure import cluster_figure

    text = (
        f"text of the joint pass: “{options.text}”" if options.text else "joint pass without text"
    )
    fine = options.fine
    finer = f"each frame read {fine**2} times, shifted by 1/{fine} patch; " if fine > 1 else ""
    source = f"{finer}{text}; k-means, seed {options.seed}"
    figure = cluster_figure(_sections(options), source)
    for path in figure.save(options.out, options.formats):
        print(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    return run_command(lambda: _run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
