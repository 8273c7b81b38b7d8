"""Ego4D: multiple choice and EgoMCQ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.finetune.official.common import (
    MadeUpBenchmark,
    make_sample,
    write_json,
    write_text,
)

EGO4D_VIDEOS = [f"uid-{k}" for k in range(5)]


def ego4d(root: Path) -> MadeUpBenchmark:
    """Python literals in CSV; a narration with quotes and a comma; a repeated correct narration."""
    sample = make_sample(root, [f"{uid}.mp4" for uid in EGO4D_VIDEOS])
    rows = ["question,answers"]
    for number, uid in enumerate(EGO4D_VIDEOS):
        texts = ["#C C opens a drawer", "#C C says 'hm', walks", "#O O waves", "#unsure a tomato"]
        right = texts[number % 4]
        if number == 4:
            texts[3] = texts[0]
        question = (uid, 60 + number, "2021", right)
        answers = [(other, text) for other, text in zip(EGO4D_VIDEOS, texts, strict=False)]
        rows.append(
            ",".join('"' + repr(value).replace('"', '""') + '"' for value in (question, answers))
        )
    write_text(sample.annotations, "mc_val.csv", "\n".join(rows) + "\n")
    return sample


def egomcq(root: Path) -> MadeUpBenchmark:
    """One text and five clips; types 1 = inter, 2 = intra."""
    sample = make_sample(root, [f"{uid}.mp4" for uid in EGO4D_VIDEOS])

    def clip(uid: str, start: float, text: str) -> dict[str, Any]:
        times = {
            "video_dur": 1000.0,
            "narration_ind": 1,
            "narration_time": start,
            "clip_start": start,
            "clip_end": start + 0.5,
        }
        return {
            "clip_idx": 1,
            "video_uid": uid,
            **times,
            "clip_text": text,
            "tag_verb": "[1]",
            "tag_noun": "[2]",
        }

    content = {}
    for number in range(4):
        kind = 1 + number % 2
        uids = EGO4D_VIDEOS if kind == 1 else [EGO4D_VIDEOS[number]] * 5
        choices = {str(k): clip(uid, 0.1 * k, f"#C C does {k}") for k, uid in enumerate(uids)}
        answer = (number + 2) % 5
        content[str(number)] = {
            "query": clip(uids[answer], 0.1 * answer, f"#C C does {answer}"),
            "choices": choices,
            "answer": answer,
            "types": kind,
        }
    write_json(sample.annotations, "egomcq.json", content)
    return sample
