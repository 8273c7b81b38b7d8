"""HowTo100M and YT-Temporal: timed captions become windows into stored videos."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import pytest
import torch

from allinone.common.errors import DataError
from allinone.data import EvalSet, TrainStream
from allinone.data.config import ClipConfig, DataConfig, DatasetSpec
from allinone.data.index import Index
from allinone.data.loading.clip_input import window
from allinone.data.prepare.pipeline import PrepareOptions, prepare
from allinone.data.prepare.worker import frames_between
from allinone.data.sources import detect
from allinone.data.sources.howto100m import widen_to_four_seconds
from allinone.data.sources.yttemporal import align, speech_windows
from tests.data.helpers import howto, prepare_source, record
from tests.data.media import read_frame_number, vfr_times, write_video


def test_short_lines_are_widened_as_in_mil_nce() -> None:
    # 1.4 s too short: 11.8 to 15.8, truncated to seconds
    assert widen_to_four_seconds(12.5, 15.1) == (11.0, 15.0)
    assert widen_to_four_seconds(0.5, 1.5) == (0.0, 4.0)  # never before the beginning
    assert widen_to_four_seconds(14.8, 19.2) == (14.0, 19.0)
    assert widen_to_four_seconds(6.0, 6.0) == (4.0, 8.0)


def test_howto100m_lines_become_windows_into_one_stored_video(tmp_path: Path) -> None:
    source = howto(tmp_path / "source")
    summary, good, bad = prepare_source(source, tmp_path / "out")
    assert {
        row["captions"][0]: (row["first_frame"], row["last_frame"]) for row in good.values()
    } == {
        "fold the edges": (0, 47),  # 2 to 3 s: 0.5 to 4.5, truncated 0 to 4
        "over the filling": (0, 47),
        "press gently": (60, 107),
        "until the end": (84, 119),
    }
    assert len({(row["shard"], row["offset"]) for row in good.values()}) == 1
    size = (source / "videos" / "a" / "AAA.webm").stat().st_size
    assert size <= summary.bytes < size + 16_384, "the video is stored once"
    assert {reason for reason, _ in bad.values()} == {
        "beyond_end",
        "bad_window",
        "no_caption",
        "bad_captions",
        "missing",
    }
    assert bad["train/gone"][0] == "missing"
    assert "begin, stop, words" in bad["train/B_-9"][1], (
        "a video without a usable line is not stored"
    )
    assert summary.official == (
        "3 videos listed, 1 of them stored; officially about 1,238,911",
        "8 captions of the stored videos, 4 of them good; officially about 136,600,000",
    )
    # 1 of 3 videos is stored, and of its 8 caption lines 4 are good
    assert summary.kept_share == pytest.approx(1 / 3 * 4 / 8)


def test_json_captions_equal_csv_ones_and_raw_is_preferred(tmp_path: Path) -> None:
    source = howto(tmp_path / "source")
    lines = {"start": [5.0, 2.0], "end": [9.5, 3.0], "text": ["press gently", "fold the edges"]}
    (source / "caption.json").write_text(
        json.dumps({"AAA": {"start": [1], "end": [2], "text": ["stop words gone"]}})
    )
    (source / "raw_caption.json").write_text(
        json.dumps(
            {
                "AAA": lines,
                "B_-9": {"start": [1], "end": [2, 3], "text": ["x"]},
                "none": {},
                "gone": lines,
            }
        )
    )
    assert detect(source) == "howto100m"
    _, good, bad = prepare_source(source, tmp_path / "out")
    found = [(row["captions"][0], row["first_frame"], row["last_frame"]) for row in good.values()]
    assert found == [("fold the edges", 0, 47), ("press gently", 60, 107)]
    assert {key: reason for key, (reason, _) in bad.items()} == {
        "train/B_-9": "bad_captions",
        "train/none": "no_caption",
        "train/gone": "missing",
    }
    (source / "raw_caption.json").write_text(json.dumps({"AAA": lines})[:-20])
    with pytest.raises(DataError, match="cut short"):
        prepare(PrepareOptions(source, tmp_path / "out2", workers=1), progress=False)


def test_frames_of_a_clip_stay_inside_its_window(tmp_path: Path) -> None:
    """The pixels of every frame encode its number in the stored video."""
    source = howto(tmp_path / "source")
    prepare_source(source, tmp_path / "out")
    clip = ClipConfig(3, 64, 12)
    config = DataConfig(workers=0, dali_threads=1, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    stream = TrainStream([DatasetSpec(tmp_path / "out")], clip, config, seed=1)
    index = Index(tmp_path / "out", "train")
    rows = {index[item]["key"]: index[item] for item in range(len(index))}
    shown: dict[str, set[int]] = {key: set() for key in rows}
    batches = stream.batches(first=0, rank=0, world=1, micro_batch=4, device=torch.device("cpu"))
    evaluation = EvalSet(DatasetSpec(tmp_path / "out"), clip, config)
    mean, std = torch.tensor(config.mean), torch.tensor(config.std)
    for batch in [
        *(next(batches) for _ in range(12)),
        *evaluation.batches(rank=0, world=1, batch_size=4, device=torch.device("cpu")),
    ]:
        for key, pixels, caption in zip(batch.clips, batch.pixels, batch.captions, strict=True):
            numbers = [
                read_frame_number(((frame.permute(1, 2, 0) * std + mean) * 255).numpy())
                for frame in pixels
            ]
            first, available = window(rows[key])
            assert all(first <= number < first + available for number in numbers)
            assert numbers == sorted(numbers)
            assert caption == rows[key]["captions"][0]
            shown[key].update(numbers)
    batches.close()  # type: ignore[attr-defined]
    assert all(len(numbers) > 10 for numbers in shown.values()), "frames vary inside the window"


def test_times_become_frames_at_constant_and_variable_rate() -> None:
    assert frames_between(1.0, 2.0, 100, 10.0, None) == (10, 19)
    # shorter than a frame: the one on screen
    assert frames_between(1.05, 1.06, 100, 10.0, None) == (10, 10)
    assert frames_between(9.5, 99.0, 100, 10.0, None) == (95, 99)
    assert frames_between(10.0, 11.0, 100, 10.0, None) is None
    times = vfr_times(24)
    first, last = frames_between(times[5], times[9], 24, 10.0, times) or (0, 0)
    assert (first, last) == (5, 8)
    assert frames_between(times[-1] + 5, times[-1] + 9, 24, 10.0, times) is None


def test_clean_words_get_the_time_of_their_noisy_words() -> None:
    noisy = [
        ("so", 0.0),
        ("today", 0.5),
        ("were", 1.0),
        ("gonna", 1.5),
        ("make", 2.0),
        ("bread", 2.5),
    ]
    clean = ["So,", "today", "we're", "going", "to", "make", "bread."]
    assert align(noisy, clean) == [
        ("So,", 0.0),
        ("today", 0.5),
        ("we're", 1.0),
        ("going", 1.5),  # one word became two: both at its time
        ("to", 1.5),
        ("make", 2.0),
        ("bread.", 2.5),
    ]
    assert align([], clean) == []


def test_speech_is_cut_at_sentence_ends_after_10_to_15_s() -> None:
    words = [(f"w{k}." if k == 23 else f"w{k}", 0.5 * k) for k in range(60)]
    lines = speech_windows(words)
    spoken = " ".join(line.text for line in lines).split()
    assert spoken == [word for word, _ in words], "each word once, in order"
    assert lines[0].text.endswith("w23.")
    assert (lines[0].start_s, lines[0].end_s) == (0.0, 12.0)
    assert all(10 <= line.end_s - line.start_s <= 15 for line in lines[:-1])
    (alone,) = speech_windows([("hello", 3.0)])
    assert (alone.start_s, alone.end_s) == (3.0, 7.0)
    assert speech_windows([]) == []


def test_damaged_yttemporal_shards_are_reported(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_video(tmp_path / "other disk" / "AbC12.mp4", frames=120)
    write_video(source / "videos" / "silent.mp4", frames=24)
    (source / "videos" / "sub").symlink_to(tmp_path / "other disk")
    (source / "videos" / "loop").symlink_to(source / "videos")
    lines = [json.dumps(record(name)) for name in ("AbC12", "gone", "AbC12")]
    lines.insert(1, '{"info": {}}')
    lines.insert(1, "not json")
    lines.append(json.dumps({"info": {"id": "silent"}, "subtitles": [], "denoised": []}))
    lines.append(
        json.dumps({"subtitles": [{"word": "a", "time": math.nan}], "info": {"id": "untimed"}})
    )
    (source / "yttemporal180m_000of100.jsonl.gz").write_bytes(
        gzip.compress("\n".join(lines).encode())
    )
    complete = gzip.compress("\n".join(json.dumps(record(f"v{k}")) for k in range(50)).encode())
    (source / "yttemporal180m_001of100.jsonl.gz").write_bytes(complete[: len(complete) // 2])
    _, good, bad = prepare_source(source, tmp_path / "out")
    rows = [row for key, row in good.items() if key.startswith("train/AbC12#")]
    assert " ".join(row["captions"][0] for row in rows).split()[:2] == ["Word0", "Word1"]
    assert "&gt" not in " ".join(row["captions"][0] for row in rows)
    assert sum(len(row["captions"][0].split()) for row in rows) == 40
    assert rows[0]["first_frame"] == 0
    reasons = {key: reason for key, (reason, _) in bad.items()}
    assert reasons["train/gone"] == reasons["train/untimed"] == "missing"
    assert reasons["train/silent"] == "no_caption"
    of_first = [key for key in reasons if key.startswith("train/yttemporal180m_000")]
    assert [reasons[key] for key in of_first] == ["bad_row"] * 2
    assert reasons["train/yttemporal180m_001of100.jsonl.gz-end"] == "list_cut_short"
    assert sum(reason == "duplicate" for reason in reasons.values()) == 1
