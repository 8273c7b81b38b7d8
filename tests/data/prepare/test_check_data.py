"""tools/check_data.py reports every kind of damage and shows what the model sees."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from allinone.data import TrainStream
from allinone.data.config import ClipConfig, DataConfig, DatasetSpec
from allinone.data.index import SCHEMA, VIDEO_SCHEMA, Index
from allinone.data.prepare.pipeline import PrepareOptions, prepare
from allinone.data.prepare.verify import distributions
from allinone.tools import check_data
from allinone.tools.inspection.pictures import (
    FRAME,
    GAP,
    bin_edges,
    contact_sheet,
    plot_distributions,
)
from tests.data.helpers import howto, small_demo
from tests.data.media import write_video


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("check")
    source = small_demo(folder / "source", 24)
    options = PrepareOptions(source, folder / "demo", shard_clips=10, workers=2)
    prepare(options, progress=False)
    return folder / "demo"


def test_an_undamaged_folder_passes_and_gets_pictures(
    prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--samples", "5", "--decodes", "6", "--image-size", "64"]
    assert check_data.main([str(prepared), *options]) == 0
    shown = capsys.readouterr().out
    assert "no damage found" in shown
    assert "words per caption" in shown
    for name in ("samples.png", "distributions.png"):
        with Image.open(prepared / "check" / name) as image:
            assert min(image.size) > 300
    options = ["--view", "eval", "--samples", "4", "--decodes", "0", "--quick"]
    assert check_data.main([str(prepared), *options]) == 0


DISTRIBUTIONS = {
    "empty": [],
    "one": [3.0],
    "equal": [25.0] * 9,
    "rates of 25/s": [25.0 + k * 4e-15 for k in range(10)],
    "neighbours": [0.1, float(np.nextafter(0.1, 1))],
    "NaN": [float("nan")] * 3,
    "NaN and infinity": [1.0, float("nan"), float("inf"), -float("inf"), 2.5],
    "zeros": [0.0, 0.0],
    "negative": [-5.5, -1.25, 3.0],
    "integers": [float(k) for k in range(61)],
    "decades": [1e-3, 1.0, 1e9],
    "zero and large": [0.0, 1e12],
    "large neighbours": [1e17, 1e17 + 16, 1e17 + 32],
    "nearly the largest": [-1.7e308, 0.0, 1.7e308],
    "denormal": [5e-324, 1e-300, 1.0],
}
"""Values that folders of real people may have, or that damaged indexes hold."""


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_any_distribution_is_plotted_with_every_value(name: str, tmp_path: Path) -> None:
    data = np.array(DISTRIBUTIONS[name], dtype=float)
    plot_distributions(tmp_path / "a.png", {str(k): data for k in range(6)}, name)
    with Image.open(tmp_path / "a.png") as image:
        assert min(image.size) > 300
    finite = data[np.abs(data) < 1e300]  # what matplotlib can draw
    edges = bin_edges(finite) if finite.size else None
    if edges is not None:
        assert np.all(np.diff(edges) > 0)
        assert np.histogram(finite, edges)[0].sum() == finite.size, "each is in one bin"
    elif finite.size:
        assert np.ptp(finite) <= 1e-6 * np.abs(finite).max()


def test_rates_that_differ_by_rounding_are_one(tmp_path: Path) -> None:
    """Clips of 25 frames per second and of different lengths."""
    rows = ["path,caption"]
    for number in range(4):
        write_video(tmp_path / f"{number}.mp4", frames=50 + 10 * number, rate=25)
        rows.append(f"{number}.mp4,clip {number}")
    (tmp_path / "my.csv").write_text("\n".join(rows))
    prepare(PrepareOptions(tmp_path / "my.csv", tmp_path / "out", workers=1), progress=False)
    rates = distributions(tmp_path / "out")["frame rate, 1/s"]
    assert len(set(rates.tolist())) > 1, "they differ by rounding"
    assert bin_edges(rates) is None
    options = ["--samples", "2", "--image-size", "64", "--workers", "1"]
    assert check_data.main([str(tmp_path / "out"), *options]) == 0


def test_the_contact_sheet_shows_the_pixels_of_the_batch(prepared: Path, tmp_path: Path) -> None:
    config = DataConfig(workers=0, dali_threads=1)
    stream = TrainStream([DatasetSpec(prepared)], ClipConfig(3, FRAME, 12), config, seed=2)
    device = torch.device("cpu")
    batch = next(stream.batches(first=0, rank=0, world=1, micro_batch=2, device=device))
    contact_sheet(tmp_path / "a.png", batch, config, "title")
    sheet = np.asarray(Image.open(tmp_path / "a.png"))
    pixels = batch.pixels[0, 1].permute(1, 2, 0).numpy() * config.std + config.mean
    wanted = (pixels.clip(0, 1) * 255).round()
    left = GAP + FRAME + 6
    found = sheet[62 + GAP : 62 + GAP + FRAME, left : left + FRAME]
    # the outermost pixels are the outline
    assert np.abs(found[1:-1, 1:-1] - wanted[1:-1, 1:-1]).max() <= 1


def _overwrite(out: Path) -> None:
    row = Index(out, "train")[3]
    with (out / row["shard"]).open("r+b") as file:
        file.seek(row["offset"] + row["size"] // 2)
        file.write(b"damage")


def _cut(out: Path) -> None:
    path = out / "shards" / "train-00001.tar"
    path.write_bytes(path.read_bytes()[:20_000])


def _flip_header(out: Path) -> None:
    path = out / "shards" / "train-00001.tar"
    with tarfile.open(path) as archive:
        place = archive.getmembers()[-1].offset
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def _cut_end(out: Path) -> None:
    path = out / "shards" / "train-00001.tar"
    content = path.read_bytes().rstrip(b"\0")
    path.write_bytes(content + bytes(-len(content) % 512))


def _edit(name: str, schema: pa.Schema, column: str, value: object) -> Callable[[Path], None]:
    def edit(out: Path) -> None:
        rows = pq.read_table(out / name, schema=schema).to_pylist()
        rows[0][column] = value
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), out / name)

    return edit


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (_overwrite, "are not those that were written"),
        (_cut, "train-00001.tar"),
        (_cut_end, "the end-of-archive block is missing"),
        (_flip_header, "is damaged"),
        (
            lambda out: (out / "shards" / "train-00002.tar").unlink(),
            "train-00002.tar cannot be read",
        ),
        (
            lambda out: shutil.copy(out / "shards" / "train-00000.tar", out / "shards" / "x.tar"),
            "x.tar is not in the index",
        ),
        (_edit("videos.parquet", VIDEO_SCHEMA, "offset", 1024), "at offset 1,024"),
        (_edit("videos.parquet", VIDEO_SCHEMA, "frames", 7), "the index says 7"),
        (_edit("index.parquet", SCHEMA, "video", 99), "refers to no stored file"),
        (_edit("index.parquet", SCHEMA, "captions", []), "has no caption"),
        (
            _edit("index.parquet", SCHEMA, "reason", "x"),
            "index.parquet has 23 good clips, dataset.json says 24",
        ),
        (lambda out: (out / "index.parquet").write_bytes(b"PAR1"), "the index cannot be read"),
        (lambda out: (out / "videos.arrow").unlink(), "the index cannot be read"),
    ],
)
def test_every_damage_is_reported_with_exit_code_one(
    prepared: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    harm: Callable[[Path], object],
    words: str,
) -> None:
    out = tmp_path / "demo"
    shutil.copytree(prepared, out)
    harm(out)
    options = ["--samples", "2", "--decodes", "24", "--image-size", "32"]
    assert check_data.main([str(out), *options]) == 1
    assert words in capsys.readouterr().out


def test_a_folder_that_is_not_prepared_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check_data.main([str(tmp_path)]) == 2
    assert "tools/prepare.py" in capsys.readouterr().err


def test_clip_lengths_are_those_of_windows_not_of_videos(tmp_path: Path) -> None:
    prepare(PrepareOptions(howto(tmp_path / "source"), tmp_path / "out", workers=1), progress=False)
    values = distributions(tmp_path / "out")
    assert sorted(values["clip length, s"].round()) == [3, 4, 4, 4]
    assert sorted(values["words per caption"]) == [2, 3, 3, 3]
