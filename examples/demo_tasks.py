#!/usr/bin/env python3
"""Make small data sets in the official formats of five benchmarks from the embedded clips.

    python examples/demo_tasks.py --out runs/demo-finetune/data

writes OUT/<benchmark>/annotations and OUT/<benchmark>/media for msrvtt (retrieval, QA, multiple
choice), tgif (action, transition and frameqa, as GIFs), vcr (stills of several figures with boxes
and outlines), kinetics (classes: action or job) and coco (stills with captions). All labels come
from attributes.csv. No clip is in two splits, and the test split combines people and skin tones
that training never shows together. Every call writes the same bytes.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import tyro

from allinone.common.atomic_io import publish_dir
from allinone.common.command_line import parse, run_command
from allinone.common.errors import InputError
from allinone.common.paths import ROOT
from allinone.examples import demo_stills
from allinone.examples.demo_clips import SPLITS, DemoClip, clips, frames, middle_frame, pick
from allinone.finetune.annotations.common import place_in_order
from allinone.finetune.annotations.msrvtt import FIRST_VIDEO

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GIF_FRAMES, GIF_MS = 8, 120
GIFS = {"train": 250, "test": 100}
"""Maximum number of GIFs per half and task; writing them is slow."""


def captions(clip: DemoClip) -> tuple[str, ...]:
    """The clip's own caption, then paraphrases."""
    tone = f" with {clip.tone} skin" if clip.tone else ""
    return (
        clip.name,
        f"a {clip.base}{tone}",
        f"an animation of a {clip.base}{tone and f', {clip.tone} skin tone'}",
    )


def questions(clip: DemoClip) -> list[tuple[str, str]]:
    """(question, answer) in the style of MSR-VTT-QA. No question contains its answer, and every
    answer is visible."""
    found = []
    if clip.doing:
        found += [
            (f"who is {clip.doing}?", clip.who),
            (f"what is the {clip.who} doing?", clip.doing),
        ]
    if clip.role:
        found += [
            (f"who is the {clip.role}?", clip.who),
            (f"what is the job of the {clip.who}?", clip.role),
        ]
    if clip.hair:
        found += [(f"what kind of hair does the {clip.who} have?", clip.hair)]
    if clip.who and clip.tone:
        found += [(f"what is the skin tone of the {clip.who}?", clip.tone)]
    return found


def _by_split(all_clips: Iterable[DemoClip]) -> dict[str, list[DemoClip]]:
    found: dict[str, list[DemoClip]] = {split: [] for split in SPLITS}
    for clip in all_clips:
        found[clip.split].append(clip)
    return found


def _text(path: Path, text: str) -> None:
    """Write a file without atomic renaming, because `publish_dir` renames the folder; line ends are
    kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())


def _lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    _text(path, "".join(f"{json.dumps(record)}\n" for record in records))


def _copy(clip: DemoClip, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(clip.path, path)


# -- MSR-VTT ---------------------------------------------------------------------------------------


def write_msrvtt(all_clips: Sequence[DemoClip], out: Path) -> None:
    """Captions in MSR-VTT's own two files, the 1k-A test, QA and JSFusion's multiple choice; video
    numbers are in the official range of each split."""
    numbered = {
        split: [(FIRST_VIDEO[split] + k, clip) for k, clip in enumerate(part)]
        for split, part in _by_split(all_clips).items()
    }
    halves: dict[str, dict[str, list[Any]]] = {
        name: {"videos": [], "sentences": []} for name in ("train_val", "test")
    }
    sentence = 0
    for split, part in numbered.items():
        half = halves["test" if split == "test" else "train_val"]
        for number, clip in part:
            _copy(clip, out / "media" / f"video{number}.mp4")
            # MSR-VTT's own name of the split
            name = {"val": "validate"}.get(split, split)
            half["videos"].append(
                {
                    "id": number,
                    "video_id": f"video{number}",
                    "category": 0,
                    "url": "",
                    "split": name,
                }
            )
            for text in captions(clip):
                half["sentences"].append(
                    {"sen_id": sentence, "video_id": f"video{number}", "caption": text}
                )
                sentence += 1
        _msrvtt_questions(out / "annotations" / f"{split}_qa.json", part)
    for name, half in halves.items():
        _text(out / "annotations" / f"{name}_videodatainfo.json", json.dumps({"info": {}, **half}))
    rows = [
        f'ret{k},msr{number},video{number},"{clip.name}"'
        for k, (number, clip) in enumerate(numbered["test"])
    ]
    _text(
        out / "annotations" / "MSRVTT_JSFUSION_test.csv",
        "\n".join(["key,vid_key,video_id,sentence", *rows]) + "\n",
    )
    rows = ["\t".join(("key", "vid_key", "a1", "a2", "a3", "a4", "a5", "answer"))]
    for k, (number, clip) in enumerate(numbered["test"]):
        options, answer = shuffled_options(
            clip.name,
            _other_captions(clip, [c for _, c in numbered["test"]]),
            f"choice {clip.name}",
        )
        rows.append("\t".join((f"ret{k}", f"msr{number}", *options, str(answer))))
    _text(out / "annotations" / "MSR_MC_test.csv", "\n".join(rows) + "\n")


def _msrvtt_questions(path: Path, part: Sequence[tuple[int, DemoClip]]) -> None:
    rows = [
        {
            "id": 10 * number + k,
            "video_id": number,
            "category_id": 0,
            "question": question,
            "answer": answer,
        }
        for number, clip in part
        for k, (question, answer) in enumerate(questions(clip))
    ]
    _text(path, json.dumps(rows))


def _other_captions(clip: DemoClip, others: Sequence[DemoClip]) -> list[str]:
    """Four captions of other videos: two with the same skin tone, two of any kind."""
    wrong = [other for other in others if other.name != clip.name]
    near = pick([other.name for other in wrong if other.tone == clip.tone], 2, f"near {clip.name}")
    return near + pick(
        [other.name for other in wrong if other.name not in near], 2, f"far {clip.name}"
    )


def shuffled_options(correct: str, wrong: Sequence[str], key: str) -> tuple[list[str], int]:
    """All options in an order that depends on `key`.

    Args:
        correct: The correct option.
        wrong: The other options.
        key: Decides the order.

    Returns:
        (options, index of the correct one).
    """
    options = pick([correct, *wrong], len(wrong) + 1, key)
    return options, options.index(correct)


# -- TGIF-QA ---------------------------------------------------------------------------------------


def write_tgif(all_clips: Sequence[DemoClip], out: Path) -> None:
    """The three tasks of TGIF-QA: the action; the second action after a transition between two
    clips of the same kind of person; frameqa with one-word answers."""
    actions = sorted({clip.doing for clip in all_clips if clip.doing})
    for half, splits in (("train", ("train", "val")), ("test", ("test",))):
        part = [clip for clip in all_clips if clip.split in splits and clip.doing]
        chosen = sorted(part, key=lambda clip: place_in_order(f"tgif {clip.name}"))[: GIFS[half]]
        shown = {clip.number: frames(clip, GIF_FRAMES) for clip in chosen}
        for clip in chosen:
            _write_gif(out / "media" / f"tumblr_{clip.number}.gif", shown[clip.number])
        _tgif_choices(
            out, f"{half.title()}_action", "ACTION", [_action(clip, actions) for clip in chosen]
        )
        _tgif_choices(
            out,
            f"{half.title()}_transition",
            "TRANSITION",
            _transitions(chosen, shown, actions, out / "media"),
        )
        words = [row for clip in chosen for row in _words(clip)]
        header = ("gif_name", "question", "answer", "type", "vid_id", "key", "description")
        rows = [
            (gif, question, answer, kind, f"FRAMEQA{k}", str(k), about)
            for k, (gif, question, answer, kind, about) in enumerate(words)
        ]
        _write_tgif(out / "annotations" / f"{half.title()}_frameqa_question.csv", header, rows)


def _write_gif(path: Path, shown: Sequence[NDArray[np.uint8]]) -> None:
    from PIL import Image

    pictures = [Image.fromarray(frame).quantize(128, Image.Quantize.FASTOCTREE) for frame in shown]
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=GIF_MS, loop=0)


def _action(clip: DemoClip, actions: Sequence[str]) -> tuple[str, str, list[str], int]:
    wrong = pick([action for action in actions if action != clip.doing], 4, f"action {clip.name}")
    options, answer = shuffled_options(clip.doing, wrong, f"action order {clip.name}")
    return f"tumblr_{clip.number}", f"What does the {clip.who} do 3 times ?", options, answer


def _transitions(
    chosen: Sequence[DemoClip],
    shown: dict[int, list[NDArray[np.uint8]]],
    actions: Sequence[str],
    media: Path,
) -> list[tuple[str, str, list[str], int]]:
    rows = []
    for first in chosen:
        fitting = [
            other
            for other in chosen
            if other.who == first.who and other.doing != first.doing and other.tone == first.tone
        ]
        if not fitting:
            continue
        # a hash decides: every run pairs the same clips
        then = min(fitting, key=lambda other: place_in_order(f"then {first.name}/{other.name}"))
        name = f"tumblr_{first.number}_{then.number}"
        _write_gif(media / f"{name}.gif", [*shown[first.number][::2], *shown[then.number][::2]])
        # the first action is the strongest wrong answer: a single frame may show it
        others = [action for action in actions if action not in (first.doing, then.doing)]
        wrong = [first.doing, *pick(others, 3, f"transition {name}")]
        options, answer = shuffled_options(then.doing, wrong, f"transition order {name}")
        rows.append((name, f"What does the {first.who} do after {first.doing} ?", options, answer))
    return rows


def _words(clip: DemoClip) -> list[tuple[str, str, str, str, str]]:
    gif = f"tumblr_{clip.number}"
    rows = [(gif, f"who is {clip.doing} ?", clip.who, "0", f"{clip.name} .")]
    if clip.tone:
        rows.append(
            (
                gif,
                f"what is the color of the skin of the {clip.who} ?",
                clip.tone,
                "2",
                f"{clip.name} .",
            )
        )
    return rows


def _tgif_choices(
    out: Path, name: str, kind: str, found: Sequence[tuple[str, str, list[str], int]]
) -> None:
    header = ("gif_name", "question", "a1", "a2", "a3", "a4", "a5", "answer", "vid_id", "key")
    rows = [
        (gif, question, *options, str(answer), f"{kind}{k}", str(k))
        for k, (gif, question, options, answer) in enumerate(found)
    ]
    _write_tgif(out / "annotations" / f"{name}_question.csv", header, rows)


def _write_tgif(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    # tabs and CRLF, as in the official files
    _text(path, "".join("\t".join(row) + "\r\n" for row in (header, *rows)))


# -- Kinetics, COCO --------------------------------------------------------------------------------


def write_kinetics(all_clips: Sequence[DemoClip], out: Path) -> None:
    """Classes are actions and jobs. The official val split holds the demo's test clips; the reader
    holds out validation clips from train."""
    chosen = {
        half: [
            clip
            for clip in all_clips
            if (clip.split == "test") == (half == "val") and clip.tone and (clip.doing or clip.role)
        ]
        for half in ("train", "val")
    }
    # a class without a training clip could never be predicted
    known = {clip.doing or clip.role for clip in chosen["train"]}
    for half, part in chosen.items():
        rows = ["label,youtube_id,time_start,time_end,split,is_cc"]
        for clip in part:
            label, video = clip.doing or clip.role, f"demo-{clip.number:06d}"
            if label in known:
                rows.append(f'"{label}",{video},0,2,{half},0')
                _copy(clip, out / "media" / half / label / f"{video}_{0:06d}_{2:06d}.mp4")
        _text(out / "annotations" / f"{half}.csv", "\n".join(rows) + "\n")


def write_coco(all_clips: Sequence[DemoClip], out: Path) -> None:
    """Karpathy's JSON: the middle frame of every clip, with its captions."""
    from PIL import Image

    images = []
    for number, clip in enumerate(all_clips):
        part = "train2014" if clip.split == "train" else "val2014"
        name = f"COCO_{part}_{clip.number:012d}.jpg"
        path = out / "media" / part / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(middle_frame(clip)).save(path, quality=92)
        sentences = [
            {
                "raw": f"{text.capitalize()}.",
                "tokens": text.lower().split(),
                "imgid": number,
                "sentid": 10 * number + k,
            }
            for k, text in enumerate(captions(clip))
        ]
        ids = [sentence["sentid"] for sentence in sentences]
        image = {
            "filepath": part,
            "filename": name,
            "cocoid": clip.number,
            "imgid": number,
            "split": clip.split,
        }
        images.append({**image, "sentids": ids, "sentences": sentences})
    _text(
        out / "annotations" / "dataset_coco.json", json.dumps({"dataset": "coco", "images": images})
    )


# -- VCR -------------------------------------------------------------------------------------------


def write_vcr(all_clips: Sequence[DemoClip], out: Path) -> None:
    """Stills of two to four figures. The official val split holds the demo's test clips; the
    official test split, whose labels are hidden, repeats a few of its stills."""
    parts = {"train": ("train", "val"), "val": ("test",)}
    for split, names in parts.items():
        rows = demo_stills.write(
            [clip for clip in all_clips if clip.split in names], split, out / "media"
        )
        _lines(out / "annotations" / f"{split}.jsonl", rows)
    hidden = [
        {key: value for key, value in row.items() if key not in ("answer_label", "rationale_label")}
        for row in rows[:20]
    ]
    _lines(
        out / "annotations" / "test.jsonl",
        [{**row, "annot_id": f"test-{k}", "img_id": f"test-{k}"} for k, row in enumerate(hidden)],
    )


WRITERS: dict[str, Callable[[Sequence[DemoClip], Path], None]] = {
    "msrvtt": write_msrvtt,
    "tgif": write_tgif,
    "vcr": write_vcr,
    "kinetics": write_kinetics,
    "coco": write_coco,
}


def write(demo: Path, out: Path, names: Sequence[str] = tuple(WRITERS)) -> list[Path]:
    """Write data sets that do not exist yet.

    Args:
        demo: data/demo of the source tree.
        out: Receives one folder per benchmark.
        names: Keys of WRITERS.

    Returns:
        The folders of all named benchmarks.
    """
    missing = [name for name in names if not (out / name).is_dir()]
    found = clips(demo) if missing else []
    for name in missing:
        publish_dir(out / name, lambda folder, name=name: WRITERS[name](found, folder))  # type: ignore[misc]
    return [out / name for name in names]


@dataclass(frozen=True)
class DemoTasksOptions:
    """Options of the data sets."""

    out: Path
    """Folder to write into, one folder per benchmark."""
    benchmarks: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[BENCHMARK ...]")
    ] = ()
    """Some of msrvtt, tgif, vcr, kinetics, coco (default: all)."""
    demo: Path = ROOT / "data" / "demo"
    """Folder of the embedded clips."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""

    def command() -> None:
        """Write the data sets and print their folders."""
        arguments = sys.argv[1:] if argv is None else argv
        prog = "examples/demo_tasks.py"
        options = parse(DemoTasksOptions, arguments, prog=prog, description=__doc__)
        unknown = [name for name in options.benchmarks if name not in WRITERS]
        if unknown:
            raise InputError(f"no benchmark {unknown[0]!r}; choose from: {', '.join(WRITERS)}")
        for path in write(options.demo, options.out, options.benchmarks or tuple(WRITERS)):
            print(path)

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
