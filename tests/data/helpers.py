"""Small made-up sources that several tests prepare."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from allinone.common.paths import ROOT
from allinone.data.index import Index
from allinone.data.prepare.pipeline import PrepareOptions, PrepareSummary, prepare
from allinone.data.sources import SourceRow
from allinone.data.sources.plain_rows import PlainRows
from tests.data.media import write_image, write_video

DEMO = ROOT / "data" / "demo"


def small_demo(folder: Path, clips: int = 40) -> Path:
    """The first clips of the demo set, laid out as WebVid."""
    lines = (DEMO / "results_demo_train.csv").read_text().splitlines()[: clips + 1]
    folder.mkdir(parents=True)
    (folder / "results_demo_train.csv").write_text("\n".join(lines) + "\n")
    (folder / "videos").symlink_to(DEMO / "videos")
    return folder


def prepare_small_demo(folder: Path) -> Path:
    """Prepare 40 clips in three shards below `folder`; its source is `folder`/source."""
    source = small_demo(folder / "source")
    options = PrepareOptions(source, folder / "out", shard_clips=15, workers=2)
    summary = prepare(options, progress=False)
    assert summary.clips == {"train": 40}
    assert summary.bad == {}
    return folder / "out"


def contents(out: Path) -> dict[str, bytes]:
    """Every file of a prepared folder except those that hold the options, with its paths."""
    paths = [
        path
        for path in out.rglob("*")
        if path.is_file() and path.name not in ("prepare.json", "dataset.json")
    ]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in paths}


def unpacked(blocks: Iterable[SourceRow | PlainRows]) -> list[SourceRow]:
    """The rows of a source that is read in blocks, one by one."""
    rows: list[SourceRow] = []
    for block in blocks:
        if isinstance(block, SourceRow):
            rows.append(block)
        else:
            rows += [block.others.get(k) or block.row(k) for k in range(len(block))]
    return rows


def howto(folder: Path) -> Path:
    """HowTo100M: two videos of 10 s at 12 frames per second.

    Their lines are unordered, overlapping, empty, or beyond the end.
    """
    write_video(folder / "videos" / "a" / "AAA.webm", frames=120, codec="libvpx", gop=24)
    write_video(folder / "videos" / "B_-9.mp4", frames=120)
    captions = folder / "howto100m_csv"
    captions.mkdir()
    (captions / "AAA.csv").write_text(
        ",start,end,text\n0,5.0,9.5,press gently\n1,2.0,3.0,fold the edges\n2,2.5,2.5,over the"
        " filling\n3,7.0,30.0,until the end\n4,15.5,17,too"
        " late\n5,3,2,backwards\n6,1,2,\n7,nan,2,no time\n"
    )
    (captions / "B_-9.csv").write_text("begin,stop,words\n1,2,x\n")
    (captions / "gone.csv").write_text("start,end,text\n1,2,x\n")
    return folder


def record(name: str, words: int = 40) -> dict[str, Any]:
    noisy = [{"word": f"word{k}", "time": 0.25 * k} for k in range(words)]
    return {
        "info": {"id": name, "title": "t", "description": "d", "duration": 10},
        "subtitles": [*noisy, {"word": "&gt", "time": 1.0}, {"word": "amp;", "time": 1.0}],
        "denoised": [
            {"noisyasr": "", "cleanasr": " ".join(f"Word{k}" for k in range(words // 2))},
            {"noisyasr": "", "cleanasr": " ".join(f"word{k}," for k in range(words // 2, words))},
        ],
    }


def crc(url: str) -> str:
    return str(zlib.crc32(url.encode()))


def karpathy(folder: Path) -> Path:
    images = [
        {
            "filepath": f"{'val' if split == 'test' else 'train'}2014",
            "filename": f"{number}.jpg",
            "cocoid": number,
            "imgid": place,
            "split": split,
            "sentids": [],
            "sentences": [
                {"raw": f"caption {k} of {number}", "tokens": []} for k in range(captions)
            ],
        }
        for place, (number, split, captions) in enumerate(
            [(42, "train", 5), (43, "restval", 7), (44, "val", 5), (45, "test", 5)]
        )
    ]
    for image in images:
        write_image(folder / str(image["filepath"]) / str(image["filename"]))
    path = folder / "dataset_coco.json"
    path.write_text(
        json.dumps(
            {
                "dataset": "coco",
                "images": [*images, {"filename": "x"}, {**images[0], "filename": "../../x"}],
            }
        )
    )
    return path


def prepare_source(
    source: Path, out: Path, **options: Any
) -> tuple[PrepareSummary, dict[str, dict[str, Any]], dict[str, tuple[str, str]]]:
    """(summary, good rows by key, (reason, detail) of bad rows by key)."""
    summary = prepare(PrepareOptions(source, out, workers=2, **options), progress=False)
    good: dict[str, dict[str, Any]] = {}
    for split, number in summary.clips.items():
        if number:
            index = Index(out, split)
            good.update({index[item]["key"]: index[item] for item in range(len(index))})
    bad = [json.loads(line) for line in (out / "bad_clips.jsonl").read_text().splitlines()]
    return summary, good, {row["key"]: (row["reason"], row["detail"]) for row in bad}
