"""Mutated lists of every source, their timed captions, tars and --exclude lists.

python -m tests.fuzz.lists --inputs 10000
"""

from __future__ import annotations

import gzip
import json
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from allinone.data.prepare.listing import _batch, _rows
from allinone.data.prepare.probe import ProbeError
from allinone.data.prepare.worker import _lines
from allinone.data.sources import ReadOptions, excluded_ids, read, read_blocks
from tests.data.helpers import howto, karpathy, record, unpacked
from tests.data.media import write_image
from tests.fuzz.runner import Fuzzer, main

CAPTIONS = ["a dog", 'a "quoted", one', "two\nlines", "caf\u00e9", '"', ""]


def make_seeds(folder: Path) -> Sequence[Path]:
    """One source of each format; the file name's folder is the format."""
    own = folder / "csv"
    own.mkdir(parents=True)
    quoted = ['"' + text.replace('"', '""') + '"' for text in CAPTIONS]
    rows = "".join(f"{k}.mp4,{text},train\n" for k, text in enumerate(quoted))
    (own / "my.csv").write_text("path,caption,split\n" + rows, encoding="utf-8")
    plain = [text.replace("\n", " ") for text in CAPTIONS]
    tsv = "".join(f"{k}.mp4\t{text}\n" for k, text in enumerate(plain))
    (own / "my.tsv").write_text("path\tcaption\n" + tsv, encoding="utf-8")
    for name in ("webvid", "cc3m", "cc12m", "sbu", "vg", "yttemporal", "webdataset", "exclude"):
        (folder / name).mkdir()
    web = "".join(f"{k},{text},0_1\n" for k, text in enumerate(quoted))
    (folder / "webvid/results_2M_val.csv").write_text("videoid,name,page_dir\n" + web)
    cc3m = "".join(f"{text}\thttp://x/{k}.jpg\n" for k, text in enumerate(plain))
    (folder / "cc3m/Train_GCC-training.tsv").write_text(cc3m)
    cc12m = "".join(f"http://x/{k}.jpg\t{text}\n" for k, text in enumerate(plain))
    (folder / "cc12m/cc12m.tsv").write_text(cc12m)
    urls = [f"http://x/{k}.jpg" for k in range(len(plain))]
    (folder / "sbu/sbu-captions-all.json").write_text(
        json.dumps({"image_urls": urls, "captions": plain})
    )
    regions = [{"image_id": 1, "phrase": text} for text in plain]
    (folder / "vg/region_descriptions.json").write_text(
        json.dumps([{"id": k, "regions": regions} for k in range(3)])
    )
    (folder / "yttemporal/videos").mkdir()
    (folder / "yttemporal/videos/AAA.mp4").touch()
    lines = "".join(json.dumps(record(name)) + "\n" for name in ("AAA", "BBB"))
    (folder / "yttemporal/plain.jsonl").write_text(lines)
    with gzip.GzipFile(folder / "yttemporal/yttemporal180m_000of100.jsonl.gz", "w", mtime=0) as f:
        f.write(lines.encode())
    write_image(folder / "a.jpg")
    with tarfile.open(folder / "webdataset/0.tar", "w") as archive:
        for k, text in enumerate(plain):
            (folder / "caption").write_text(text)
            (folder / "facts").write_text(json.dumps({"caption": [text, k]}))
            archive.add(folder / "a.jpg", f"{k}.jpg")
            archive.add(folder / "caption", f"{k}.txt")
            archive.add(folder / "facts", f"{k}.json")
    coco = karpathy(folder / "coco")
    howto(folder / "howto100m")
    times = {"start": [0, 2.5], "end": [2, 5], "text": ["one", "two"]}
    raw = folder / "howto100m/raw_caption.json"
    raw.write_text(json.dumps({"AAA": times, "B_-9": times}))
    (folder / "exclude/ids.txt").write_text("0.mp4\n1.mp4\n")
    return [
        own / "my.csv",
        own / "my.tsv",
        folder / "webvid/results_2M_val.csv",
        folder / "cc3m/Train_GCC-training.tsv",
        folder / "cc12m/cc12m.tsv",
        folder / "sbu/sbu-captions-all.json",
        folder / "vg/region_descriptions.json",
        folder / "yttemporal/plain.jsonl",
        folder / "yttemporal/yttemporal180m_000of100.jsonl.gz",
        folder / "webdataset/0.tar",
        coco,
        raw,
        folder / "howto100m/howto100m_csv/AAA.csv",
        folder / "exclude/ids.txt",
    ]


def check(folder: Path, path: Path, content: bytes, number: int) -> str:
    """As preparing reads a source, until its files would be decoded."""
    path.write_bytes(content)
    name = path.relative_to(folder).parts[0]
    source = path
    if name == "exclude":
        excluded_ids(path, folder / "csv/my.csv", "csv")
        return "accepted"
    if path.name == "plain.jsonl":
        source = path.with_name("mutated.jsonl.gz")
        source.write_bytes(gzip.compress(content, 1))
    if path.name == "AAA.csv":
        (folder / "howto100m/raw_caption.json").rename(folder / "howto100m/hidden")
        source = folder / "howto100m"
    try:
        rows = list(read(source, name, ReadOptions()))
        assert unpacked(read_blocks(source, name, ReadOptions())) == rows
        if rows:
            assert _rows(_batch("train-00000", rows)) == rows
        for row in rows:
            if row.narration is not None and row.reason is None:
                try:
                    _lines(row.narration)
                except ProbeError:
                    continue
    finally:
        if path.name == "AAA.csv":
            (folder / "howto100m/hidden").rename(folder / "howto100m/raw_caption.json")
    return "accepted" if any(row.reason is None for row in rows) else "refused"


if __name__ == "__main__":
    sys.exit(main(Fuzzer("lists", make_seeds, check)))
