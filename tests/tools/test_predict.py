"""tools/predict.py: results, and errors that name the option."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from allinone.finetune.inputs import media_library
from allinone.tools import predict
from allinone.tools.inspection import media_inputs
from allinone.tools.inspection.checkpoints import load_checkpoint
from tests.data.media import write_html, write_image, write_video
from tests.tools.conftest import tiny_model, with_run

TEXT = "a [MASK] with a [mask]"


@pytest.fixture
def ask(
    checkpoint: Path, video: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., dict[str, Any]]:
    """Run a task and return its JSON."""

    def run(task: str, *options: str, model: Path = checkpoint) -> dict[str, Any]:
        capsys.readouterr()
        assert predict.main([task, "--checkpoint", str(model), "--json", *options]) == 0, (
            capsys.readouterr().err
        )
        return json.loads(capsys.readouterr().out)

    return run


def test_fill_gives_words_for_each_mask_best_first(
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


def test_a_folder_is_ranked_and_unusable_files_are_listed(
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


def test_one_frame_and_ten_hours_are_read(
    ask: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    write_video(tmp_path / "one.mp4", frames=1)
    # a frame every 1,000 s
    times = [1000.0 * n for n in range(37)]
    write_video(tmp_path / "ten-hours.mkv", frames=37, gop=1, times=times)
    result = ask("search", "--videos", str(tmp_path), "--text", "a cat")
    assert {Path(row["name"]).name for row in result["results"]} == {"one.mp4", "ten-hours.mkv"}
    assert not result["notes"]


def test_a_long_file_is_read_in_parts_and_gives_the_same(
    checkpoint: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_checkpoint(checkpoint, "cpu")
    read = media_inputs.ClipReader(loaded.model.config, loaded.data)
    expected = read(video)
    monkeypatch.setattr(media_inputs, "LONG_BYTES", 0)
    monkeypatch.setattr(media_library, "LONG_BYTES", 0)
    monkeypatch.setattr(media_library, "_END_BYTES", 1024)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} is read completely"))
    found = read(video)
    assert torch.equal(found.pixels, expected.pixels)
    assert found.numbers == expected.numbers


def test_answers_name_the_head_that_gave_them(
    ask: Callable[..., dict[str, Any]], video: Path
) -> None:
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


def test_a_run_gives_its_newest_checkpoint_and_untrained_heads(
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


def test_the_table_holds_the_same_values_as_the_json(
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


def test_unusable_texts_end_with_2_and_name_the_option(
    checkpoint: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--checkpoint", str(checkpoint), "--video", str(video)]
    (tmp_path / "empty.txt").write_text("\n\n")
    cases: list[tuple[list[str], str]] = [
        (["fill", *given, "--text", "no gap"], "--text 'no gap' has no [MASK]"),
        (
            ["fill", *given, "--text", "word " * 20 + "[MASK]"],
            "longer than the 16 tokens",
        ),
        (
            ["answer", *given, "--question", "[MASK] or [MASK]?"],
            "--question '[MASK] or [MASK]?' has 2 [MASK]",
        ),
        (["retrieve", *given], "--text T [T …] or --texts FILE"),
        (["retrieve", *given[:2], "--text", "a"], "--video or --videos"),
        (
            ["retrieve", *given, "--videos", str(tmp_path), "--text", "a"],
            "not both",
        ),
        (["fill", *given, "--text", TEXT, "--top", "0"], "--top must be at least 1"),
        (["retrieve", *given, "--texts", str(tmp_path / "empty.txt")], "--texts"),
        (
            ["retrieve", *given, "--texts", str(tmp_path / "none.txt")],
            "cannot be read",
        ),
        (
            ["retrieve", *given[:2], "--videos", str(tmp_path), "--text", "a"],
            "--videos",
        ),
        (
            ["retrieve", *given[:2], "--videos", str(tmp_path), "--text", "a", "b"],
            "give one --text",
        ),
    ]
    for arguments, reason in cases:
        assert predict.main(arguments) == 2, arguments
        assert reason in capsys.readouterr().err


def test_missing_and_unknown_heads_are_named(
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
