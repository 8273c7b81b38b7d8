"""tools/convert.py: files of the original code and of other models; errors leave no folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForPreTraining, BertConfig, BertModel, ViTConfig, ViTModel

from allinone.data import AllInOneProcessor
from allinone.model import AllInOneConfig, AllInOneForPreTraining
from allinone.model.convert import (
    DISTILLATION,
    TEMPORAL,
    ConversionError,
    LoadReport,
    load_resized,
    reference_name,
    rename_reference,
    resize_grid,
)
from allinone.model.weights_file import read_weights
from allinone.tools.convert import main
from tests.tools.lightning import save, state_dict

ROOT = Path(__file__).parents[2]
CapSys = pytest.CaptureFixture[str]


def written(folder: Path) -> dict[str, torch.Tensor]:
    assert {path.name for path in folder.iterdir() if path.suffix != ".py"} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    return load_file(folder / "model.safetensors")


def convert_tiny(path: Path, out: Path) -> list[str]:
    """The command that converts a file of the tiny size."""
    return ["from-reference", str(path), "--size", "tiny", "--out", str(out)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny size in the original's format, converted."""
    folder = tmp_path_factory.mktemp("tiny")
    path = save(folder / "tiny.ckpt", state_dict("tiny"))
    assert main(convert_tiny(path, folder / "out")) == 0
    return folder


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nano") / "model"
    torch.manual_seed(0)
    AllInOneForPreTraining(AllInOneConfig.from_size("nano")).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("size", "co_trained", "dtype"),
    [("small", False, torch.float32), ("base", True, torch.float16)],
)
def test_every_tensor_of_a_released_size_is_converted(
    tmp_path: Path, capsys: CapSys, size: str, co_trained: bool, dtype: torch.dtype
) -> None:
    weights = state_dict(size, dtype)
    given = {
        key.replace("itm_score", "vtm_score") if co_trained else key: value
        for key, value in weights.items()
    }
    path = save(tmp_path / "last.ckpt", given)
    assert main(["from-reference", str(path), "--size", size, "--out", str(tmp_path / "out")]) == 0
    output = capsys.readouterr().out
    found = written(tmp_path / "out")
    arrived = 0
    for key, value in given.items():
        name = reference_name(key)
        if size == "small" and name == TEMPORAL:
            assert name not in found, "the original never adds it in a distilled model"
        elif name is not None:
            assert found[name].dtype == torch.float32
            assert (
                float(found[name].min()) == float(found[name].max()) == float(value.flatten()[0])
            ), key
            arrived += 1
    assert arrived == 167
    # the projections and the temperature of the contrastive loss are not in the released files
    assert len(found) == 167 + 5
    assert "167 tensors loaded" in output
    assert "resized" not in output
    assert ("ignored: transformer.temporal_embed: untrained" in output) == (size == "small")
    assert (DISTILLATION in found) == (size == "small")
    assert ("float16 in the file, float32 in the model" in output) == (dtype == torch.float16)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["patch_order"] == "shuffled"


def test_a_released_file_decides_on_the_distillation_token(tmp_path: Path, capsys: CapSys) -> None:
    weights = state_dict("small")
    path = save(tmp_path / "distilled.ckpt", weights)
    assert main(["inspect", str(path), "--json"]) == 0
    # counted by running the original code; the untrained temporal embedding is among them
    assert json.loads(capsys.readouterr().out)["parameters"] == 45_453_884
    del weights["transformer.dist_token"]
    weights["transformer.pos_embed"] = weights["transformer.pos_embed"][:, 1:]
    path = save(tmp_path / "plain.ckpt", weights)
    assert main(["from-reference", str(path), "--size", "small", "--out", str(tmp_path / "o")]) == 0
    assert "distillation_token: False as in the file, True is usual" in capsys.readouterr().out
    model = AllInOneForPreTraining.from_pretrained(tmp_path / "o")
    assert model.config.num_visual_tokens == 197
    assert model.backbone.video_embeddings.temporal.shape == (1, 3, 384)


def test_a_vit_becomes_a_distilled_model_with_a_new_token(tmp_path: Path, capsys: CapSys) -> None:
    vit, _ = image_and_language(tmp_path)
    arguments = ["from-vit", vit, "--size", "nano", "--distillation-token", "True"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    report = capsys.readouterr().out
    assert f"initialised: {DISTILLATION}: not in the file, new" in report
    assert "the row of the distillation token is not in the file, zeros" in report
    assert "[1, 38, 128] → [1, 18, 128], bicubically interpolated" in report
    found = written(tmp_path / "out")
    assert found[DISTILLATION].std() == pytest.approx(0.02, rel=0.3)
    assert TEMPORAL not in found


def test_the_written_folder_is_loaded_by_the_auto_classes(tiny: Path) -> None:
    model = AutoModelForPreTraining.from_pretrained(tiny / "out")
    assert isinstance(model, AllInOneForPreTraining)
    assert all(
        torch.equal(value, written(tiny / "out")[name])
        for name, value in model.state_dict().items()
    )
    processor = AllInOneProcessor.from_pretrained(tiny / "out")
    assert (processor.clip.num_frames, processor.clip.image_size, processor.clip.max_text_len) == (
        3,
        224,
        40,
    )
    assert processor.config.geometry == "squash", "as the original evaluates these weights"


def test_tiny_at_384_pixels_and_8_frames_has_the_shapes_and_runs(tiny: Path) -> None:
    model, report = load_resized(
        tiny / "out",
        AllInOneConfig.from_size("tiny", image_size=384, num_frames=8, max_text_len=20),
    )
    video = model.backbone.video_embeddings
    assert video.position.shape == (1, 577, 192)
    assert video.temporal.shape == (1, 8, 192)
    assert model.backbone.text_embeddings.position.weight.shape == (20, 192)
    assert [line.split(" ")[0].rsplit(".", 1)[0] for line in report.resized] == [
        "backbone.text_embeddings.position",
        "backbone.video_embeddings",
        "backbone.video_embeddings",
    ]
    assert not report.initialised
    with torch.no_grad():
        pooled = model.eval()(
            torch.randn(1, 8, 3, 384, 384), torch.ones(1, 20, dtype=torch.long), torch.ones(1, 20)
        ).pooled
    assert pooled.shape == (1, 192)


def test_a_resized_grid_keeps_rows_columns_and_the_class_row() -> None:
    columns = torch.arange(4.0).repeat(4)  # patches in raster order: the value is the column
    position = torch.cat([torch.tensor([9.0]), columns])[None, :, None]
    resized = resize_grid(position, 49)
    assert float(resized[0, 0]) == 9
    grid = resized[0, 1:, 0].view(7, 7)
    torch.testing.assert_close(grid, grid[:1].expand(7, 7))
    assert (grid[0].diff() > 0).all()
    # the centre of new column k is at (k + 0.5) * 4 / 7 - 0.5; a cubic through a ramp stays
    # within a tenth of it away from the ends
    torch.testing.assert_close(
        grid[0, 2:5], (torch.arange(2, 5) + 0.5) * 4 / 7 - 0.5, atol=0.1, rtol=0
    )


def broken(tmp_path: Path, change: Any) -> Path:
    weights: dict[str, Any] = dict(state_dict("tiny"))
    change(weights)
    return save(tmp_path / "broken.ckpt", weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("pooler.dense.bias"), r"1 missing: backbone\.pooler\.dense\.bias"),
        (
            lambda w: w.update({"transformer.norm.weight": torch.zeros(5)}),
            r"1 mis-shaped: backbone\.encoder\.norm\.weight \[5\] instead of \[192\]",
        ),
        (
            lambda w: w.update({"vqa_classifier.1.weight": torch.zeros(5)}),
            r"1 unexpected: vqa_classifier\.\*\.weight.*--ignore",
        ),
        (
            lambda w: w.update(state_dict("small")),
            "the file is 384 wide, the model 192: try --size small",
        ),
        (lambda w: w.update({"x": {1, 2}}), "x is a set"),
    ],
)
def test_a_misfit_ends_with_2_one_line_and_no_folder(
    tmp_path: Path, capsys: CapSys, change: Any, message: str
) -> None:
    assert main(convert_tiny(broken(tmp_path, change), tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert len(error.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["broken.ckpt"]


def test_heads_of_a_fine_tuned_file_are_left_out_when_asked(tmp_path: Path, capsys: CapSys) -> None:
    path = broken(tmp_path, lambda w: w.update({"vqa_classifier.1.weight": torch.zeros(5)}))
    assert main([*convert_tiny(path, tmp_path / "out"), "--ignore", "vqa_classifier."]) == 0
    assert "ignored: vqa_classifier.*.weight: asked for" in capsys.readouterr().out


def test_a_folder_that_holds_anything_is_not_touched(
    tiny: Path, tmp_path: Path, capsys: CapSys
) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    source = str(tiny / "tiny.ckpt")
    for command in (
        ["from-reference", source, "--size", "tiny"],
        ["from-vit", source, "--size", "tiny"],
        ["to-safetensors", source],
    ):
        assert main([*command, "--out", str(tmp_path)]) == 2
        assert "not an empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_code_in_a_file_is_refused_without_a_traceback(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    path = save(tmp_path / "evil.ckpt", state_dict("tiny"), extra={"x": Payload()})
    command = [sys.executable, "tools/convert.py", *convert_tiny(path, tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "refused: posix.system" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "ran").exists()


def image_and_language(folder: Path) -> tuple[str, str]:
    """A ViT and a BERT of nano's width, saved by transformers."""
    torch.manual_seed(0)
    width = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512}
    ViTModel(ViTConfig(**width, num_hidden_layers=4, image_size=96)).save_pretrained(folder / "vit")
    BertModel(BertConfig(**width, num_hidden_layers=1)).save_pretrained(folder / "bert")
    return str(folder / "vit"), str(folder / "bert")


def test_vit_and_bert_combine_in_one_or_in_two_commands(tmp_path: Path, capsys: CapSys) -> None:
    vit, bert = image_and_language(tmp_path)
    assert (
        main(["from-vit", vit, "--size", "nano", "--bert", bert, "--out", str(tmp_path / "one")])
        == 0
    )
    report = capsys.readouterr().out
    assert "[1, 37, 128] → [1, 17, 128], bicubically interpolated" in report
    assert "[512, 128] → [16, 128], cut" in report
    assert "initialised: backbone.video_embeddings.temporal" in report
    assert "initialised: backbone.text_embeddings" not in report
    assert main(["from-vit", vit, "--size", "nano", "--out", str(tmp_path / "a")]) == 0
    assert "initialised: backbone.text_embeddings.word.weight" in capsys.readouterr().out
    assert (
        main(["from-bert", bert, "--model", str(tmp_path / "a"), "--out", str(tmp_path / "two")])
        == 0
    )
    one, two = written(tmp_path / "one"), written(tmp_path / "two")
    source = load_file(tmp_path / "bert" / "model.safetensors")
    loaded = [
        name
        for name in one
        if name.startswith(
            ("backbone.video_embeddings.", "backbone.encoder.", "backbone.text_embeddings.")
        )
    ]
    assert all(torch.equal(one[name], two[name]) for name in loaded)
    assert torch.equal(
        one["backbone.text_embeddings.word.weight"], source["embeddings.word_embeddings.weight"]
    )
    assert not one["backbone.video_embeddings.temporal"].any()


def test_a_bert_of_another_width_is_refused(tmp_path: Path, capsys: CapSys) -> None:
    _, bert = image_and_language(tmp_path)
    assert main(["from-bert", bert, "--size", "tiny", "--out", str(tmp_path / "out")]) == 2
    assert (
        "backbone.text_embeddings.word.weight [30522, 128] instead of [30522, 192]"
        in capsys.readouterr().err
    )


def test_equal_checkpoints_of_any_form_end_with_0(
    tiny: Path, nano: Path, tmp_path: Path, capsys: CapSys
) -> None:
    torch.save({"state_dict": load_file(nano / "model.safetensors")}, tmp_path / "nano.pt")
    assert main(["diff", str(nano), str(tmp_path / "nano.pt")]) == 0
    assert main(["diff", str(nano / "model.safetensors"), str(nano)]) == 0
    capsys.readouterr()
    assert main(["diff", str(tiny / "tiny.ckpt"), str(tiny / "out"), "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert (result["equal"], result["values"], result["only_a"], len(result["only_b"])) == (
        167,
        [],
        [],
        5,
    )


def test_differences_are_listed_largest_first_and_end_with_1(
    nano: Path, tmp_path: Path, capsys: CapSys
) -> None:
    weights = load_file(nano / "model.safetensors")
    weights["vtm_head.bias"][1] += 0.5
    weights["backbone.encoder.norm.weight"][3] -= 2.0
    weights["mlm_head.norm.bias"][0] = float("nan")
    weights["pooler"] = weights.pop("backbone.pooler.dense.bias")
    weights["backbone.video_embeddings.temporal"] = torch.zeros(1, 8, 128)
    save_file(weights, tmp_path / "b.safetensors")
    assert main(["diff", str(nano), str(tmp_path / "b.safetensors"), "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in result["values"]] == [
        "mlm_head.norm.bias",
        "backbone.encoder.norm.weight",
        "vtm_head.bias",
    ]
    assert [row["max_abs"] for row in result["values"]] == [float("inf"), 2.0, 0.5]
    assert result["values"][1]["relative"] == pytest.approx(2 / 128**0.5)
    assert (result["only_a"], result["only_b"]) == (["backbone.pooler.dense.bias"], ["pooler"])
    assert result["shapes"] == [
        {"name": "backbone.video_embeddings.temporal", "a": [1, 3, 128], "b": [1, 8, 128]}
    ]
    assert main(["diff", str(nano), str(tmp_path / "b.safetensors"), "--limit", "1"]) == 1
    assert "and 2 more" in capsys.readouterr().out
    assert main(["diff", str(nano), str(tmp_path / "absent")]) == 2


def test_inspect_counts_the_parameters_of_the_original(tiny: Path, capsys: CapSys) -> None:
    assert main(["inspect", str(tiny / "tiny.ckpt"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] == 17_359_676  # counted by running the original code
    counted = {part: row["parameters"] for part, row in facts["parts"].items()}
    assert (
        counted["text embeddings"],
        counted["blocks"],
        counted["MLM head"],
        counted["VTM head"],
    ) == (
        5_868_672,
        5_338_368,
        5_928_186,
        386,
    )
    assert facts["training"]["global_step"] == 25000
    assert facts["tensors"]["transformer.pos_embed"] == {"shape": [1, 197, 192], "dtype": "float32"}
    assert main(["inspect", str(tiny / "out")]) == 0
    table = capsys.readouterr().out
    assert re.search(r"blocks +5,338,368 +144", table)


def test_another_number_of_attention_heads_is_refused(nano: Path) -> None:
    with pytest.raises(ConversionError, match="4 attention heads, the model 8"):
        load_resized(nano, AllInOneConfig.from_size("nano", num_attention_heads=8))


def test_a_bare_backbone_gets_new_heads_and_reports_them(nano: Path, tmp_path: Path) -> None:
    model = AllInOneForPreTraining.from_pretrained(nano)
    model.backbone.save_pretrained(tmp_path / "bare")
    loaded, report = load_resized(tmp_path / "bare", AllInOneConfig.from_size("nano"))
    assert all(
        torch.equal(value, model.backbone.state_dict()[name])
        for name, value in loaded.backbone.state_dict().items()
    )
    assert any(line.startswith("mlm_head.dense.weight") for line in report.initialised)


def test_golden_weights_survive_a_lightning_file(tmp_path: Path) -> None:
    from allinone.model.convert import convert_reference
    from tests.model.test_golden import IDS, MASK, PIXELS, close, golden_config, weights

    model, _ = convert_reference(
        read_weights(save(tmp_path / "golden.ckpt", weights())).tensors, golden_config()
    )
    model.save_pretrained(tmp_path / "ours")
    again, report = load_resized(tmp_path / "ours", golden_config())
    assert all(
        torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items()
    )
    assert report == LoadReport(str(tmp_path / "ours"), loaded=len(model.state_dict()))
    with torch.no_grad():
        output = again.eval()(PIXELS, IDS, MASK)
        close(output.text, "text_feats")
        close(output.pooled, "cls_feats")
        close(again.mlm_head(output.text), "mlm_logits")
    assert not rename_reference(weights(), LoadReport())[1]
