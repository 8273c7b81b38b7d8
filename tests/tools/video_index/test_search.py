"""Indexing a folder and searching it: what is found, what an update does, what is refused."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from allinone.common.command_line import parse
from allinone.common.errors import ConfigError, DataError, InputError
from allinone.common.paths import ROOT
from allinone.common.run_lock import claim
from allinone.finetune.inputs import media_library
from allinone.tools import index as index_command
from allinone.tools import search as search_command
from allinone.tools.app import AppOptions
from allinone.tools.inspection.checkpoints import LoadedModel, load_checkpoint
from allinone.tools.inspection.predictor import Predictor
from allinone.tools.video_index import build
from allinone.tools.video_index.build import BuildSummary, update_index
from allinone.tools.video_index.search import Searcher
from allinone.tools.video_index.store import MANIFEST, VideoIndex
from tests.data.media import write_html, write_image, write_video
from tests.tools.conftest import tiny_model

TEXTS = ["a red ball", "two dogs", "rain on a window"]


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> LoadedModel:
    return load_checkpoint(checkpoint, "cpu")


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    root = tmp_path / "videos"
    for number in range(4):
        write_video(root / "sub" / f"{number}.mp4", first=50 * number)
    write_image(root / "still.png", 7)
    return root


def update(loaded: LoadedModel, videos: Path, **options: Any) -> BuildSummary:
    given = {"workers": 0, "quiet": True, **options}
    return update_index(loaded, str(loaded.weights), videos, videos.parent / "index", **given)


def searcher(loaded: LoadedModel, videos: Path) -> Searcher:
    return Searcher(loaded, VideoIndex(videos.parent / "index"))


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-6), ("fp16", 1e-3)])
def test_similarities_are_those_of_predict(
    loaded: LoadedModel, videos: Path, precision: str, tolerance: float
) -> None:
    assert update(loaded, videos, precision=precision).clips == 5
    found = searcher(loaded, videos)
    predictor = Predictor(loaded)
    paths = [videos / found.index.row(int(row)).path for row in found.index.clips]
    clips = [predictor.read_clip(path) for path in paths if path.suffix == ".mp4"]
    for text in TEXTS:
        expected = predictor.similarity(clips, [predictor.read_text(text)])
        scores = found.scores(found.embed(text))
        actual = [score for score, path in zip(scores, paths, strict=True) if path.suffix == ".mp4"]
        assert actual == pytest.approx([row[0] for row in expected], abs=tolerance)
        best = found.search(text, top=5)
        assert [hit.score for hit in best] == sorted((hit.score for hit in best), reverse=True)
        assert best[0].score == pytest.approx(max(scores))


def test_recall_equals_that_of_the_evaluation(
    loaded: LoadedModel, videos: Path, tmp_path: Path
) -> None:
    from allinone.common.retrieval_metrics import retrieval_metrics
    from allinone.data import EvalSet
    from allinone.data.config import DatasetSpec
    from allinone.pretrain.evaluation import evaluate
    from allinone.tools import prepare

    captions = {f"sub/{number}.mp4": f"clip number {number}" for number in range(4)}
    with (videos / "own.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows(
            [("path", "caption", "split"), *((p, c, "val") for p, c in captions.items())]
        )
    arguments = [str(videos / "own.csv"), "--out", str(tmp_path / "prepared"), "--workers", "1"]
    assert prepare.main(arguments) == 0
    update(loaded, videos, precision="fp32")
    found = searcher(loaded, videos)
    items = EvalSet(
        DatasetSpec(tmp_path / "prepared", "val"),
        build.ClipEmbedder(loaded, videos, tmp_path / "cache").clip,
        loaded.data,
    )
    output = evaluate(loaded.model, items, torch.device("cpu"))
    rows = [found.index.row(int(row)).path for row in found.index.clips]
    columns = [
        rows.index(next(p for p, c in captions.items() if c == text)) for text in output.captions
    ]
    scores = torch.stack(
        [torch.from_numpy(found.scores(found.embed(text)))[columns] for text in output.captions]
    )
    torch.testing.assert_close(scores, output.similarity(), atol=2e-6, rtol=0)
    assert retrieval_metrics(scores) == output.retrieval_table()["text_to_video"]


def test_a_clip_or_an_image_finds_itself(loaded: LoadedModel, videos: Path) -> None:
    update(loaded, videos)
    found = searcher(loaded, videos)
    for path in ("sub/2.mp4", "still.png"):
        best = found.search(videos / path, top=1)[0]
        assert best.clip.path == path
        assert best.score == pytest.approx(1.0, abs=1e-3)
    with pytest.raises(InputError, match="--rerank needs a text"):
        found.search(videos / "still.png", rerank=2)
    write_html(videos.parent / "page.mp4")
    with pytest.raises(InputError, match=r"page\.mp4 cannot be used"):
        found.search(videos.parent / "page.mp4")


def test_reranking_orders_by_the_joint_pass(loaded: LoadedModel, videos: Path) -> None:
    (videos / "still.png").unlink()
    update(loaded, videos)
    predictor = Predictor(loaded)
    hits = searcher(loaded, videos).search(TEXTS[0], top=4, rerank=3)
    expected = {
        hit.clip.path: predictor.match_scores(
            predictor.read_clip(videos / hit.clip.path).pixels, predictor.read_text(TEXTS[0])
        )[0]
        for hit in hits[:3]
    }
    assert [hit.rank for hit in hits] == [1, 2, 3, 4]
    for hit in hits[:3]:
        assert hit.match == pytest.approx(expected[hit.clip.path], abs=1e-5)
    matches = [hit.match for hit in hits[:3]]
    assert matches == sorted(matches, key=lambda value: -(value or 0))
    assert hits[3].match is None


def test_an_update_embeds_only_what_changed(loaded: LoadedModel, videos: Path) -> None:
    assert update(loaded, videos).added == 5
    assert update(loaded, videos).added == 0
    write_video(videos / "sub" / "0.mp4", first=700)  # changed
    write_video(videos / "new.mp4", first=900)
    (videos / "sub" / "1.mp4").unlink()
    write_html(videos / "page.mp4")
    summary = update(loaded, videos)
    assert (summary.added, summary.deleted_files, summary.unchanged_files) == (2, 1, 3)
    assert summary.clips == 5
    assert list(summary.problems) == ["page.mp4"]
    found = searcher(loaded, videos)
    paths = {found.index.row(int(row)).path for row in found.index.clips}
    assert paths == {"sub/0.mp4", "sub/2.mp4", "sub/3.mp4", "new.mp4", "still.png"}
    # the changed file is found by its new content
    best = found.search(videos / "sub" / "0.mp4", top=1)[0]
    assert (best.clip.path, best.score) == ("sub/0.mp4", pytest.approx(1.0, abs=1e-3))
    # a problem is remembered, and tried again on request
    assert update(loaded, videos).added == 0
    assert update(loaded, videos, retry=True).problems == summary.problems
    # a file that comes back is new
    write_video(videos / "sub" / "1.mp4", first=50)
    assert update(loaded, videos).clips == 6


def test_long_videos_are_divided(loaded: LoadedModel, videos: Path) -> None:
    write_video(videos / "long.mp4", frames=330, rate=10)
    update(loaded, videos, clip_s=10.0)
    found = searcher(loaded, videos)
    hits = [hit for hit in found.search("a", top=20, all_clips=True) if hit.clip.path == "long.mp4"]
    starts = sorted(hit.clip.start_s for hit in hits)
    assert len(starts) == 3
    assert starts == pytest.approx([0.0, 11.0, 22.0], abs=0.1)
    # one result for each video unless all clips are asked for
    assert [hit.clip.path for hit in found.search("a", top=20)].count("long.mp4") == 1
    best = max(hits, key=lambda hit: hit.score)
    one = next(hit for hit in found.search("a", top=20) if hit.clip.path == "long.mp4")
    assert one.clip == best.clip


def test_an_interrupted_update_continues(
    loaded: LoadedModel, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "PART_CLIPS", 1)
    real, written = build.add_part, []

    def stop_at_third(*arguments: Any) -> Any:
        written.append(1)
        if len(written) == 3:
            # as if killed after the embeddings were written and before the list of parts was
            (videos.parent / "index" / "part-000003.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(build, "add_part", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        update(loaded, videos)
    assert len(VideoIndex(videos.parent / "index")) == 2
    monkeypatch.setattr(build, "add_part", real)
    summary = update(loaded, videos)
    assert (summary.added, summary.clips) == (3, 5)
    assert not list((videos.parent / "index").glob(".tmp-*"))


def test_a_second_writer_is_refused(loaded: LoadedModel, videos: Path) -> None:
    pid = os.fork()
    if pid == 0:  # a process of its own holds the folder
        claim(videos.parent / "index")
        (videos.parent / "claimed").touch()
        signal.pause()
    try:
        while not (videos.parent / "claimed").exists():
            pass
        with pytest.raises(ConfigError, match="in use by another process"):
            update(loaded, videos)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    assert update(loaded, videos).clips == 5


def test_another_model_or_setting_is_refused(
    loaded: LoadedModel, videos: Path, tmp_path: Path
) -> None:
    update(loaded, videos)
    other = tiny_model()
    with torch.no_grad():
        other.video_projection.weight.add_(0.1)
    other.save_pretrained(tmp_path / "other")
    changed = load_checkpoint(tmp_path / "other", "cpu")
    with pytest.raises(InputError, match="made with other weights"):
        update(changed, videos)
    with pytest.raises(InputError, match="did not make the index"):
        searcher(changed, videos)
    with pytest.raises(InputError, match=r"made with --clip-s 10\.0, not 5\.0"):
        update(loaded, videos, clip_s=5.0)


def test_moved_and_changed_videos_are_named(loaded: LoadedModel, videos: Path) -> None:
    update(loaded, videos)
    write_video(videos / "sub" / "3.mp4", first=300)
    notes = {hit.clip.path: hit.note for hit in searcher(loaded, videos).search("a", top=9)}
    assert notes["sub/3.mp4"] == "the file has changed since it was indexed"
    assert notes["sub/0.mp4"] == ""
    moved = videos.rename(videos.parent / "elsewhere")
    found = searcher(loaded, videos)
    hits = found.search("a", top=9, rerank=9)
    assert {hit.note for hit in hits} == {"the file is not there any more"}
    # the same command with the new folder: nothing but the changed file is embedded again
    summary = update(loaded, moved)
    assert (summary.added, summary.clips) == (1, 5)
    assert {hit.note for hit in searcher(loaded, videos).search("a", top=9)} == {""}


def test_an_index_cannot_name_files_outside(loaded: LoadedModel, videos: Path) -> None:
    (videos.parent / "secret.mp4").write_bytes((videos / "sub" / "0.mp4").read_bytes())
    (videos / "link.mp4").symlink_to(videos.parent / "secret.mp4")
    summary = update(loaded, videos)
    assert "leaves the folder" in summary.problems["link.mp4"]
    index = VideoIndex(videos.parent / "index")
    for path in ("../secret.mp4", "/etc/passwd", "sub/../../secret.mp4", "link.mp4", "a\0b"):
        with pytest.raises(DataError, match="leaves the folder"):
            index.file(path)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (MANIFEST, b"{", "cannot be read"),
        (MANIFEST, b"[" * 100_000, "cannot be read"),
        (MANIFEST, b'{"format": 9}', "is not an index of videos"),
        (MANIFEST, b"\xff", "cannot be read"),
        ("part-000001.parquet", b"PAR1", "hash differs"),
        ("part-000001.safetensors", b"\0" * 40, "is damaged"),
    ],
)
def test_damage_is_named(
    loaded: LoadedModel, videos: Path, name: str, damage: bytes, message: str
) -> None:
    update(loaded, videos)
    (videos.parent / "index" / name).write_bytes(damage)
    with pytest.raises(DataError, match=message):
        VideoIndex(videos.parent / "index")


@pytest.mark.parametrize("part", ["../../part-000001", "part-1", "part-000001/../x"])
def test_part_names_are_no_paths(loaded: LoadedModel, videos: Path, part: str) -> None:
    update(loaded, videos)
    path = videos.parent / "index" / MANIFEST
    content = json.loads(path.read_text())
    content["parts"][0][0] = part
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="a part named"):
        VideoIndex(videos.parent / "index")


def test_commands_index_and_search(
    checkpoint: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = str(tmp_path / "index")
    write_html(videos / "page.mp4")
    arguments = [str(videos), "--checkpoint", str(checkpoint), "--out", index, "--workers", "1"]
    assert index_command.main(arguments) == 0
    out = capsys.readouterr().out
    assert "5 clips, 5 of them new" in out
    assert "not indexed: page.mp4" in out
    assert search_command.main(["a red ball", "--index", index, "--top", "3"]) == 0
    out = capsys.readouterr().out
    assert out.count("sub/") + out.count("still.png") == 3
    assert "5 clips searched" in out
    assert search_command.main(["a red ball", "--index", index, "--json", "--rerank", "2"]) == 0
    hits = json.loads(capsys.readouterr().out)
    assert [hit["rank"] for hit in hits] == [1, 2, 3, 4, 5]
    assert search_command.main(["--index", index]) == 2
    assert "give what to search for" in capsys.readouterr().err
    assert search_command.main(["x", "--index", str(tmp_path)]) == 2
    assert "is not an index of videos; make one" in capsys.readouterr().err
    shutil.rmtree(videos)
    assert index_command.main(arguments) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_one_frame_and_ten_hours_are_indexed(loaded: LoadedModel, videos: Path) -> None:
    write_video(videos / "one.mp4", frames=1, first=400)
    # a frame every 1,000 s
    times = [1000.0 * n for n in range(37)]
    write_video(videos / "ten-hours.mkv", frames=37, gop=1, times=times, first=500)
    summary = update(loaded, videos, clip_s=3600.0)
    assert not summary.problems
    found = searcher(loaded, videos)
    hits = found.search("a", top=99, all_clips=True)
    spans = sorted((h.clip.start_s, h.clip.end_s) for h in hits if h.clip.path == "ten-hours.mkv")
    # the last of 37 frames is shown for 1,000 s
    assert [start for start, _ in spans] == pytest.approx([3700.0 * n for n in range(10)])
    assert spans[-1][1] == pytest.approx(37_000.0)
    best = found.search(videos / "one.mp4", top=1)[0]
    assert (best.clip.path, best.score) == ("one.mp4", pytest.approx(1.0, abs=1e-3))


def test_an_open_index_answers_while_it_grows(loaded: LoadedModel, videos: Path) -> None:
    update(loaded, videos)
    opened = searcher(loaded, videos)
    before = [(hit.clip.path, hit.score) for hit in opened.search("a", top=99)]
    write_video(videos / "new.mp4", first=900)
    write_video(videos / "sub" / "1.mp4", first=700)
    (videos / "sub" / "2.mp4").unlink()
    update(loaded, videos)
    hits = opened.search("a", top=99, rerank=99)
    assert sorted((hit.clip.path, hit.score) for hit in hits) == sorted(before)
    notes = {hit.clip.path: hit.note for hit in hits}
    assert "changed" in notes["sub/1.mp4"]
    assert "not there" in notes["sub/2.mp4"]
    # a clip that changed is read as it is now
    row = next(hit.row for hit in hits if hit.clip.path == "sub/1.mp4")
    first = opened.read_row(Path(str(row))).pixels
    write_video(videos / "sub" / "1.mp4", first=300)
    assert not torch.equal(opened.read_row(Path(str(row))).pixels, first)
    assert "new.mp4" in {hit.clip.path for hit in searcher(loaded, videos).search("a", top=99)}


def test_the_probe_cache_is_read_once(
    loaded: LoadedModel, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update(loaded, videos)
    read, real = [], media_library._read_store
    monkeypatch.setattr(media_library, "_read_store", lambda folder: read.append(1) or real(folder))
    found = searcher(loaded, videos)
    for text in TEXTS:
        found.search(text, top=5, rerank=5)
        found.read_row(Path(str(int(found.index.clips[0]))))
    assert len(read) == 1


def test_commands_of_the_search_guide_run(
    checkpoint: Path,
    videos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = videos.parent
    monkeypatch.chdir(place)
    (place / "runs").mkdir()
    (place / "runs" / "mine").symlink_to(checkpoint)
    write_image(place / "photo.jpg", 7)
    guide = (ROOT / "docs" / "guides" / "search.md").read_text()
    commands, page = re.findall(r"```sh\n(.*?)```", guide, re.DOTALL)
    programs = {"index": index_command, "search": search_command}
    for line in commands.splitlines():
        program, name, *argv = shlex.split(line.replace("~/videos", "videos"))
        assert program == "allinone"
        more = ["--workers", "0"] if name == "index" else []
        assert programs[name].main([*argv, *more]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.count("5 clips searched") == 2
    # the last line serves until it is stopped: test_app.py and browser_check.py use the page
    command = page.splitlines()[-1].split()
    assert command[:2] == ["allinone", "app"]
    assert parse(AppOptions, command[2:], prog="app", description="").index == (Path("index"),)
