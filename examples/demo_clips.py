"""The embedded clips with their attributes (data/demo/attributes.csv), split for fine-tuning, and
their frames."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from allinone.common.errors import InputError
from allinone.finetune.annotations.common import place_in_order

SPLITS = ("train", "val", "test")
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
WHO = ("man", "woman", "person")
ROLES = (
    "artist",
    "astronaut",
    "construction worker",
    "cook",
    "detective",
    "elf",
    "factory worker",
    "fairy",
    "farmer",
    "firefighter",
    "guard",
    "health worker",
    "judge",
    "mage",
    "mechanic",
    "office worker",
    "pilot",
    "police officer",
    "scientist",
    "singer",
    "student",
    "superhero",
    "supervillain",
    "teacher",
    "vampire",
)
HAIR = ("blond hair", "curly hair", "red hair", "white hair", "beard", "bald")
_ACTION = re.compile(r"(?:mountain )?[a-z]+ing(?: .+)?")
VAL_SHARE = 0.5
"""Share of the people in the demo's training set with one skin tone held out for validation."""


@dataclass(frozen=True)
class DemoClip:
    """One clip and its attributes; an attribute that does not apply is empty."""

    number: int
    """Its video id in data/demo."""
    split: str
    name: str
    """The caption, for example "woman running with dark skin tone"."""
    base: str
    """The caption without the skin tone."""
    who: str
    """man, woman or person."""
    doing: str
    """running, getting haircut, …"""
    role: str
    """farmer, cook, …"""
    hair: str
    tone: str
    group: str
    path: Path


def clips(folder: Path) -> list[DemoClip]:
    """All clips that fine-tuning uses, ordered by number.

    test is the demo's val split: one skin tone of each of 245 people, a combination that does not
    occur in pre-training. val is one more skin tone of about half of these people. train is the
    rest of the demo's train split. The demo's val_unseen split is not used, because no training
    set has its names.

    Args:
        folder: data/demo of the source tree.

    Raises:
        InputError: The folder holds no attributes.csv.
    """
    path = folder / "attributes.csv"
    if not path.is_file():
        raise InputError(
            f"{folder} lacks attributes.csv: --demo must be the folder data/demo of the source tree"
        )
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] in ("train", "val")]
    held_out = _held_out(rows)
    return [
        _clip(folder, row, held_out) for row in sorted(rows, key=lambda row: int(row["videoid"]))
    ]


def _held_out(rows: Sequence[dict[str, str]]) -> set[str]:
    """Names of the training clips used for validation; at least two skin tones of a person stay."""
    tones: dict[str, list[str]] = {}
    for row in rows:
        if row["split"] == "train" and row["tones"]:
            tones.setdefault(row["base_name"], []).append(row["name"])
    # hashes of names and not a random generator: adding a clip does not move others between splits
    return {
        min(names, key=lambda name: place_in_order(f"tone {name}"))
        for base, names in tones.items()
        if len(names) > 2 and place_in_order(f"val {base}") < VAL_SHARE
    }


def _clip(folder: Path, row: dict[str, str], held_out: set[str]) -> DemoClip:
    base, number = row["base_name"], int(row["videoid"])
    first, _, rest = base.partition(" ")
    who = first if first in WHO else "person" if base in ROLES else ""
    what = (rest if first in WHO else base) if who else ""
    # as WebVid's page_dir: folders of 200 clips, named by the numbers of the first and last one
    page = f"{200 * ((number - 1) // 200) + 1:06d}_{200 * ((number - 1) // 200) + 200:06d}"
    return DemoClip(
        number=number,
        split="test" if row["split"] == "val" else "val" if row["name"] in held_out else "train",
        name=row["name"],
        base=base,
        who=who,
        doing=what if _ACTION.fullmatch(what) else "",
        role=what if what in ROLES else "",
        hair=what if what in HAIR else "",
        tone=row["tones"].removesuffix(" skin tone"),
        group=row["group"],
        path=folder / "videos" / page / f"{number}.mp4",
    )


def frames(clip: DemoClip, wanted: int) -> list[NDArray[np.uint8]]:
    """The middle frames of `wanted` equal parts of a clip, RGB [128, 128, 3]."""
    from allinone.data.decoding.frames import Timeline, decode_frames
    from allinone.data.loading.sampling import middle_frames
    from allinone.data.prepare.probe import Limits, probe

    content = clip.path.read_bytes()
    facts = probe(content, "mp4", Limits())
    chosen = middle_frames(facts["frames"], wanted)
    return list(decode_frames(content, chosen, Timeline.of(facts), timeout_s=30.0))


@lru_cache(maxsize=4096)
def middle_frame(clip: DemoClip) -> NDArray[np.uint8]:
    """The clip's middle frame; cached (at most 200 MiB) because several stills show one clip."""
    return frames(clip, 1)[0]


def pick(items: Sequence[str], size: int, key: str) -> list[str]:
    """Choose items in pseudo-random order.

    Args:
        items: Texts.
        size: How many to choose, at most.
        key: The order depends only on the texts and this key, so every run gives the same.

    Returns:
        The chosen items, in that order.
    """
    return sorted(items, key=lambda item: place_in_order(f"{key}/{item}"))[:size]
