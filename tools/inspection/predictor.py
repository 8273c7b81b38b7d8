"""Answers questions about single videos with a pre-trained model, for `tools/predict.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from allinone.common.errors import AllInOneError, InputError
from allinone.finetune.tasks.captioning import caption_text
from allinone.finetune.tasks.export import load_task_model
from allinone.model.captioning import LAST, PAD, clip_memory, next_features
from allinone.model.contrast import embed_text, embed_video
from allinone.model.task_models import (
    AllInOneForCaptioning,
    AllInOneForMultipleChoice,
    AllInOneForQuestionAnswering,
    AllInOneForRetrieval,
    AllInOneForTask,
    AllInOneForVideoClassification,
)
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
from allinone.tools.inspection.region_question import region_question

CONTRAST = "contrastive: cosine similarity of two uni-modal passes (VTC)"
MATCH = "matching: probability of the joint pass (VTM)"
RANK = "rank head of the fine-tuning: score of the joint pass, not a probability"
# the head that each score comes from; the registry of objectives knows which objective trains it
MLM_HEAD, MATCH_HEAD, CONTRAST_HEADS = (
    "mlm_head",
    "vtm_head",
    ("text_projection", "video_projection"),
)
NOT_FOR_CAPTIONS = "this model is not fine-tuned for captions; treat the caption as a guess"
NOT_FOR_QA = "this model is not fine-tuned for question answering; treat the answer as a guess"


class Predictor:
    """A model with readers for its inputs. Each task returns plain values for JSON."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.read_clip = ClipReader(loaded.model.config, loaded.data)
        self.read_text = TextReader(loaded.model.config)

    @cached_property
    def task_model(self) -> AllInOneForTask | None:
        """The model with the head of its fine-tuning; None for a pre-trained one."""
        try:
            model = load_task_model(self.loaded.source) if self.loaded.source else None
        except AllInOneError as error:
            raise InputError(f"--checkpoint {self.loaded.weights}: {error}") from error
        return model if model is None else model.to(self.loaded.device)

    @cached_property
    def _rank_model(self) -> AllInOneForRetrieval | None:
        """The model if it was fine-tuned for retrieval with a rank head, else None."""
        model = self.task_model if self.loaded.source and self.loaded.source.task else None
        ranks = isinstance(model, AllInOneForRetrieval) and model.kind == "rank"
        return model if ranks and isinstance(model, AllInOneForRetrieval) else None

    @property
    def match_by(self) -> str:
        """Which score `match_scores` gives: RANK or MATCH."""
        return RANK if self._rank_model else MATCH

    @torch.inference_mode()
    def match_scores(self, pixels: Tensor, text: InputText) -> list[float]:
        """How well clips match a text, by the joint pass.

        Args:
            pixels: [B, T, 3, S, S].
            text: The text.

        Returns:
            B scores: of the rank head if the model was fine-tuned for retrieval with one, which
            evaluation re-ranks by; else probabilities of the VTM head.
        """
        device = self.loaded.device
        pixels = pixels.to(device)
        ids, mask = (x.to(device).expand(len(pixels), -1) for x in (text.ids, text.mask))
        if self._rank_model:
            return self._rank_model.get_pair_logits(pixels, ids, mask).tolist()
        self.loaded.needs(MATCH_HEAD)
        model = self.loaded.model
        # class 1 is a match
        return model.vtm_head(model(pixels, ids, mask).pooled).softmax(-1)[:, 1].tolist()

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
            towers = CONTRAST_HEADS[0] not in self.loaded.missing
            towers = towers and not self.loaded.untrained(CONTRAST_HEADS[0])
            by = "contrast" if towers else "match"
        if by == "contrast":
            table = self.similarity(clips, texts)
        else:
            table = [[self._match(clip, text) for text in texts] for clip in clips]
        scores = [score for row in table for score in row]
        # sorted is stable: equal scores keep the order in which the user gave them
        order = sorted(range(len(scores)), key=lambda index: -scores[index])[:top]
        return {
            "task": "retrieve",
            "by": CONTRAST if by == "contrast" else self.match_by,
            "of": len(scores),
            "results": _ranked([(scores[index], names[index]) for index in order]),
            "notes": [
                *_cuts(texts),
                *self._untrained(CONTRAST_HEADS[0] if by == "contrast" else MATCH_HEAD),
            ],
        }

    def _match(self, clip: InputClip, text: InputText) -> float:
        return self.match_scores(clip.pixels, text)[0]

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
        """The scores of one pair: matching and contrastive, or the one that the model has."""
        clip, words = self.read_clip(video), self.read_text(text)
        results, notes = [], _cuts([words])
        towers = CONTRAST_HEADS[0] not in self.loaded.missing
        if self._rank_model or MATCH_HEAD not in self.loaded.missing or not towers:
            results.append({"score": self._match(clip, words), "name": self.match_by})
            notes += [] if self._rank_model else self._untrained(MATCH_HEAD)
        if towers:
            score = self.similarity([clip], [words])[0][0]
            results.append({"score": score, "name": CONTRAST})
            notes += self._untrained(CONTRAST_HEADS[0])
        return {"task": "match", "results": results, "notes": notes}

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
            "notes": [*_cuts([words]), *self._untrained(MLM_HEAD)],
        }

    @torch.inference_mode()
    def classify(self, video: Path, top: int) -> dict[str, Any]:
        """Name the class of a video.

        Args:
            video: The file.
            top: Number of classes.

        Raises:
            InputError: The model has no classifier.
        """
        model = self.task_model
        if not isinstance(model, AllInOneForVideoClassification):
            raise self._wrong_head("classify", "action recognition (--task labels, k400_linear, …)")
        words = self.read_text(str(model.config.task["prompt"]))
        return {
            "task": "classify",
            "head": f"classifier of {model.config.num_labels:,} classes",
            "results": self._labels(model, self.read_clip(video), words, top),
            "notes": _cuts([words]),
        }

    @torch.inference_mode()
    def caption(self, video: Path, top: int, seed: int = 0, **decoding: Any) -> dict[str, Any]:
        """Write captions of a video, the best first.

        Args:
            video: The file.
            top: Number of captions, of which equal ones are joined.
            seed: Of samples.
            **decoding: Arguments of transformers' generate.

        Returns:
            Each caption with the geometric mean of the probabilities that the model gives to its
            word pieces and its end.

        Raises:
            InputError: The model has another task's head.
        """
        model, notes = self.task_model, list[str]()
        if not isinstance(model, AllInOneForCaptioning):
            self._refuse_heads("caption", "captions (msrvtt_caption, --task caption, …)")
            self.loaded.needs(MLM_HEAD)
            model = AllInOneForCaptioning.of(self.loaded.model.backbone, self.loaded.model.mlm_head)
            notes = [NOT_FOR_CAPTIONS, *self._untrained(MLM_HEAD)]
        pixels = self.read_clip(video).pixels.to(model.device)
        # the same samples whatever other videos are captioned before
        torch.manual_seed(seed)
        ids = model.generate(pixels, num_return_sequences=top, **decoding)
        features = next_features(model.backbone, clip_memory(model.backbone, pixels), ids[:, :-1])
        chances = model.mlm_head(features).float().log_softmax(-1)
        chances = chances.gather(-1, ids[:, 1:, None])[..., 0]
        # after the first [SEP] there is padding
        ended = (ids == LAST).cumsum(1) - (ids == LAST).long()
        real = ((ended == 0) & (ids != PAD))[:, 1:]
        scores = ((chances * real).sum(1) / real.sum(1)).exp().tolist()
        tokenizer = self.read_text.tokenizer
        texts = [caption_text(tokenizer, row) for row in ids.tolist()]
        best: dict[str, float] = {}
        for score, text in zip(scores, texts, strict=True):
            best.setdefault(text, score)
        ranked = [(score, text) for text, score in best.items()]
        if decoding.get("do_sample"):  # samples have no order; beam search has its own
            ranked.sort(reverse=True)
        return {
            "task": "caption",
            "head": "MLM head, from left to right",
            "results": _ranked(ranked),
            "notes": notes,
        }

    def answer(
        self, video: Path, question: str, choices: Sequence[str], top: int, **about: Any
    ) -> dict[str, Any]:
        """Answer a question: by the head of a fine-tuned model, else by the pre-training heads.

        Args:
            video: The file.
            question: For the MLM head, a [MASK] is appended if it has none.
            choices: Choose among these; without any, all answers of the head, or one word of MLM.
            top: Number of answers.
            **about: `regions` and `given_answer` of `choose`.

        Raises:
            InputError: The model has another task's head, or the question has several [MASK].
        """
        if choices:
            return {**self.choose(video, question, choices, top, **about), "task": "answer"}
        model = self.task_model
        if isinstance(model, AllInOneForMultipleChoice):
            raise InputError("this model chooses among answers: give --choices A B …")
        _require_no_regions(**about)
        if isinstance(model, AllInOneForQuestionAnswering):
            words = self.read_text(question)
            return {
                "task": "answer",
                "head": f"answers of {model.config.num_labels:,} that it was fine-tuned with",
                "results": self._labels(model, self.read_clip(video), words, top),
                "notes": _cuts([words]),
            }
        self._refuse_heads("answer", "open-ended questions (msrvtt_qa, --task qa, …)")
        if MASK_TOKEN.lower() not in question.lower():
            question = f"{question} {MASK_TOKEN}"
        words = self.read_text.masked(question, "--question")
        if len(words.mask_positions) > 1:
            raise InputError(
                f"--question {question!r} has {len(words.mask_positions)} {MASK_TOKEN}; an answer"
                " is one word (`fill` predicts several)"
            )
        guesses = fill_masks(self.loaded, self.read_text, self.read_clip(video), words, top)[0]
        return {
            "task": "answer",
            "head": f"MLM head on “{words.text}”",
            "results": _ranked([(guess.probability, guess.word) for guess in guesses]),
            "notes": [NOT_FOR_QA, *self._untrained(MLM_HEAD)],
        }

    @torch.inference_mode()
    def choose(
        self,
        video: Path,
        question: str,
        choices: Sequence[str],
        top: int,
        *,
        regions: Sequence[str] = (),
        given_answer: str = "",
    ) -> dict[str, Any]:
        """Choose among answers or captions.

        Args:
            video: The file.
            question: May be empty: the choices are then captions.
            choices: At least one.
            top: Number of choices to list.
            regions: Of a model fine-tuned for VCR, see region_question.py.
            given_answer: Also of VCR: the choices are reasons for this answer.

        Raises:
            InputError: The model has the head of another task, or a choice is none of its answers.
        """
        model = self.task_model
        if isinstance(model, AllInOneForMultipleChoice) and model.kind == "two_ranks":
            asked = region_question(question, choices, regions, given_answer, model.config)
            paint = asked.paint  # without regions, the clip may be a row of an index
            clip = self.read_clip(video, paint=paint) if paint else self.read_clip(video)
            texts = [
                self.read_text.of_parts(f"{question} {choice}", parts)
                for choice, parts in zip(choices, asked.texts, strict=True)
            ]
            scores = self._options(model, clip, texts, part=asked.part)
            return _chosen(asked.head, scores, choices, top, [*_cuts(texts), *asked.notes])
        _require_no_regions(regions, given_answer)
        clip = self.read_clip(video)
        notes: list[str] = []
        if isinstance(model, AllInOneForMultipleChoice):
            listed = choices if model.config.task["list_options"] else ()
            texts = [self.read_text.option(question, choice, listed) for choice in choices]
            scores, head = self._options(model, clip, texts), "multiple-choice head"
        elif isinstance(model, AllInOneForQuestionAnswering):
            texts, head = [self.read_text(question)], "fine-tuned answers, among the choices"
            unknown = [choice for choice in choices if choice not in model.config.label2id]
            if unknown:
                raise InputError(
                    f"--choices {unknown[0]!r} is none of the {model.config.num_labels:,} answers"
                    " that this model was fine-tuned with"
                )
            rows = [model.config.label2id[choice] for choice in choices]
            scores = self._logits(model, clip, texts[0])[rows].softmax(-1).tolist()
        else:
            self._refuse_heads("choose", "multiple choice (msrvtt_choice, --task choice, …)")
            head = "VTM head on “question choice”, one joint pass per choice"
            texts = [self.read_text(f"{question} {choice}".strip()) for choice in choices]
            scores = [self._match(clip, text) for text in texts]
            notes = [NOT_FOR_QA, *self._untrained(MATCH_HEAD)]
        return _chosen(head, scores, choices, top, [*_cuts(texts), *notes])

    def _options(
        self,
        model: AllInOneForMultipleChoice,
        clip: InputClip,
        texts: Sequence[InputText],
        **part: str,
    ) -> list[float]:
        """Probabilities of the options of one clip."""
        ids = torch.cat([text.ids for text in texts])[None].to(model.device)
        mask = torch.cat([text.mask for text in texts])[None].to(model.device)
        found: list[float] = (
            model(clip.pixels.to(model.device), ids, mask, **part).logits[0].softmax(-1).tolist()
        )
        return found

    def _logits(self, model: AllInOneForTask, clip: InputClip, text: InputText) -> Tensor:
        device = model.device
        found = model(clip.pixels.to(device), text.ids.to(device), text.mask.to(device))
        return found.logits[0].cpu()

    @torch.inference_mode()
    def _labels(
        self, model: AllInOneForTask, clip: InputClip, text: InputText, top: int
    ) -> list[dict[str, Any]]:
        """The best labels of a classifier."""
        logits = self._logits(model, clip, text)
        # VQAv2's answers are not exclusive: each has a probability of its own
        chances = logits.sigmoid() if model.kind == "answers_bce" else logits.softmax(-1)
        best = chances.topk(min(top, len(chances)))
        pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        return _ranked([(score, model.config.id2label[number]) for score, number in pairs])

    def _refuse_heads(self, task: str, needed: str) -> None:
        """Raise InputError if the model was fine-tuned for something else."""
        source = self.loaded.source
        if self.task_model is not None or (source is not None and source.heads):
            raise self._wrong_head(task, needed)
        unknown = [name for name in self.loaded.unknown if not name.startswith("transformer.")]
        if unknown:
            heads = sorted({name.rsplit(".", 1)[0] for name in unknown})
            raise InputError(
                f"--checkpoint {self.loaded.weights} has a head that this version does not know"
                f" ({', '.join(heads[:4])}); the pre-training heads cannot replace it"
            )

    def _wrong_head(self, task: str, needed: str) -> InputError:
        source = self.loaded.source
        tuned = source.task.get("protocol") if source is not None else None
        what = f"was fine-tuned for {tuned}" if tuned else "was not fine-tuned"
        return InputError(
            f"`{task}`: --checkpoint {self.loaded.weights} {what}; give a run that was fine-tuned"
            f" for {needed}"
        )

    def _untrained(self, head: str) -> list[str]:
        """A note if a head is known to be untrained."""
        objective = self.loaded.untrained(head)
        if objective is None:
            return []
        return [
            f"the run of this checkpoint trained without {objective}: its head gives random scores"
        ]


def _require_no_regions(regions: Sequence[str] = (), given_answer: str = "") -> None:
    for option, value in (("--regions", regions), ("--given-answer", given_answer)):
        if value:
            raise InputError(
                f"{option}: only a model that was fine-tuned for VCR (finetune/vcr.py) reads it;"
                " leave it out"
            )


def _cuts(texts: Sequence[InputText]) -> list[str]:
    return [text.cut for text in texts if text.cut]


def _chosen(
    head: str, scores: Sequence[float], choices: Sequence[str], top: int, notes: list[str]
) -> dict[str, Any]:
    ranked = sorted(zip(scores, choices, strict=True), key=lambda pair: -pair[0])
    return {"task": "choose", "head": head, "results": _ranked(ranked[:top]), "notes": notes}


def _ranked(results: Sequence[tuple[float, str]]) -> list[dict[str, Any]]:
    return [
        {"rank": rank, "score": score, "name": name}
        for rank, (score, name) in enumerate(results, start=1)
    ]


def as_text(result: dict[str, Any]) -> str:
    """A result as a table, with its notes below."""
    lines = [result[key] for key in ("weights_are", "by", "head", "text") if result.get(key)]
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
