"""Answers questions about single videos with a pre-trained model, for `tools/predict.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch

from allinone.common.errors import InputError
from allinone.model.contrast import embed_text, embed_video
from allinone.tools.inspection.checkpoints import LoadedModel
from allinone.tools.inspection.fill_mask import fill_masks
from allinone.tools.inspection.media_inputs import (
    MASK_TOKEN,
    ClipReader,
    InputClip,
    InputText,
    TextReader,
    media_files,
)

CONTRAST = "contrastive: cosine similarity of two uni-modal passes (VTC)"
MATCH = "matching: probability of the joint pass (VTM)"
# the head that each score comes from; the registry of objectives knows which objective trains it
MLM_HEAD, MATCH_HEAD, CONTRAST_HEADS = (
    "mlm_head",
    "vtm_head",
    ("text_projection", "video_projection"),
)
NOT_FOR_QA = "this model is not fine-tuned for question answering; treat the answer as a guess"


class Predictor:
    """A model with readers for its inputs. Each task returns plain values for JSON."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.read_clip = ClipReader(loaded.model.config, loaded.data)
        self.read_text = TextReader(loaded.model.config)

    @torch.inference_mode()
    def match_probability(self, clip: InputClip, text: InputText) -> float:
        """Probability that a video and a text match, from the VTM head on the joint pass."""
        self.loaded.needs(MATCH_HEAD)
        model, device = self.loaded.model, self.loaded.device
        output = model(clip.pixels.to(device), text.ids.to(device), text.mask.to(device))
        # class 1 is a match
        return float(model.vtm_head(output.pooled).softmax(-1)[0, 1])

    @torch.inference_mode()
    def similarity(
        self, clips: Sequence[InputClip], texts: Sequence[InputText]
    ) -> list[list[float]]:
        """Contrastive cosine similarity, one row per clip."""
        self.loaded.needs(*CONTRAST_HEADS)
        model, device = self.loaded.model, self.loaded.device
        # one clip at a time: a folder's clips in one batch could exceed the memory
        video = torch.cat([embed_video(model, clip.pixels.to(device)) for clip in clips])
        text = torch.cat(
            [embed_text(model, text.ids.to(device), text.mask.to(device)) for text in texts]
        )
        return (video @ text.T).tolist()

    def rank_texts(
        self, video: Path, texts: Sequence[str], by: Literal["auto", "contrast", "match"], top: int
    ) -> dict[str, Any]:
        """Rank texts for a video.

        Args:
            video: The file.
            texts: The texts.
            by: contrast (VTC), match (VTM), or auto: contrast unless the run trained without VTC.
            top: Number of results.
        """
        inputs = [self.read_text(text) for text in texts]
        return self._rank([self.read_clip(video)], inputs, list(texts), by, top)

    def rank_videos(
        self, folder: Path, text: str, by: Literal["auto", "contrast", "match"], top: int
    ) -> dict[str, Any]:
        """Rank the videos in a folder for a text; the notes list files that cannot be used.

        Args:
            folder: Searched with its subfolders.
            text: The text.
            by: As in `rank_texts`.
            top: Number of results.
        """
        inputs = [self.read_text(text)]
        clips, skipped = self._readable(folder)
        result = self._rank(clips, inputs, [str(clip.path) for clip in clips], by, top)
        result["notes"] = [*(f"skipped {path}" for path in skipped), *result["notes"]]
        return result

    def _rank(
        self,
        clips: Sequence[InputClip],
        texts: Sequence[InputText],
        names: Sequence[str],
        by: Literal["auto", "contrast", "match"],
        top: int,
    ) -> dict[str, Any]:
        """Scores of all pairs, best first; either `clips` or `texts` has one entry."""
        if by == "auto":
            by = "match" if self.loaded.untrained(CONTRAST_HEADS[0]) else "contrast"
        if by == "contrast":
            table = self.similarity(clips, texts)
        else:
            table = [[self.match_probability(clip, text) for text in texts] for clip in clips]
        scores = [score for row in table for score in row]
        # sorted is stable: equal scores keep the order in which the user gave them
        order = sorted(range(len(scores)), key=lambda index: -scores[index])[:top]
        return {
            "task": "retrieve",
            "by": CONTRAST if by == "contrast" else MATCH,
            "of": len(scores),
            "results": _ranked([(scores[index], names[index]) for index in order]),
            "notes": self._untrained(CONTRAST_HEADS[0] if by == "contrast" else MATCH_HEAD),
        }

    def _readable(self, folder: Path) -> tuple[list[InputClip], list[str]]:
        """(clips, reasons of the files that cannot be used)."""
        clips, skipped = [], []
        for path in media_files(folder):
            try:
                clips.append(self.read_clip(path, "file"))
            except InputError as error:
                skipped.append(str(error).removeprefix("file "))
        if not clips:
            raise InputError(
                f"--videos {folder}: none of {len(skipped)} files can be used, first: {skipped[0]}"
            )
        return clips, skipped

    def match(self, video: Path, text: str) -> dict[str, Any]:
        """Both scores of one pair."""
        clip, words = self.read_clip(video), self.read_text(text)
        return {
            "task": "match",
            "results": [
                {"score": self.match_probability(clip, words), "name": MATCH},
                {"score": self.similarity([clip], [words])[0][0], "name": CONTRAST},
            ],
            "notes": [*self._untrained(MATCH_HEAD), *self._untrained(CONTRAST_HEADS[0])],
        }

    def fill(self, video: Path, text: str, top: int) -> dict[str, Any]:
        """Predict every [MASK] of a text.

        Args:
            video: The file.
            text: Text with at least one [MASK].
            top: Words per [MASK].
        """
        words = self.read_text.masked(text)
        guesses = fill_masks(self.loaded, self.read_text, self.read_clip(video), words, top)
        return {
            "task": "fill",
            "text": words.text,
            "gaps": [[asdict(guess) for guess in of_mask] for of_mask in guesses],
            "notes": self._untrained(MLM_HEAD),
        }

    def answer(
        self, video: Path, question: str, choices: Sequence[str], top: int
    ) -> dict[str, Any]:
        """Answer a question with the pre-training heads.

        Args:
            video: The file.
            question: A [MASK] is appended if it has none and there are no choices.
            choices: Rank these by VTM; without any, MLM predicts a word at the [MASK].
            top: Number of words.

        Raises:
            InputError: The model has another task's head, or the question has several [MASK].
        """
        if self.loaded.unknown:
            heads = sorted({name.rsplit(".", 1)[0] for name in self.loaded.unknown})
            raise InputError(
                f"--checkpoint {self.loaded.weights} has a head that this version does not know"
                f" ({', '.join(heads[:4])}); the pre-training heads cannot replace it"
            )
        clip = self.read_clip(video)
        if choices:
            head, trained = "VTM head on “question choice”, one joint pass per choice", MATCH_HEAD
            scored = [
                (self.match_probability(clip, self.read_text(f"{question} {choice}")), choice)
                for choice in choices
            ]
            results = sorted(scored, key=lambda pair: -pair[0])
        else:
            if MASK_TOKEN.lower() not in question.lower():
                question = f"{question} {MASK_TOKEN}"
            words = self.read_text.masked(question, "--question")
            if len(words.mask_positions) > 1:
                raise InputError(
                    f"--question {question!r} has {len(words.mask_positions)} {MASK_TOKEN}; an"
                    " answer is one word (`fill` predicts several)"
                )
            head, trained = f"MLM head on “{words.text}”", MLM_HEAD
            guesses = fill_masks(self.loaded, self.read_text, clip, words, top)[0]
            results = [(guess.probability, guess.word) for guess in guesses]
        return {
            "task": "answer",
            "head": head,
            "results": _ranked(results),
            "notes": [NOT_FOR_QA, *self._untrained(trained)],
        }

    def _untrained(self, head: str) -> list[str]:
        """A note if a head is known to be untrained."""
        objective = self.loaded.untrained(head)
        if objective is None:
            return []
        return [
            f"the run of this checkpoint trained without {objective}: its head gives random scores"
        ]


def _ranked(results: Sequence[tuple[float, str]]) -> list[dict[str, Any]]:
    return [
        {"rank": rank, "score": score, "name": name}
        for rank, (score, name) in enumerate(results, start=1)
    ]


def as_text(result: dict[str, Any]) -> str:
    """A result as a table, with its notes below."""
    lines = [result[key] for key in ("by", "head", "text") if key in result]
    for number, guesses in enumerate(result.get("gaps", []), start=1):
        lines += ["", f"{MASK_TOKEN} {number}", f"{'%':>7}  word"]
        lines += [f"{100 * guess['probability']:>7.2f}  {guess['word']}" for guess in guesses]
    rows = result.get("results")
    if rows:
        ranked = "rank" in rows[0]
        of = f"  of {result['of']}" if "of" in result else ""
        lines += ["", f"{'rank  ' if ranked else ''}{'score':>8}{of}"]
        for row in rows:
            rank = f"{row['rank']:>4}  " if ranked else ""
            lines.append(f"{rank}{row['score']:>8.4f}  {row['name']}")
    lines += [f"note: {note}" for note in result["notes"]]
    return "\n".join(lines)
