"""predict, cloze, clusters and rolls as a person calls them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from allinone.tools import cloze, clusters, predict, rolls
from tests.data.media import write_html, write_image, write_video
from tests.tools.conftest import tiny_model, with_run

TEXT = "a [MASK] with a [mask]"


@pytest.fixture
def ask(
    checkpoint: Path, video: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., dict[str, Any]]:
    """predict.py's answer as JSON for a task and its options."""

    def run(task: str, *options: str, model: Path = checkpoint) -> dict[str, Any]:
        capsys.readouterr()
        assert predict.main([task, "--checkpoint", str(model), "--json", *options]) == 0, (
            capsys.readouterr().err
        )
        return json.loads(capsys.readouterr().out)

    return run


def test_fill_gives_words_for_each_gap_best_first(
    ask: Callable[..., dict[str, Any]], video: Path
) -> None:
    gaps = ask("fill", "--video", str(video), "--text", TEXT, "--top", "7")["gaps"]
    assert [len(gap) for gap in gaps] == [7, 7]
    for gap in gaps:
        chances = [guess["probability"] for guess in gap]
        assert chances == sorted(chances, reverse=True)
        assert 0 < sum(chances) < 1
        assert all(guess["word"] for guess in gap)


def test_match_and_retrieve_agree_with_each_other(
    ask: Callable[..., dict[str, Any]], video: Path, tmp_path: Path
) -> None:
    texts = ["a red ball", "two dogs", "rain"]
    (tmp_path / "texts.txt").write_text("\n".join(texts[1:]) + "\n\n")
    given = ["--video", str(video), "--text", texts[0], "--texts", str(tmp_path / "texts.txt")]
    for by, row in (("match", 0), ("contrast", 1)):
        ranked = ask("retrieve", *given, "--by", by)["results"]
        assert {entry["name"] for entry in ranked} == set(texts)
        assert [entry["rank"] for entry in ranked] == [1, 2, 3]
        for entry in ranked:
            pair = ask("match", "--video", str(video), "--text", entry["name"])["results"][row]
            assert pair["score"] == pytest.approx(entry["score"], abs=1e-5)


def test_videos_of_a_folder_are_ranked_and_bad_ones_named(
    ask: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    write_video(tmp_path / "a.mp4", first=1)
    write_video(tmp_path / "sub" / "b.webm", codec="libvpx", first=900)
    write_image(tmp_path / "c.png", 7)
    write_html(tmp_path / "page.mp4")
    (tmp_path / "notes.txt").write_text("no video")
    result = ask("retrieve", "--videos", str(tmp_path), "--text", "a cat", "--top", "2")
    assert result["of"] == 3
    assert len(result["results"]) == 2
    assert len(result["notes"]) == 1
    assert "page.mp4" in result["notes"][0]
    assert "a text file, not a video" in result["notes"][0]


def test_answers_say_which_head_gave_them(ask: Callable[..., dict[str, Any]], video: Path) -> None:
    asked = ["--video", str(video), "--question", "what is it?"]
    free, chosen = ask("answer", *asked), ask("answer", *asked, "--choices", "cat", "dog")
    assert "MLM head on “what is it? [MASK]”" in free["head"]
    assert "VTM head" in chosen["head"]
    assert {entry["name"] for entry in chosen["results"]} == {"cat", "dog"}
    for result in (free, chosen):
        assert any("not fine-tuned for question answering" in note for note in result["notes"])
    pair = ask("match", "--video", str(video), "--text", "what is it? cat")["results"][0]["score"]
    assert next(
        entry["score"] for entry in chosen["results"] if entry["name"] == "cat"
    ) == pytest.approx(pair, abs=1e-6)


def test_a_run_is_read_from_its_newest_checkpoint_and_untrained_heads_are_told(
    ask: Callable[..., dict[str, Any]], checkpoint: Path, video: Path, tmp_path: Path
) -> None:
    run = with_run(checkpoint, tmp_path / "run", {"mlm": 1.0, "vtm": 1.0, "vtc": 0.0})
    given = ["--video", str(video), "--text", "a", "b"]
    for model in (
        run,
        run / "checkpoints" / "step-00000001",
        run / "checkpoints" / "step-00000001" / "weights",
    ):
        assert "VTM" in ask("retrieve", *given, model=model)["by"]
    forced = ask("retrieve", *given, "--by", "contrast", model=run)
    assert any("trained without VTC" in note for note in forced["notes"])
    assert "VTC" in ask("retrieve", *given)["by"], "nothing is known about bare weights"


def test_the_table_for_people_holds_what_the_json_holds(
    ask: Callable[..., dict[str, Any]],
    checkpoint: Path,
    video: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = ask("fill", "--video", str(video), "--text", TEXT)
    assert (
        predict.main(
            ["fill", "--checkpoint", str(checkpoint), "--video", str(video), "--text", TEXT]
        )
        == 0
    )
    shown = capsys.readouterr().out
    for guess in (guess for gap in result["gaps"] for guess in gap):
        assert f"{100 * guess['probability']:.2f}  {guess['word']}" in shown


def test_pictures_are_written_as_png_and_a_page_that_needs_no_other_file(
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
    assert "hidden was red" in (tmp_path / "cloze.html").read_text()
    assert "left" in (tmp_path / "clusters.html").read_text()


def test_the_roll_needs_no_weights(video: Path, tmp_path: Path) -> None:
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
def test_a_bad_video_ends_every_tool_with_2_and_the_option(
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


def _no_weights(folder: Path, checkpoint: Path) -> None:
    folder.mkdir()
    shutil.copy(checkpoint / "config.json", folder)


def _other_model(folder: Path, checkpoint: Path) -> None:
    folder.mkdir()
    shutil.copy(checkpoint / "model.safetensors", folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')


def _torn(folder: Path, checkpoint: Path) -> None:
    shutil.copytree(checkpoint, folder)
    (folder / "model.safetensors").write_bytes(
        (checkpoint / "model.safetensors").read_bytes()[:1000]
    )


def _damaged(folder: Path, checkpoint: Path) -> None:
    with_run(checkpoint, folder, {})
    (folder / "checkpoints" / "step-00000001" / "run.json").write_text("{}")


def _partial(folder: Path, checkpoint: Path) -> None:
    shutil.copytree(checkpoint, folder)
    tensors = load_file(checkpoint / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if ".blocks.2." not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


BAD_CHECKPOINTS: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "missing": (lambda folder, checkpoint: None, "does not exist"),
    "empty": (
        lambda folder, checkpoint: folder.mkdir(),
        "holds no weights; give a folder of save_pretrained",
    ),
    "file": (lambda folder, checkpoint: folder.write_text(""), "is a file; give the folder"),
    "no_weights": (_no_weights, "has a config.json but no weights"),
    "other": (_other_model, "holds a model of type 'bert'"),
    "torn": (_torn, "cannot be loaded"),
    "damaged": (_damaged, "run.json has"),
    "partial": (
        _partial,
        "misses 12 tensors of the transformer, first: backbone.encoder.blocks.2.",
    ),
}


@pytest.mark.parametrize("name", BAD_CHECKPOINTS)
def test_a_bad_checkpoint_is_refused_with_the_reason(
    name: str, checkpoint: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, reason = BAD_CHECKPOINTS[name]
    make(tmp_path / name, checkpoint)
    assert (
        predict.main(
            ["match", "--checkpoint", str(tmp_path / name), "--video", str(video), "--text", "a"]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert f"--checkpoint {tmp_path / name}" in error
    assert reason in error
    assert "Traceback" not in error


def test_texts_that_cannot_be_used_are_refused(
    checkpoint: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--checkpoint", str(checkpoint), "--video", str(video)]
    (tmp_path / "empty.txt").write_text("\n\n")
    cases: list[tuple[Callable[[list[str]], int], list[str], str]] = [
        (predict.main, ["fill", *given, "--text", "no gap"], "--text 'no gap' has no [MASK]"),
        (
            predict.main,
            ["fill", *given, "--text", "word " * 20 + "[MASK]"],
            "longer than the 16 tokens",
        ),
        (
            predict.main,
            ["answer", *given, "--question", "[MASK] or [MASK]?"],
            "--question '[MASK] or [MASK]?' has 2 [MASK]",
        ),
        (predict.main, ["retrieve", *given], "--text T [T …] or --texts FILE"),
        (predict.main, ["retrieve", *given, "--texts", str(tmp_path / "empty.txt")], "--texts"),
        (
            predict.main,
            ["retrieve", *given, "--texts", str(tmp_path / "none.txt")],
            "cannot be read",
        ),
        (
            predict.main,
            ["retrieve", *given[:2], "--videos", str(tmp_path), "--text", "a"],
            "--videos",
        ),
        (
            predict.main,
            ["retrieve", *given[:2], "--videos", str(tmp_path), "--text", "a", "b"],
            "give one --text",
        ),
        (cloze.main, [*given, "--text", "no gap"], "--text 'no gap' has no [MASK]"),
        (cloze.main, [*given, "--text", TEXT, TEXT], "1 --video but 2 --text"),
        (cloze.main, [*given, "--text", "[MASK=unbelievableness]"], "word pieces"),
        (cloze.main, [*given, "--text", TEXT, "--out", "/dev/null/x"], "--out"),
        (clusters.main, [*given, "--groups", "49"], "--groups 49 is more than the 48 patches"),
        (clusters.main, [*given, "--compare", str(tmp_path / "none")], "--compare"),
        (clusters.main, [*given, "--names", "a", "b"], "2 --names for 1 model"),
        (clusters.main, [*given, "--fine", "3"], "--fine 3"),
    ]
    for main, arguments, reason in cases:
        assert main(arguments) == 2, arguments
        assert reason in capsys.readouterr().err


def test_heads_that_are_missing_or_unknown_are_named(
    checkpoint: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model().backbone.save_pretrained(tmp_path / "bare")
    given = ["--checkpoint", str(tmp_path / "bare"), "--video", str(video)]
    assert predict.main(["fill", *given, "--text", TEXT]) == 2
    assert "has no mlm_head (MLM)" in capsys.readouterr().err
    assert predict.main(["match", *given, "--text", "a"]) == 2
    assert "has no vtm_head (VTM)" in capsys.readouterr().err

    shutil.copytree(checkpoint, tmp_path / "qa")
    tensors = load_file(checkpoint / "model.safetensors")
    save_file(
        {**tensors, "qa_head.dense.weight": tensors["vtm_head.weight"].clone()},
        tmp_path / "qa" / "model.safetensors",
        {"format": "pt"},
    )
    given = ["--checkpoint", str(tmp_path / "qa"), "--video", str(video)]
    assert predict.main(["answer", *given, "--question", "what?"]) == 2
    assert "a head that this version does not know (qa_head.dense)" in capsys.readouterr().err
    assert predict.main(["match", *given, "--text", "a"]) == 0


def test_a_still_picture_or_another_exchange_has_no_roll_to_draw(
    tmp_path: Path, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = write_image(tmp_path / "a.png")
    assert rolls.main(["--size", "nano", "--video", str(picture)]) == 2
    assert "a roll needs at least 2" in capsys.readouterr().err
    tiny_model(roll="average").save_pretrained(tmp_path / "average")
    assert rolls.main(["--checkpoint", str(tmp_path / "average"), "--video", str(video)]) == 2
    assert "exchanges frames by 'average'" in capsys.readouterr().err


def test_a_converted_folder_is_looked_at_with_its_runs_normalisation(
    checkpoint: Path, tmp_path: Path
) -> None:
    from allinone.data import AllInOneProcessor
    from allinone.data.config import ClipConfig, DataConfig
    from allinone.tools.inspection.checkpoints import load_checkpoint

    shutil.copytree(checkpoint, tmp_path / "model")
    config = DataConfig(mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.5), eval_crop=0.75)
    AllInOneProcessor(ClipConfig(3, 32, 16), config).save_pretrained(tmp_path / "model")
    data = load_checkpoint(tmp_path / "model", "cpu").data
    assert (data.mean, data.std, data.eval_crop) == (config.mean, config.std, config.eval_crop)
    assert load_checkpoint(checkpoint, "cpu").data.mean == DataConfig().mean
