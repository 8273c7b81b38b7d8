#!/usr/bin/env python3
"""What a trained model says about one video.

retrieve  rank texts for a video, or the videos of a folder for a text
match     do a video and a text belong together
fill      the likeliest words for every [MASK] of a text
answer    a question about a video, with choices or without

    python tools/predict.py fill --checkpoint runs/demo/train --video clip.mp4 --text "person [MASK] with dark skin tone"
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from allinone.common.command import at_least_one
from allinone.common.command_line import run_command
from allinone.common.errors import InputError
from allinone.model.contrast import embed_text, embed_video
from allinone.tools.inspection.checkpoints import LoadedModel, load_checkpoint
from allinone.tools.inspection.fill_mask import fill_gaps
from allinone.tools.inspection.media_inputs import (
    GAP,
    ClipReader,
    InputClip,
    TextReader,
    Words,
    media_files,
    read_lines,
)

CONTRAST = "contrastive: cosine similarity of two uni-modal passes (VTC)"
MATCH = "matching: probability of the joint pass (VTM)"
NOT_FOR_QA = "this model is not fine-tuned for question answering; take the answer as a guess"


class Predictor:
    """A checkpoint with readers for its inputs."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.read_clip = ClipReader(loaded.model.config, loaded.data)
        self.read_text = TextReader(loaded.model.config)

    @torch.inference_mode()
    def match_probability(self, clip: InputClip, words: Words) -> float:
        """Probability that the two belong together, from the VTM head on the joint pass."""
        self.loaded.needs("vtm_head")
        device = self.loaded.device
        pooled = self.loaded.model(
            clip.pixels.to(device), words.ids.to(device), words.mask.to(device)
        ).pooled
        return float(self.loaded.model.vtm_head(pooled).softmax(-1)[0, 1])

    @torch.inference_mode()
    def similarity(self, clips: Sequence[InputClip], texts: Sequence[Words]) -> list[list[float]]:
        """Contrastive cosine similarity, a row per clip."""
        self.loaded.needs("text_projection", "video_projection")
        model, device = self.loaded.model, self.loaded.device
        video = torch.cat([embed_video(model, clip.pixels.to(device)) for clip in clips])
        text = torch.cat(
            [embed_text(model, words.ids.to(device), words.mask.to(device)) for words in texts]
        )
        return (video @ text.T).tolist()


def retrieve(predictor: Predictor, args: argparse.Namespace) -> dict[str, Any]:
    """Rank texts for --video, or videos of --videos for one --text."""
    texts = [*(args.text or []), *(read_lines(args.texts, "--texts") if args.texts else [])]
    if not texts:
        raise InputError("give the texts to rank: --text T [T …] or --texts FILE (one a line)")
    if args.videos is not None and len(texts) != 1:
        raise InputError(
            f"--videos ranks clips for one text, but {len(texts)} were given; give one --text"
        )
    words = [predictor.read_text(text) for text in texts]
    skipped: list[str] = []
    if args.video is not None:
        clips, names = [predictor.read_clip(args.video)], texts
    else:
        clips, skipped = _readable(predictor, args.videos)
        names = [str(clip.path) for clip in clips]
    by = (
        args.by
        if args.by != "auto"
        else ("match" if predictor.loaded.untrained("vtc") else "contrast")
    )
    if by == "contrast":
        table = predictor.similarity(clips, words)
    else:
        table = [[predictor.match_probability(clip, text) for text in words] for clip in clips]
    scores = [score for row in table for score in row]
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[: args.top]
    ranked = [
        {"rank": place + 1, "score": scores[i], "name": names[i]} for place, i in enumerate(order)
    ]
    notes = [f"skipped {path}" for path in skipped]
    notes += _untrained(predictor.loaded, "vtc" if by == "contrast" else "vtm")
    return {
        "task": "retrieve",
        "by": CONTRAST if by == "contrast" else MATCH,
        "of": len(scores),
        "results": ranked,
        "notes": notes,
    }


def _readable(predictor: Predictor, folder: Path) -> tuple[list[InputClip], list[str]]:
    clips, skipped = [], []
    for path in media_files(folder):
        try:
            clips.append(predictor.read_clip(path, "file"))
        except InputError as error:
            skipped.append(str(error).removeprefix("file "))
    if not clips:
        raise InputError(
            f"--videos {folder}: none of {len(skipped)} files can be used, first: {skipped[0]}"
        )
    return clips, skipped


def match(predictor: Predictor, args: argparse.Namespace) -> dict[str, Any]:
    """Both scores of one pair."""
    clip, words = predictor.read_clip(args.video), predictor.read_text(args.text)
    return {
        "task": "match",
        "results": [
            {"score": predictor.match_probability(clip, words), "name": MATCH},
            {"score": predictor.similarity([clip], [words])[0][0], "name": CONTRAST},
        ],
        "notes": [*_untrained(predictor.loaded, "vtm"), *_untrained(predictor.loaded, "vtc")],
    }


def fill(predictor: Predictor, args: argparse.Namespace) -> dict[str, Any]:
    """Words for every gap of --text."""
    words = predictor.read_text.with_gaps(args.text)
    gaps = fill_gaps(
        predictor.loaded, predictor.read_text, predictor.read_clip(args.video), words, args.top
    )
    return {
        "task": "fill",
        "text": words.text,
        "gaps": [[asdict(guess) for guess in gap] for gap in gaps],
        "notes": _untrained(predictor.loaded, "mlm"),
    }


def answer(predictor: Predictor, args: argparse.Namespace) -> dict[str, Any]:
    """A question through the heads of pre-training: VTM over --choices, else MLM at a [MASK]."""
    if predictor.loaded.unknown:
        names = ", ".join(sorted({name.rsplit(".", 1)[0] for name in predictor.loaded.unknown})[:4])
        raise InputError(
            f"--checkpoint {predictor.loaded.weights} has a head that this version does not know"
            f" ({names}); the heads of pre-training would give other answers than it, so none is"
            " given"
        )
    clip = predictor.read_clip(args.video)
    if args.choices:
        scored = [
            (
                predictor.match_probability(clip, predictor.read_text(f"{args.question} {choice}")),
                choice,
            )
            for choice in args.choices
        ]
        scored.sort(key=lambda pair: -pair[0])
        head = "VTM head on “question choice”, one joint pass per choice"
        results = [
            {"rank": place + 1, "score": score, "name": choice}
            for place, (score, choice) in enumerate(scored)
        ]
        trained = _untrained(predictor.loaded, "vtm")
    else:
        question = (
            args.question if GAP.lower() in args.question.lower() else f"{args.question} {GAP}"
        )
        words = predictor.read_text.with_gaps(question, "--question")
        if len(words.gaps) > 1:
            raise InputError(
                f"--question {question!r} has {len(words.gaps)} {GAP}; an answer is one word (task"
                " fill takes more)"
            )
        guesses = fill_gaps(predictor.loaded, predictor.read_text, clip, words, args.top)[0]
        head = f"MLM head on “{words.text}”"
        results = [
            {"rank": place + 1, "score": guess.probability, "name": guess.word}
            for place, guess in enumerate(guesses)
        ]
        trained = _untrained(predictor.loaded, "mlm")
    return {"task": "answer", "head": head, "results": results, "notes": [NOT_FOR_QA, *trained]}


def _untrained(loaded: LoadedModel, objective: str) -> list[str]:
    if not loaded.untrained(objective):
        return []
    return [
        f"the run of this checkpoint trained without {objective.upper()}: its head gives random"
        " scores"
    ]


TASKS = {"retrieve": retrieve, "match": match, "fill": fill, "answer": answer}


def show(result: dict[str, Any]) -> None:
    """The result as a table, notes below."""
    for key in ("by", "head", "text"):
        if key in result:
            print(result[key])
    for number, gap in enumerate(result.get("gaps", []), start=1):
        print(f"\n{GAP} {number}\n{'%':>7}  word")
        for guess in gap:
            print(f"{100 * guess['probability']:>7.2f}  {guess['word']}")
    if rows := result.get("results"):
        ranked = "rank" in rows[0]
        print(
            f"\n{'rank  ' if ranked else ''}{'score':>8} "
            f" {'of ' + str(result['of']) if 'of' in result else ''}".rstrip()
        )
        for row in rows:
            print(
                f"{str(row['rank']).rjust(4) + '  ' if ranked else ''}{row['score']:>8.4f} "
                f" {row['name']}"
            )
    for note in result["notes"]:
        print(f"note: {note}")


def build_parser() -> argparse.ArgumentParser:
    """One sub-command per task."""
    parser = argparse.ArgumentParser(
        prog="tools/predict.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        metavar="DIR",
        help="save_pretrained folder, checkpoint, or run (its newest checkpoint)",
    )
    common.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s"
    )
    common.add_argument(
        "--top", type=at_least_one, default=5, metavar="K", help="rows shown (default: %(default)s)"
    )
    common.add_argument("--json", action="store_true", help="print one JSON line")

    ranking = tasks.add_parser(
        "retrieve",
        parents=[common],
        help="rank texts for a video, or videos of a folder for a text",
    )
    source = ranking.add_mutually_exclusive_group(required=True)
    source.add_argument("--video", type=Path, metavar="FILE", help="rank the texts for this video")
    source.add_argument(
        "--videos",
        type=Path,
        metavar="DIR",
        help="rank the videos below this folder for one --text",
    )
    ranking.add_argument("--text", nargs="+", metavar="T", help="texts")
    ranking.add_argument("--texts", type=Path, metavar="FILE", help="texts, one a line")
    ranking.add_argument(
        "--by",
        choices=("auto", "contrast", "match"),
        default="auto",
        help=(
            "contrast: VTC embeddings; match: VTM, a joint pass per pair; auto: contrast unless the"
            " run trained without VTC"
        ),
    )
    for name, description in (
        ("match", "score of a pair"),
        ("fill", "words for the gaps of a text"),
    ):
        task = tasks.add_parser(name, parents=[common], help=description)
        task.add_argument("--video", type=Path, required=True, metavar="FILE")
        task.add_argument(
            "--text",
            required=True,
            metavar="T",
            help=f"with {GAP} for each gap" if name == "fill" else None,
        )
    question = tasks.add_parser("answer", parents=[common], help="answer a question")
    question.add_argument("--video", type=Path, required=True, metavar="FILE")
    question.add_argument(
        "--question",
        required=True,
        metavar="Q",
        help=f"{GAP} is added at the end where it has none",
    )
    question.add_argument("--choices", nargs="+", metavar="A", help="rank these answers")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code: 0 done, 2 an error that you can mend."""
    args = build_parser().parse_args(argv)

    def tool() -> None:
        result = TASKS[args.task](Predictor(load_checkpoint(args.checkpoint, args.device)), args)
        if args.json:
            print(json.dumps({"weights": str(args.checkpoint), **result}, ensure_ascii=False))
        else:
            show(result)

    return run_command(tool)


if __name__ == "__main__":
    sys.exit(main())
