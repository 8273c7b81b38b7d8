#!/usr/bin/env python3
"""Ask a pre-trained model about one video.

python tools/predict.py fill --checkpoint runs/demo/train --video a.mp4 --text "a [MASK] runs"
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.common.command_line import Choice, choose, run_command
from allinone.common.errors import InputError
from allinone.common.validation import COUNT, require
from allinone.tools.inspection.options import InspectionOptions, require_one


@dataclass(frozen=True, kw_only=True)
class PredictOptions(InspectionOptions):
    """Options of every task."""

    top: int = 5
    """Number of rows shown, at least 1."""
    json: bool = False
    """Print one line of JSON instead of a table."""

    def check(self) -> None:
        """Raise InputError for values that cannot be used."""
        require(self, COUNT, ("top",))


@dataclass(frozen=True, kw_only=True)
class RetrieveOptions(PredictOptions):
    """Options of retrieve. Give either --video or --videos."""

    video: Path | None = None
    """Rank the texts for this video."""
    videos: Path | None = None
    """Rank the videos in this folder and its subfolders for one --text."""
    text: tuple[str, ...] = ()
    """Texts."""
    texts: Path | None = None
    """File with one text per line."""
    by: Literal["auto", "contrast", "match"] = "auto"
    """contrast: VTC embeddings; match: VTM, one joint pass per pair; auto: contrast unless the run
    trained without VTC."""

    def check(self) -> None:
        """Raise InputError for values that cannot be used."""
        super().check()
        require_one(("--video", self.video), ("--videos", self.videos))


@dataclass(frozen=True, kw_only=True)
class MatchOptions(PredictOptions):
    """Options of match."""

    video: Path
    """Video file."""
    text: str
    """The text."""


@dataclass(frozen=True, kw_only=True)
class FillOptions(PredictOptions):
    """Options of fill."""

    video: Path
    """Video file."""
    text: str
    """The text, with [MASK] in place of each word to predict."""


@dataclass(frozen=True, kw_only=True)
class AnswerOptions(PredictOptions):
    """Options of answer."""

    video: Path
    """Video file."""
    question: str
    """The question; [MASK] is appended if it has none."""
    choices: tuple[str, ...] = ()
    """Rank these answers; without any, the model predicts one word."""


TASKS = {
    "retrieve": Choice("rank texts for a video, or the videos of a folder", RetrieveOptions),
    "match": Choice("score how well a video and a text match", MatchOptions),
    "fill": Choice("predict each [MASK] of a text", FillOptions),
    "answer": Choice("answer a question, with or without choices", AnswerOptions),
}


def _retrieve(predictor: Any, options: RetrieveOptions) -> dict[str, Any]:
    from allinone.tools.inspection.media_inputs import read_lines

    texts = list(options.text)
    if options.texts is not None:
        texts += read_lines(options.texts, "--texts")
    if not texts:
        raise InputError("give the texts to rank: --text T [T …] or --texts FILE (one per line)")
    if options.video is not None:
        return predictor.rank_texts(options.video, texts, options.by, options.top)
    if len(texts) != 1:
        raise InputError(
            f"--videos ranks clips for one text, but {len(texts)} were given; give one --text"
        )
    return predictor.rank_videos(options.videos, texts[0], options.by, options.top)


def _run(argv: Sequence[str]) -> None:
    name, options = choose(
        TASKS, argv, prog="tools/predict.py", kind="task", description=__doc__ or ""
    )
    options.check()
    from allinone.tools.inspection.checkpoints import load_checkpoint
    from allinone.tools.inspection.predictor import Predictor, as_text

    predictor = Predictor(load_checkpoint(options.checkpoint, options.device))
    if name == "retrieve":
        result = _retrieve(predictor, options)
    elif name == "match":
        result = predictor.match(options.video, options.text)
    elif name == "fill":
        result = predictor.fill(options.video, options.text, options.top)
    else:
        result = predictor.answer(options.video, options.question, options.choices, options.top)
    if options.json:
        print(json.dumps({"weights": str(options.checkpoint), **result}, ensure_ascii=False))
    else:
        print(as_text(result))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    return run_command(lambda: _run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
