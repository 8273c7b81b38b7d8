"""The figure commands: cloze, clusters and rolls."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image

from allinone.model import SIZES
from allinone.tools import cloze, clusters, predict, rolls
from allinone.tools.inspection.options import Size
from tests.data.media import write_html, write_image
from tests.tools.conftest import tiny_model

TEXT = "a [MASK] with a [mask]"


def test_size_options_list_every_size_of_the_model() -> None:
    assert get_args(Size) == tuple(SIZES)


def test_figures_are_written_as_png_and_as_self_contained_pages(
    checkpoint: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--checkpoint", str(checkpoint), "--video", str(video)]
    assert (
        cloze.main([*common, "--text", "a [MASK=red] [MASK]", "--out", str(tmp_path / "cloze.png")])
        == 0
    )
    second = ["--compare", str(checkpoint), "--names", "left", "right"]
    assert clusters.main([*common, *second, "--out", str(tmp_path / "clusters")]) == 0
    assert (
        rolls.main([*common, "--out", str(tmp_path / "roll"), "--formats", "png", "html", "webp"])
        == 0
    )
    written = capsys.readouterr().out.split()
    assert {Path(path).name for path in written} == {
        *(
            "cloze.png",
            "cloze.html",
            "clusters.png",
            "clusters.html",
            "roll.png",
            "roll.html",
            "roll.webp",
        )
    }
    for path in map(Path, written):
        if path.suffix == ".html":
            page = path.read_text()
            assert "data:image/png;base64," in page
            assert 'src="http' not in page
            assert "href=" not in page
        else:
            with Image.open(path) as picture:
                assert picture.width >= 760
    assert re.search(r"hidden was red, rank [\d,]+[;\"]", (tmp_path / "cloze.html").read_text())
    assert "left" in (tmp_path / "clusters.html").read_text()


def test_roll_figures_need_no_weights(video: Path, tmp_path: Path) -> None:
    options = [
        "--size",
        "nano",
        "--frames",
        "4",
        "--patch-order",
        "shuffled",
        "--video",
        str(video),
    ]
    assert rolls.main([*options, "--out", str(tmp_path / "roll"), "--formats", "html"]) == 0
    assert "another one in each frame" in (tmp_path / "roll.html").read_text()


BAD_VIDEOS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing.mp4": (lambda path: None, "does not exist"),
    "page.mp4": (write_html, "a text file, not a video"),
    "folder.mp4": (Path.mkdir, "is a folder"),
    "empty.mp4": (Path.touch, "the file has no content"),
}


@pytest.mark.parametrize("name", BAD_VIDEOS)
def test_an_unusable_video_ends_with_2_and_names_the_option(
    name: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write, reason = BAD_VIDEOS[name]
    write(tmp_path / name)
    given = ["--checkpoint", str(checkpoint), "--video", str(tmp_path / name)]
    calls: list[tuple[Callable[[list[str]], int], list[str]]] = [
        (predict.main, ["match", *given, "--text", "a"]),
        (cloze.main, [*given, "--text", TEXT]),
        (clusters.main, given),
        (rolls.main, given),
    ]
    for main, arguments in calls:
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert f"--video {tmp_path / name}" in error
        assert reason in error


def test_unusable_options_end_with_2_and_name_the_option(
    checkpoint: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--checkpoint", str(checkpoint), "--video", str(video)]
    cases: list[tuple[Callable[[list[str]], int], list[str], str]] = [
        (cloze.main, [*given, "--text", "no gap"], "--text 'no gap' has no [MASK]"),
        (cloze.main, [*given, "--text", TEXT, TEXT], "1 --video but 2 --text"),
        (cloze.main, [*given, "--text", "[MASK=unbelievableness]"], "word pieces"),
        (cloze.main, [*given, "--text", TEXT, "--out", "/dev/null/x"], "--out"),
        (clusters.main, [*given, "--groups", "49"], "--groups 49 is more than the 48 patches"),
        (clusters.main, [*given, "--compare", str(tmp_path / "none")], "--compare"),
        (clusters.main, [*given, "--names", "a", "b"], "2 --names for 1 model"),
        (clusters.main, [*given, "--fine", "3"], "--fine 3"),
        (clusters.main, [*given, "--groups", "0"], "--groups must be at least 1"),
        (rolls.main, [*given, "--size", "nano"], "not both"),
        (rolls.main, ["--video", str(video)], "--checkpoint or --size"),
    ]
    for main, arguments, reason in cases:
        assert main(arguments) == 2, arguments
        assert reason in capsys.readouterr().err


def test_an_image_or_another_exchange_has_no_roll_figure(
    tmp_path: Path, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = write_image(tmp_path / "a.png")
    assert rolls.main(["--size", "nano", "--video", str(picture)]) == 2
    assert "a roll needs at least 2" in capsys.readouterr().err
    tiny_model(roll="average").save_pretrained(tmp_path / "average")
    assert rolls.main(["--checkpoint", str(tmp_path / "average"), "--video", str(video)]) == 2
    assert "exchanges frames by 'average'" in capsys.readouterr().err
