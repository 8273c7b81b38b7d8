"""Panda-70M, InternVid and OpenVid-1M, in a few lines of their official form."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from allinone.data.sources import NARRATIONS, ReadOptions, detect, read
from allinone.data.sources.clip_lists import seconds
from tests.data.helpers import prepare_source
from tests.data.media import write_video

PANDA = """\
videoID,url,timestamp,caption,matching_score
AAA,https://www.youtube.com/watch?v=AAA,"[['0:00:01.000', '0:00:02.000'], ['0:00:05.000', \
'0:00:04.000'], ['0:00:00.500', '0:00:01.500'], ['0:01:00.000', '0:01:01.000']]",\
"['it is a man, ""quoted""', 'backwards', ""a woman's dog"", 'beyond the end']",\
"[0.4, 0.5, 0.6, 0.7]"
BBB,u,"[['0:00:00.000', '0:00:01.000']]","['one', 'two']",[0.5]
CCC,u,"__import__('os').getcwd()",['x'],[0.5]
"""


def test_times_are_hours_minutes_seconds() -> None:
    assert seconds("0:00:26.559") == pytest.approx(26.559)
    assert seconds("00:03:10.567") == pytest.approx(190.567)
    assert seconds("1:02:03") == 3723.0
    assert seconds(12.5) == 12.5
    for wrong in ("12.5", "0:61:00", "-0:00:01", "", None, True, ["0:00:01"]):
        assert math.isnan(seconds(wrong)), wrong


def test_panda_70ms_lists_in_fields_become_windows(tmp_path: Path) -> None:
    write_video(tmp_path / "videos" / "part" / "AAA.webm", frames=36, codec="libvpx", gop=12)
    (tmp_path / "panda70m_training_2m.csv").write_text(PANDA)
    assert detect(tmp_path) == "panda70m"
    _, good, bad = prepare_source(tmp_path, tmp_path / "out")
    found = {r["captions"][0]: (r["first_frame"], r["last_frame"]) for r in good.values()}
    # 12 frames per second; the window is the clip's, not widened
    assert set(found) == {'it is a man, "quoted"', "a woman's dog"}
    assert found["a woman's dog"][0] == 6
    assert found['it is a man, "quoted"'][0] == 12
    assert len({(row["shard"], row["offset"]) for row in good.values()}) == 1, "stored once"
    reasons = {key: reason for key, (reason, _) in bad.items()}
    assert sorted(reasons.values()) == ["bad_row", "bad_row", "bad_window", "beyond_end"]
    details = " ".join(detail for _, detail in bad.values())
    assert "1 times, but 2 captions" in details
    assert "timestamp is not a list as Python writes it" in details, "nothing is executed"


def test_panda_70ms_splits_come_from_the_file_names(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    row = PANDA.splitlines()[0] + "\nAAA,u,[],[],[]\n"
    for part in ("training_10m", "validation", "testing"):
        (tmp_path / f"panda70m_{part}.csv").write_text(row)
    rows = read(tmp_path, "panda70m", ReadOptions())
    assert [row.split for row in rows] == ["test", "train", "val"]


def clip(video: str, start: str, end: str, caption: str) -> str:
    record = {
        "YoutubeID": video,
        "Start_timestamp": start,
        "End_timestamp": end,
        "Caption": caption,
        "Aesthetic_Score": 4.3,
        "UMT_Score": 0.45,
    }
    return json.dumps(record)


def test_internvids_clips_of_a_video_are_brought_together(tmp_path: Path) -> None:
    for name in ("AAA", "BBB"):
        write_video(tmp_path / "videos" / f"{name}.mp4", frames=36)
    lines = [
        clip("AAA", "00:00:01.000", "00:00:02.000", "second"),
        clip("BBB", "00:00:00.000", "00:00:01.000", "of another video"),
        "",
        '{"YoutubeID": "AAA"}',
        "{broken",
        clip("AAA", "00:00:00.000", "00:00:01.000", "first"),
        clip("AAA", "00:00:01.000", "00:00:02.000", " "),
        clip("gone", "00:00:01.000", "00:00:02.000", "no such video"),
    ]
    path = tmp_path / "InternVid-10M-flt.jsonl"
    path.write_text("\n".join(lines))
    assert detect(path) == detect(tmp_path) == "internvid"
    _, good, bad = prepare_source(path, tmp_path / "out")
    assert sorted(row["captions"][0] for row in good.values()) == [
        "first",
        "of another video",
        "second",
    ]
    of_a = [row for row in good.values() if row["captions"][0] in ("first", "second")]
    assert len({(row["shard"], row["offset"]) for row in of_a}) == 1, "stored once"
    assert bad["train/gone"][0] == "missing"
    assert bad["train/line-4"][1] == "no text in Start_timestamp, End_timestamp, Caption"
    assert bad["train/line-5"][1] == "the line is not JSON in UTF-8"
    assert sorted(reason for reason, _ in bad.values()) == [
        "bad_row",
        "bad_row",
        "missing",
        "no_caption",
    ]


def test_a_line_that_is_too_long_is_one_bad_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("allinone.data.sources.clip_lists.LONGEST_LINE", 200)
    (tmp_path / "videos").mkdir()
    path = tmp_path / "a.jsonl"
    long = clip("AAA", "00:00:01.000", "00:00:02.000", "x" * 1000)
    short = clip("BBB", "00:00:01.000", "00:00:02.000", "y")
    path.write_text(f"{short}\n{long}\n{short}\n")
    rows = list(read(path, "internvid", ReadOptions()))
    assert [(row.id, row.reason) for row in rows] == [("line-2", "bad_row"), ("BBB", "missing")]


def test_openvids_list_names_files_in_one_folder(tmp_path: Path) -> None:
    write_video(tmp_path / "video" / "IIvwqskxtdE_0.mp4", frames=6)
    head = "video,caption,aesthetic score,motion score,temporal consistency score,camera motion"
    head += ",frame,fps,seconds\n"
    rows = 'IIvwqskxtdE_0.mp4,"A man, in a suit.",5.1,3.2,0.99,static,120,30.0,4.0\n'
    (tmp_path / "OpenVid-1M.csv").write_text(head + rows + "gone.mp4,x,5,3,1,static,1,30,1\n")
    (tmp_path / "OpenVidHD.csv").write_text(head + rows)
    assert detect(tmp_path) == "openvid"
    summary, good, bad = prepare_source(tmp_path, tmp_path / "out")
    assert [row["captions"] for row in good.values()] == [["A man, in a suit."]]
    assert [reason for reason, _ in bad.values()] == ["missing"]
    assert summary.official == ("OpenVid-1M.csv, train: 2 rows, but officially about 1,000,000",), (
        "OpenVidHD lists a part of the same videos"
    )


def test_every_narrated_parser_can_be_named_in_a_listing() -> None:
    assert "clip_lines" in NARRATIONS
