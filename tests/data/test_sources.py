"""Every official format on a small made-up sample: what is good comes out as it should, every trap
is a counted, named row or a clear DataError."""

from __future__ import annotations

import gzip
import json
import math
import shutil
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch

from allinone.common.errors import DataError
from allinone.data import EvalSet, TrainStream
from allinone.data.config import ClipConfig, DataConfig, DatasetSpec
from allinone.data.loading.index import Index, window
from allinone.data.prepare.pipeline import PrepareOptions, PrepareSummary, prepare
from allinone.data.prepare.worker import frames_between
from allinone.data.sources import ReadOptions, detect, read
from allinone.data.sources.reading import stream_json
from allinone.data.sources.howto100m import widen_to_four_seconds
from allinone.data.sources.yttemporal import align, speech_windows
from tests.data.media import read_frame_number, vfr_times, write_html, write_image, write_video

URL = "https://example.org/pictures/{}.jpg?size=big"


def run(
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


# -- WebVid ----------------------------------------------------------------------------------------


def test_webvid_columns_go_by_name_and_missing_page_dirs_and_bad_bytes_are_handled(
    tmp_path: Path,
) -> None:
    write_video(tmp_path / "videos" / "p1" / "7.mp4", frames=6)
    write_video(tmp_path / "videos" / "8.mp4", frames=6)
    text = (
        b'videoid,name,page_idx,page_dir,duration,contentUrl\n7,"a kite, red",1,p1,PT1S,u\n8,no'
        b" folder,1,,PT1S,u\n9,caf\xe9,1,p1,PT1S,u\n"
    )
    (tmp_path / "results_2M_val.csv").write_bytes(text)
    summary, good, bad = run(tmp_path, tmp_path / "out")
    assert {key: row["captions"] for key, row in good.items()} == {
        "val/7": ["a kite, red"],
        "val/8": ["no folder"],
    }
    assert bad["val/line-4"][0] == "bad_row"
    assert "iconv" in bad["val/line-4"][1]
    assert summary.official == ("results_2M_val.csv, val: 3 rows, but officially 5,000",)


# -- HowTo100M -------------------------------------------------------------------------------------


def test_the_four_second_rule_is_mil_nce_s() -> None:
    assert widen_to_four_seconds(12.5, 15.1) == (
        11.0,
        15.0,
    )  # 1.4 s too short: 11.8 to 15.8, cut to whole seconds
    assert widen_to_four_seconds(0.5, 1.5) == (0.0, 4.0)  # never before the beginning
    assert widen_to_four_seconds(14.8, 19.2) == (14.0, 19.0)
    assert widen_to_four_seconds(6.0, 6.0) == (4.0, 8.0)


def howto(folder: Path) -> Path:
    """Ten-second videos of 12 frames per second, their lines out of order, overlapping, empty,
    beyond the end."""
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


def test_howto100m_lines_become_windows_into_one_stored_video(tmp_path: Path) -> None:
    source = howto(tmp_path / "source")
    summary, good, bad = run(source, tmp_path / "out")
    assert {
        row["captions"][0]: (row["first_frame"], row["last_frame"]) for row in good.values()
    } == {
        "fold the edges": (0, 47),  # 2 to 3 s: 0.5 to 4.5, in whole seconds 0 to 4
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


def test_captions_of_json_equal_those_of_csv_and_the_raw_file_wins(tmp_path: Path) -> None:
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
    _, good, bad = run(source, tmp_path / "out")
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
    """Decoded pictures spell their number in the stored video."""
    source = howto(tmp_path / "source")
    run(source, tmp_path / "out")
    clip, config = (
        ClipConfig(3, 64, 12),
        DataConfig(workers=0, dali_threads=1, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0)),
    )
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
    assert all(len(numbers) > 10 for numbers in shown.values()), "frames vary inside of the window"


def test_times_become_frames_at_constant_and_variable_rate() -> None:
    assert frames_between(1.0, 2.0, 100, 10.0, None) == (10, 19)
    assert frames_between(1.05, 1.06, 100, 10.0, None) == (
        10,
        10,
    )  # shorter than a frame: the one on screen
    assert frames_between(9.5, 99.0, 100, 10.0, None) == (95, 99)
    assert frames_between(10.0, 11.0, 100, 10.0, None) is None
    times = vfr_times(24)
    first, last = frames_between(times[5], times[9], 24, 10.0, times) or (0, 0)
    assert (first, last) == (5, 8)
    assert frames_between(times[-1] + 5, times[-1] + 9, 24, 10.0, times) is None


# -- YT-Temporal -----------------------------------------------------------------------------------


def test_clean_words_take_the_time_of_the_noisy_word_that_they_stand_for() -> None:
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


def test_speech_is_cut_into_windows_of_ten_to_fifteen_seconds_at_sentence_ends() -> None:
    words = [(f"w{k}." if k == 23 else f"w{k}", 0.5 * k) for k in range(60)]
    lines = speech_windows(words)
    assert " ".join(line.text for line in lines).split() == [word for word, _ in words], (
        "each word once, in order"
    )
    assert lines[0].text.endswith("w23.")
    assert (lines[0].start_s, lines[0].end_s) == (0.0, 12.0)
    assert all(10 <= line.end_s - line.start_s <= 15 for line in lines[:-1])
    (alone,) = speech_windows([("hello", 3.0)])
    assert (alone.start_s, alone.end_s) == (3.0, 7.0)
    assert speech_windows([]) == []


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


def test_yttemporal_shards_are_read_and_damage_is_named(tmp_path: Path) -> None:
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
    whole = gzip.compress("\n".join(json.dumps(record(f"v{k}")) for k in range(50)).encode())
    (source / "yttemporal180m_001of100.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    _, good, bad = run(source, tmp_path / "out")
    rows = [row for key, row in good.items() if key.startswith("train/AbC12#")]
    assert " ".join(row["captions"][0] for row in rows).split()[:2] == ["Word0", "Word1"]
    assert "&gt" not in " ".join(row["captions"][0] for row in rows)
    assert sum(len(row["captions"][0].split()) for row in rows) == 40
    assert rows[0]["first_frame"] == 0
    reasons = {key: reason for key, (reason, _) in bad.items()}
    assert reasons["train/gone"] == reasons["train/untimed"] == "missing"
    assert reasons["train/silent"] == "no_caption"
    assert (
        sorted(
            reason for key, reason in reasons.items() if key.startswith("train/yttemporal180m_000")
        )
        == ["bad_row"] * 2
    )
    assert reasons["train/yttemporal180m_001of100.jsonl.gz-end"] == "list_cut_short"
    assert sum(reason == "duplicate" for reason in reasons.values()) == 1


# -- images ----------------------------------------------------------------------------------------


def crc(url: str) -> str:
    return str(zlib.crc32(url.encode()))


def test_cc3m_has_the_caption_first_and_cc12m_the_url(tmp_path: Path) -> None:
    three, twelve = tmp_path / "cc3m", tmp_path / "cc12m"
    urls = [URL.format(k) for k in range(5)]
    for folder in (three, twelve):
        write_image(folder / "a.jpg", 1)
        (folder / "training").mkdir()
        shutil.copy(
            folder / "a.jpg", folder / "training" / crc(urls[0])
        )  # as the common script names it: no extension
        write_image(folder / "training" / f"{crc(urls[1])}.png", 2)
        write_html(folder / "training" / crc(urls[2]))
    captions = ["a small boat", "a red mug", "a page", "dead link", "a <PERSON> and a dog"]
    pairs = list(zip(captions, urls, strict=True))
    (three / "Train_GCC-training.tsv").write_text(
        "".join(f"{c}\t{u}\n" for c, u in pairs) + "one field\n"
    )
    (twelve / "cc12m.tsv").write_bytes(
        b"".join(f"{u}\t{c}\n".encode() for c, u in pairs)
        + f"{urls[0]}\ttwice\n{urls[3]}\t\xff\n".encode("latin-1")
    )
    shutil.copy(twelve / "a.jpg", twelve / "training" / f"{crc(urls[4])}.jpg")
    for folder, lines in (
        (three, ["a small boat", "a red mug"]),
        (twelve, ["a small boat", "a red mug", "a person and a dog"]),
    ):
        _, good, bad = run(folder, folder.with_suffix(".out"), max_duration_s=None)
        assert [row["captions"][0] for row in good.values()] == lines
        assert [row["container"] for row in good.values()][:2] == ["jpg", "png"]
        assert {row["media"] for row in good.values()} == {"image"}
        reasons = {key: reason for key, (reason, _) in bad.items()}
        assert reasons[f"train/training/{crc(urls[2])}"] == "not_an_image"
        assert reasons[f"train/training/{crc(urls[3])}"] == "missing"
    assert reasons["train/line-7"] == "bad_row"
    assert sum(reason == "duplicate" for reason in reasons.values()) == 1
    shutil.copy(twelve / "cc12m.tsv", three / "Train_GCC-training.tsv")
    rows = list(read(three, "cc3m", ReadOptions()))
    assert all(row.reason == "bad_row" for row in rows)
    assert "CC12M" in (rows[0].detail or "")
    with pytest.raises(DataError, match=r"--names .*\{crc32\}"):
        list(read(twelve, "cc12m", ReadOptions(names="{sha}")))


def test_sbu_lists_are_parallel_and_flickrs_placeholder_is_refused(tmp_path: Path) -> None:
    urls = [URL.format(k) for k in range(24)]
    for k in range(3):
        write_image(tmp_path / "images" / f"{k}.jpg", k)
    for k in range(3, 23):
        shutil.copy(write_image(tmp_path / "unavailable.jpg", 99), tmp_path / "images" / f"{k}.jpg")
    content = {
        "image_urls": [*urls, "https://example.org/.."],
        "user_ids": ["u"] * 25,
        "captions": [f"photo {k}" for k in range(25)],
    }
    (tmp_path / "sbu-captions-all.json").write_text(json.dumps(content))
    summary, good, _bad = run(tmp_path, tmp_path / "out")
    assert [row["captions"][0] for row in good.values()] == ["photo 0", "photo 1", "photo 2"]
    assert summary.bad == {"placeholder": 20, "missing": 1, "bad_row": 1}
    old = tmp_path / "old"
    old.mkdir()
    (old / "SBU_captioned_photo_dataset_urls.txt").write_text("\n".join(urls[:2]) + "\n")
    (old / "SBU_captioned_photo_dataset_captions.txt").write_text(
        "first\u2028line\nsecond\n", encoding="utf-8"
    )
    assert [row.captions for row in read(old, detect(old), ReadOptions())] == [
        ("first line",),
        ("second",),
    ]
    (old / "SBU_captioned_photo_dataset_captions.txt").write_text("only one\n")
    with pytest.raises(DataError, match="one length"):
        list(read(old, "sbu", ReadOptions()))


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


def test_karpathys_splits_stay_apart_with_all_captions(tmp_path: Path) -> None:
    karpathy(tmp_path)
    summary, good, _bad = run(tmp_path, tmp_path / "out")
    assert {key: len(row["captions"]) for key, row in good.items()} == {
        "train/42": 5,
        "restval/43": 7,
        "val/44": 5,
        "test/45": 5,
    }
    assert summary.bad == {"bad_row": 2}
    assert "dataset_coco.json, restval: 1 rows, but officially 30,504" in summary.official
    (tmp_path / "dataset_coco.json").write_text('{"images": [{"split"')
    with pytest.raises(DataError, match="download it again"):
        list(read(tmp_path, "coco", ReadOptions()))


def test_visual_genome_phrases_join_their_image_and_cocos_test_images_can_be_left_out(
    tmp_path: Path,
) -> None:
    regions = [
        {
            "id": number,
            "regions": [
                {"region_id": k, "image_id": number, "phrase": text}
                for k, text in enumerate(phrases)
            ],
        }
        for number, phrases in (
            (17, ["a red mug", "a table", "a red mug"]),
            (18, ["sky"]),
            (19, []),
            (20, ["leak"]),
        )
    ]
    (tmp_path / "region_descriptions.json").write_text(json.dumps(regions))
    write_image(tmp_path / "VG_100K" / "17.jpg")
    write_image(tmp_path / "VG_100K_2" / "18.jpg")
    write_image(tmp_path / "VG_100K_2" / "20.jpg")
    coco = karpathy(tmp_path / "coco")
    coco.write_text(json.dumps({"images": json.loads(coco.read_text())["images"][:4]}))
    with pytest.raises(DataError, match=r"image_data\.json is needed"):
        run(tmp_path, tmp_path / "out", exclude=coco)
    (tmp_path / "image_data.json").write_text(
        json.dumps(
            [
                {"image_id": 17, "coco_id": 42},
                {"image_id": 18, "coco_id": None},
                {"image_id": 20, "coco_id": 45},
            ]
        )
    )
    _, good, bad = run(tmp_path, tmp_path / "out", exclude=coco)
    assert {key: row["captions"] for key, row in good.items()} == {
        "train/17": ["a red mug", "a table"],
        "train/18": ["sky"],
    }
    assert {key: reason for key, (reason, _) in bad.items()} == {
        "train/19": "no_caption",
        "train/20": "excluded",
    }


# -- all of them -----------------------------------------------------------------------------------


def test_big_json_is_read_in_pieces_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {"a": [1, 2.5, "x, y"], "b": {"c": "ü" * 40}, "d": 1234567890, "e": True}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    for size in (1, 3, 7, 1000):
        monkeypatch.setattr("allinone.data.sources.reading.CHUNK", size)
        assert dict(stream_json(path)) == content
    path.write_text("[10, [], 30 ]")
    assert list(stream_json(path)) == [("0", 10), ("1", []), ("2", 30)]
    for text in ("", "[1, 2", '{"a": 1 "b": 2}', '{"a" 1}', "[1 2]", "17", '{"a": [1,'):
        path.write_text(text)
        with pytest.raises(DataError, match="download it again"):
            list(stream_json(path))


def test_own_lists_may_name_splits_but_no_folders(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", frames=6)
    (tmp_path / "my.csv").write_text("path,caption,split\na.mp4,x,dev\na.mp4,x,../up\n,x,dev\n")
    _, good, bad = run(tmp_path / "my.csv", tmp_path / "out")
    assert set(good) == {"dev/a.mp4"}
    assert {reason for reason, _ in bad.values()} == {"bad_row"}
    assert len(bad) == 2


def test_own_lists_may_name_absolute_paths_but_official_ones_may_not(tmp_path: Path) -> None:
    video = write_video(tmp_path / "elsewhere" / "a.mp4", frames=6)
    (tmp_path / "lists").mkdir()
    own = tmp_path / "lists" / "my.csv"
    own.write_text(f"path,caption\n{video},x\n{video.parent}/../a.mp4,y\n/nowhere/b.mp4,z\n")
    _, good, bad = run(own, tmp_path / "out")
    (row,) = good.values()
    assert (row["captions"], row["source"]) == (["x"], str(video))
    assert {key: reason for key, (reason, _) in bad.items()} == {
        "train/line-3": "bad_row",
        "train//nowhere/b.mp4": "missing",
    }
    official = tmp_path / "lists" / "results_2M_val.csv"
    official.write_text(f"videoid,page_dir,name\na,{video.parent},x\n")
    assert [row.reason for row in read(official, "webvid", ReadOptions())] == ["bad_row"]


def test_lone_surrogates_and_control_characters_do_no_harm(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "1.jpg")
    content = {
        "image_urls": [URL.format(1)],
        "user_ids": [""],
        "captions": ["a \ud83d broken\n\temoji\0"],
    }
    (tmp_path / "sbu-captions-all.json").write_text(json.dumps(content))
    _, good, _ = run(tmp_path, tmp_path / "out")
    assert [row["captions"] for row in good.values()] == [["a ? broken emoji?"]]


def test_excluded_ids_are_counted(tmp_path: Path) -> None:
    source = howto(tmp_path / "source")
    (tmp_path / "test_ids.txt").write_text("AAA\n\n")
    _, good, bad = run(source, tmp_path / "out", exclude=tmp_path / "test_ids.txt")
    assert not good
    assert bad["train/AAA"][0] == "excluded"
    with pytest.raises(DataError, match="no such file"):
        run(source, tmp_path / "out2", exclude=tmp_path / "nothing")
