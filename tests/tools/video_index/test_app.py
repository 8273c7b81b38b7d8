"""The page: what it serves and to whom. tests/tools/video_index/browser_check.py uses it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("gradio")

import gradio as gr
from fastapi.testclient import TestClient

from allinone.tools import app as app_command
from allinone.tools.inspection.checkpoints import LoadedModel, load_checkpoint
from allinone.tools.video_index.app import Page, build_app
from allinone.tools.video_index.build import update_index
from allinone.tools.video_index.search import Searcher
from allinone.tools.video_index.store import VideoIndex
from tests.data.media import write_video

HOSTILE = "<img src=x onerror=alert(1)>.mp4"


@pytest.fixture(scope="module")
def searcher(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    folder = tmp_path_factory.mktemp("app")
    for number, name in enumerate(("a.mp4", "b.mp4", HOSTILE)):
        write_video(folder / "videos" / name, first=100 * number)
    (folder / "videos" / "notes.txt").write_text("not in the index")
    loaded: LoadedModel = load_checkpoint(checkpoint, "cpu")
    update_index(
        loaded, str(checkpoint), folder / "videos", folder / "index", workers=0, quiet=True
    )
    return Searcher(loaded, VideoIndex(folder / "index"))


def local(searcher: Searcher, token: str | None = None) -> TestClient:
    return TestClient(build_app([searcher], token), base_url="http://localhost")


def test_clips_are_served_by_row_and_nothing_else(searcher: Searcher) -> None:
    client, root = local(searcher), Path(searcher.index.manifest.root)
    row = int(searcher.index.clips[1])
    answer = client.get(f"/clip/0/{row}")
    assert answer.content == (root / searcher.index.row(row).path).read_bytes()
    part = client.get(f"/clip/0/{row}", headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, answer.content[10:20])
    for path in (
        "/clip/0/99",
        "/clip/1/0",
        "/clip/0/-1",
        "/clip/0/..%2F..%2Fetc%2Fpasswd",
        "/clip/0/notes.txt",
        "/gradio_api/file=/etc/passwd",
        f"/gradio_api/file={root}/notes.txt",
    ):
        assert client.get(path).status_code in (403, 404, 422), path


def test_a_clip_whose_file_has_gone_is_not_found(searcher: Searcher) -> None:
    root = Path(searcher.index.manifest.root)
    row = next(int(r) for r in searcher.index.clips if searcher.index.row(int(r)).path == "b.mp4")
    (root / "b.mp4").rename(root / "kept")
    try:
        assert local(searcher).get(f"/clip/0/{row}").status_code == 404
    finally:
        (root / "kept").rename(root / "b.mp4")


def test_without_a_token_only_this_machine_is_answered(searcher: Searcher) -> None:
    client = local(searcher)
    assert client.get("/").status_code == 200
    assert client.get("/", headers={"Host": "other.example"}).status_code == 400


def test_with_a_token_every_request_needs_it(searcher: Searcher) -> None:
    client = local(searcher, "secret")
    row = int(searcher.index.clips[0])
    for path in ("/", f"/clip/0/{row}", "/config", "/?token=wrong"):
        assert client.get(path).status_code == 403, path
    assert client.get("/?token=secret").status_code == 200
    assert client.get(f"/clip/0/{row}").status_code == 200  # by the cookie


def test_names_of_files_are_escaped(searcher: Searcher) -> None:
    shown, choices = Page([searcher]).search("a", None, 12, False)
    assert "<img src=x" not in shown
    assert "&lt;img src=x onerror" in shown
    assert len(choices) == 3


def test_questions_and_blanks_are_about_the_chosen_clip(searcher: Searcher) -> None:
    page = Page([searcher])
    _, choices = page.search("a", None, 3, True)
    chosen = choices[0][1]
    row = int(chosen.partition("/")[2])
    expected = searcher.predictor.answer(Path(str(row)), "what is it", ["a cat", "a dog"], 5)
    answer = page.answer(chosen, "what is it", "a cat\n\n a dog ")
    assert all(f"{entry['score']:.4f}" in answer for entry in expected["results"])
    picture = page.fill(chosen, "a [MASK]")
    assert min(picture.size) > 100
    for wrong in (None, "", "9/0", "0/99", "x", "0/-1"):
        with pytest.raises(gr.Error):
            page.answer(wrong, "what is it", "")
    with pytest.raises(gr.Error, match="MASK"):
        page.fill(chosen, "no blank")
    with pytest.raises(gr.Error, match="Enter a text"):
        page.search("  ", None, 3, False)


def test_two_indexes_are_shown_one_below_the_other(searcher: Searcher) -> None:
    shown, choices = Page([searcher, searcher]).search("a", None, 2, False)
    assert shown.count("<h3>") == 2
    assert [label[0] for label, _ in choices] == ["A", "A", "B", "B"]


def test_the_command_names_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert app_command.main(["--index", "/nowhere"]) == 2
    assert "is not an index of videos" in capsys.readouterr().err
