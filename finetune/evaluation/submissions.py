"""Predictions in the format of each benchmark's test server: VCR's CSV, VQAv2's and TVQA's JSON.

Ids and values are checked before writing. Servers want one row per item, so an item whose media
cannot be decoded (`missing`) gets an uninformative answer: equal probabilities, an empty string,
option 0. A server may count such a row as correct by chance; our own scores never do.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from allinone.common.atomic_io import write_atomic
from allinone.common.errors import AllInOneError
from allinone.finetune.annotations.schema import Split
from allinone.finetune.evaluation.results import EvalOutput

VCR_GROUPS = ("answer", *(f"rationale_conditioned_on_a{answer}" for answer in range(4)))
VCR_COLUMNS = ("annot_id", *(f"{group}_{option}" for group in VCR_GROUPS for option in range(4)))
"""The official header: annot_id and 20 probabilities (rowanz/r2c, models/README.md)."""
TVQA_OPTIONS = 5


class SubmissionError(AllInOneError, ValueError):
    """The predictions do not fit the benchmark's submission format; the message names the ids."""


def vcr_csv(
    path: Path,
    ids: Sequence[str],
    answer_scores: np.ndarray,
    rationale_scores: np.ndarray,
    *,
    expected: Collection[str],
    missing: Collection[str] = (),
) -> None:
    """Write VCR's CSV: probabilities of answers and rationales, rows sorted by id.

    Args:
        path: The file.
        ids: annot_id of the N scored questions.
        answer_scores: Logits of the four answers [N, 4].
        rationale_scores: Logits of the four rationales given each answer [N, 4, 4].
        expected: annot_id of every question of the split.
        missing: Questions without usable media. They need no scores; any given are ignored.

    Raises:
        SubmissionError: Ids or shapes do not fit, or a score is not finite.
    """
    # sorted: the file is the same in every run
    absent = sorted(set(missing) - set(ids))
    _check_ids([*ids, *absent], expected, "VCR")
    if answer_scores.shape != (len(ids), 4) or rationale_scores.shape != (len(ids), 4, 4):
        shapes = f"{list(answer_scores.shape)} and {list(rationale_scores.shape)}"
        raise SubmissionError(
            f"VCR needs scores [N, 4] and [N, 4, 4] for {len(ids)} questions, got {shapes}"
        )
    scores = np.concatenate([answer_scores[:, None], rationale_scores], axis=1).astype(np.float64)
    scores = np.concatenate([scores, np.zeros((len(absent), 5, 4))])
    ids = [*ids, *absent]
    # equal probabilities: the server requires a row for every question
    scores[np.isin(np.asarray(ids), list(missing))] = 0.0
    if not np.isfinite(scores).all():
        broken = [name for name, row in zip(ids, scores, strict=True) if not np.isfinite(row).all()]
        raise SubmissionError(
            f"VCR: scores that are not finite in {len(broken)} questions, for example {broken[0]}"
        )
    # softmax with the maximum subtracted, so that large logits do not overflow
    shifted = np.exp(scores - scores.max(-1, keepdims=True))
    probabilities = (shifted / shifted.sum(-1, keepdims=True)).reshape(len(ids), 20)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(VCR_COLUMNS)
    # repr keeps every digit: rounded probabilities of two options could become equal
    for row in sorted(range(len(ids)), key=ids.__getitem__):
        rows.writerow([ids[row], *(repr(float(value)) for value in probabilities[row])])
    write_atomic(path, text.getvalue())


def vqav2_json(
    path: Path, ids: Sequence[str], answers: Sequence[str | None], *, expected: Collection[str]
) -> None:
    """Write VQAv2's JSON: [{"question_id": int, "answer": text}, …], sorted by id.

    Args:
        path: The file.
        ids: Question ids, decimal.
        answers: One per id; None for missing media.
        expected: Ids of every question of the split.

    Raises:
        SubmissionError: Ids do not fit.
    """
    _check_ids(ids, expected, "VQAv2")
    _same_length(ids, answers, "VQAv2")
    rows = [
        # an answer is required for every question: empty for missing media
        {"question_id": _number(name, "VQAv2"), "answer": answer or ""}
        for name, answer in zip(ids, answers, strict=True)
    ]
    write_atomic(
        path,
        json.dumps(sorted(rows, key=lambda row: int(row["question_id"])), ensure_ascii=False)
        + "\n",
    )


def tvqa_json(
    path: Path, ids: Sequence[str], options: Sequence[int | None], *, expected: Collection[str]
) -> None:
    """Write TVQA's JSON: {"qid": option 0..4, …}, sorted by id.

    Args:
        path: The file.
        ids: Question ids, decimal.
        options: Chosen option per id; None for missing media.
        expected: Ids of every question of the split.

    Raises:
        SubmissionError: Ids or options do not fit.
    """
    _check_ids(ids, expected, "TVQA")
    _same_length(ids, options, "TVQA")
    # the server needs an option for every question: 0 for missing media
    chosen = {
        _number(name, "TVQA"): 0 if option is None else int(option)
        for name, option in zip(ids, options, strict=True)
    }
    wrong = [qid for qid, option in chosen.items() if not 0 <= option < TVQA_OPTIONS]
    if wrong:
        raise SubmissionError(
            f"TVQA: option {chosen[wrong[0]]} of question {wrong[0]} is outside"
            f" 0..{TVQA_OPTIONS - 1}"
        )
    write_atomic(path, json.dumps({str(qid): chosen[qid] for qid in sorted(chosen)}) + "\n")


def _write_vcr(path: Path, split: Split, output: EvalOutput) -> None:
    scored = [row for row in output.rows if row["prediction"] is not None]
    vcr_csv(
        path,
        [str(row["id"]) for row in scored],
        np.array([row["answer_scores"] for row in scored], np.float32),
        np.array([row["rationale_scores"] for row in scored], np.float32),
        expected=[item.id for item in split.items],
        missing=[item.item for item in output.missing],
    )


def _write_vqav2(path: Path, split: Split, output: EvalOutput) -> None:
    vqav2_json(path, *_predictions(output), expected=[item.id for item in split.items])


def _write_tvqa(path: Path, split: Split, output: EvalOutput) -> None:
    tvqa_json(path, *_predictions(output), expected=[item.id for item in split.items])


def _predictions(output: EvalOutput) -> tuple[list[str], list[Any]]:
    return [str(row["id"]) for row in output.rows], [row["prediction"] for row in output.rows]


WRITERS: dict[str, tuple[str, Callable[[Path, Split, EvalOutput], None]]] = {
    "tvqa": ("tvqa_submission.json", _write_tvqa),
    "vcr": ("vcr.csv", _write_vcr),
    "vqav2": ("vqav2_submission.json", _write_vqav2),
}
"""Benchmark.submission → (name of the file, what writes it from the rows of an evaluation)."""


def _check_ids(ids: Sequence[str], expected: Collection[str], benchmark: str) -> None:
    """Require every expected id exactly once, and no other."""
    counts = Counter(ids)
    faults = {
        "repeated": [name for name, count in counts.items() if count > 1],
        "missing": sorted(set(expected) - counts.keys()),
        "unknown to the split": sorted(counts.keys() - set(expected)),
    }
    named = [
        f"{len(names):,} {what} ({', '.join(names[:3])}{' …' * (len(names) > 3)})"
        for what, names in faults.items()
        if names
    ]
    if named:
        raise SubmissionError(
            f"{benchmark}: the submission needs each of the {len(set(expected)):,} questions of the"
            f" split once; {'; '.join(named)}"
        )


def _same_length(ids: Sequence[str], values: Sequence[object], benchmark: str) -> None:
    if len(ids) != len(values):
        raise SubmissionError(f"{benchmark}: {len(values)} predictions for {len(ids)} ids")


def _number(name: str, benchmark: str) -> int:
    if not name.isdecimal():
        raise SubmissionError(f"{benchmark}: question ids must be integers, got {name!r}")
    return int(name)
