#!/usr/bin/env python3
"""Use a model on videos: captions, classes, answers, choices, missing words, matching texts.

python tools/predict.py fill --checkpoint runs/demo/train --video a.mp4 --text "a [MASK] runs"
python tools/predict.py classify --checkpoint runs/mine --videos clips --out classes.csv

--videos takes a folder, or a CSV, TSV, JSON-lines or Parquet file with the column path; its columns
text, question and option_1, option_2, … replace the options of the same names row by row. --out
writes CSV, JSON lines, Parquet or a page with thumbnails, by its suffix. The file appears when all
rows are done; the same command continues after an interruption.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.common.command_line import Choice, choose, run_command
from allinone.common.errors import InputError
from allinone.common.validation import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, require
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
class VideoOptions(PredictOptions):
    """Options of the tasks that take one video, or many. Give either --video or --videos."""

    video: Path | None = None
    """Video file."""
    videos: Path | None = None
    """Many videos: a folder with its subfolders, or a CSV, TSV, JSON-lines or Parquet file with the
    column path, relative to the file."""
    out: Path | None = None
    """Write .csv, .jsonl, .parquet or .html; without it, results are printed."""

    def check(self) -> None:
        """Raise InputError for values that cannot be used."""
        super().check()
        require_one(("--video", self.video), ("--videos", self.videos))


@dataclass(frozen=True, kw_only=True)
class ClassifyOptions(VideoOptions):
    """Options of classify."""


@dataclass(frozen=True, kw_only=True)
class CaptionOptions(VideoOptions):
    """Options of caption; --top captions are shown, of greedy decoding one."""

    decoding: Literal["beam", "greedy", "nucleus"] = "beam"
    """beam: the captions of highest probability; greedy: the best word of each step; nucleus: drawn
    at random from the most probable words."""
    beams: int = 4
    """Captions that beam search keeps, at least --top."""
    length_penalty: float = 0.6
    """beam: log-probabilities are divided by the number of tokens to this power; more prefers
    longer captions."""
    no_repeat_ngram: int = 0
    """No sequence of this many tokens occurs twice; 0 allows it."""
    top_p: float = 0.9
    """nucleus: words are drawn from the smallest set with this probability."""
    temperature: float = 1.0
    """nucleus: scores are divided by it before they become probabilities."""
    seed: int = 0
    """nucleus: the same seed draws the same captions of a video."""
    max_tokens: int | None = None
    """Most word pieces of a caption; None: the model's text length."""

    def check(self) -> None:
        """Raise InputError for values that cannot be used."""
        super().check()
        require(self, COUNT, ("beams", "max_tokens"))
        require(self, NOT_NEGATIVE, ("no_repeat_ngram",))
        require(self, POSITIVE, ("top_p", "temperature"))
        require(self, SHARE, ("top_p",))

    def generation(self) -> dict[str, Any]:
        """Arguments of Predictor.caption."""
        shared: dict[str, Any] = {"no_repeat_ngram_size": self.no_repeat_ngram, "seed": self.seed}
        if self.max_tokens is not None:
            shared["max_new_tokens"] = self.max_tokens + 1  # [SEP]
        if self.decoding == "greedy":
            return {**shared, "top": 1}
        if self.decoding == "nucleus":
            sampled = {"do_sample": True, "top_k": 0, "top_p": self.top_p}
            return {**shared, **sampled, "temperature": self.temperature, "top": self.top}
        beams = max(self.beams, self.top)
        return {
            **shared,
            "num_beams": beams,
            "length_penalty": self.length_penalty,
            "top": self.top,
        }


@dataclass(frozen=True, kw_only=True)
class MatchOptions(VideoOptions):
    """Options of match."""

    text: str = ""
    """The text."""


@dataclass(frozen=True, kw_only=True)
class RankOptions(VideoOptions):
    """Options of rank."""

    text: tuple[str, ...] = ()
    """Texts."""
    texts: Path | None = None
    """File with one text per line."""
    by: Literal["auto", "contrast", "match"] = "auto"
    """contrast: VTC embeddings; match: VTM, one joint pass per pair; auto: contrast unless the run
    trained without VTC."""


@dataclass(frozen=True, kw_only=True)
class FillOptions(VideoOptions):
    """Options of fill."""

    text: str = ""
    """The text, with [MASK] in place of each word to predict."""


@dataclass(frozen=True, kw_only=True)
class AnswerOptions(VideoOptions):
    """Options of answer."""

    question: str = ""
    """The question. For a model that was not fine-tuned, [MASK] is appended if it has none."""
    choices: tuple[str, ...] = ()
    """Rank these answers; without any, the model answers freely."""
    regions: tuple[str, ...] = ()
    """For models fine-tuned for VCR: NAME:X1,Y1,X2,Y2 in pixels of the picture, numbered from 1;
    question and choices mention them as [1] or [1,2]."""
    given_answer: str = ""
    """For models fine-tuned for VCR: the choices are reasons for this answer."""


@dataclass(frozen=True, kw_only=True)
class ChooseOptions(AnswerOptions):
    """Options of choose. The question may be left out: the choices are then captions."""


TASKS = {
    "caption": Choice("write captions of videos", CaptionOptions),
    "classify": Choice("name the class of videos, by a fine-tuned classifier", ClassifyOptions),
    "answer": Choice("answer a question, with or without choices", AnswerOptions),
    "choose": Choice("choose among answers or captions", ChooseOptions),
    "rank": Choice("rank texts for each of many videos", RankOptions),
    "search": Choice("rank the videos of a folder for a text", RetrieveOptions),
    "retrieve": Choice("rank texts for a video, or the videos of a folder", RetrieveOptions),
    "match": Choice("score how well a video and a text match", MatchOptions),
    "fill": Choice("predict each [MASK] of a text", FillOptions),
}


def _texts(options: RetrieveOptions | RankOptions) -> list[str]:
    from allinone.tools.inspection.media_inputs import read_lines

    texts = list(options.text)
    if options.texts is not None:
        texts += read_lines(options.texts, "--texts")
    if not texts:
        raise InputError("give the texts to rank: --text T [T …] or --texts FILE (one per line)")
    return texts


def _retrieve(predictor: Any, options: RetrieveOptions) -> dict[str, Any]:
    texts = _texts(options)
    if options.video is not None:
        return predictor.rank_texts(options.video, texts, options.by, options.top)
    if len(texts) != 1:
        raise InputError(
            f"--videos ranks clips for one text, but {len(texts)} were given; give one --text"
        )
    return predictor.rank_videos(options.videos, texts[0], options.by, options.top)


def _ask(predictor: Any, task: str, options: VideoOptions) -> Callable[..., dict[str, Any]]:
    """(video, values of its row) → result; the row's values replace the options."""
    if isinstance(options, RankOptions):
        texts = _texts(options)
        return lambda video, row: predictor.rank_texts(video, texts, options.by, options.top)

    def ask(video: Path, row: Mapping[str, Any]) -> dict[str, Any]:
        if task == "classify":
            return predictor.classify(video, options.top)
        if isinstance(options, CaptionOptions):
            return predictor.caption(video, **options.generation())
        if isinstance(options, AnswerOptions):
            question = row.get("question") or options.question
            choices = row.get("choices") or options.choices
            if task == "choose" and not choices:
                raise InputError("give --choices A B …, or the columns option_1, option_2, …")
            if task == "answer" and not question:
                raise InputError("give --question, or the column question")
            return getattr(predictor, task)(
                video,
                question,
                choices,
                options.top,
                regions=row.get("regions") or options.regions,
                given_answer=row.get("given_answer") or options.given_answer,
            )
        assert isinstance(options, (MatchOptions, FillOptions))
        text = row.get("text") or options.text
        if not text:
            raise InputError("give --text, or the column text")
        return (
            predictor.match(video, text)
            if task == "match"
            else predictor.fill(video, text, options.top)
        )

    return ask


def _run(argv: Sequence[str]) -> None:
    name, options = choose(
        TASKS, argv, prog="tools/predict.py", kind="task", description=__doc__ or ""
    )
    options.check()
    from allinone.tools.inspection.batch_predict import predict_many, read_requests
    from allinone.tools.inspection.checkpoints import load_checkpoint
    from allinone.tools.inspection.predictor import Predictor, as_text

    many = isinstance(options, VideoOptions) and (options.videos or options.out)
    requests = read_requests(options.video, options.videos) if many else []
    loaded = load_checkpoint(options.checkpoint, options.device)
    predictor = Predictor(loaded)
    if many:
        values = {key: str(value) for key, value in vars(options).items() if key != "device"}
        for line in predict_many(
            requests,
            _ask(predictor, name, options),
            options.out,
            predictor,
            {"task": name, **values},
        ):
            print(line)
        return
    if isinstance(options, RetrieveOptions):
        result = _retrieve(predictor, options)
    else:
        result = _ask(predictor, name, options)(options.video, {})
    result["weights_are"] = loaded.what
    if options.json:
        print(json.dumps({"weights": str(loaded.weights), **result}, ensure_ascii=False))
    else:
        print(as_text(result))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    return run_command(lambda: _run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
