"""LoRA by peft on the models for transformers: trained, saved, merged and read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from allinone import (
    AllInOneConfig,
    AllInOneForMaskedLM,
    AllInOneForMultipleChoice,
    AllInOneForQuestionAnswering,
    AllInOneForRetrieval,
    AllInOneForVideoClassification,
    AllInOneProcessor,
)
from allinone.data.config import ClipConfig, DataConfig
from allinone.examples.lora import adapt, main
from allinone.tools import predict
from tests.data import media

peft = pytest.importorskip("peft")  # in the extra test

CLASSES: list[tuple[type, str, str]] = [
    (AllInOneForVideoClassification, "classes_published", "task_head"),
    (AllInOneForQuestionAnswering, "answers_ce", "task_head"),
    (AllInOneForMultipleChoice, "rank", "task_head"),
    (AllInOneForRetrieval, "contrast", "text_projection"),
    (AllInOneForMaskedLM, "", "mlm_head"),
]
RANK = 4


def small(kind: str) -> AllInOneConfig:
    config = AllInOneConfig.from_size(
        "nano",
        vocab_size=60,
        image_size=32,
        max_text_len=8,
        num_hidden_layers=2,
        hidden_dropout=0.0,
        drop_path=0.0,
    )
    config.num_labels = 3
    config.task = {"kind": kind} if kind else {}
    return config


def inputs_of(cls: type) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    shape = (2, 3, 8) if cls is AllInOneForMultipleChoice else (2, 8)
    ids = torch.randint(5, 60, shape, generator=random)
    labels = ids if cls is AllInOneForMaskedLM else torch.tensor([0, 1])
    pixels = torch.randn(2, 3, 3, 32, 32, generator=random)
    return {"pixels": pixels, "text_ids": ids, "text_mask": torch.ones_like(ids), "labels": labels}


def scores(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        output = model.eval()(**inputs)
    return output.logits_per_text if hasattr(output, "logits_per_text") else output.logits


@pytest.mark.parametrize(("cls", "kind", "head"), CLASSES, ids=lambda value: str(value)[-30:])
def test_adapters_train_save_merge_and_equal(
    tmp_path: Path, cls: Any, kind: str, head: str
) -> None:
    torch.manual_seed(0)
    model = cls(small(kind))
    model.save_pretrained(tmp_path / "base")
    inputs, before = inputs_of(cls), scores(model, inputs_of(cls))
    adapted = adapt(model, RANK)
    torch.testing.assert_close(scores(adapted, inputs), before)  # B starts at 0
    trained = {n: p.numel() for n, p in adapted.named_parameters() if p.requires_grad}
    width, hidden = 128, 512
    matrices = [(width, 3 * width), (width, width), (width, hidden), (hidden, width)]
    counted = sum(size for name, size in trained.items() if "lora_" in name)
    assert counted == 2 * RANK * sum(n + m for n, m in matrices)
    assert all("lora_" in name or "modules_to_save" in name for name in trained)
    assert any(head in name for name in trained)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(6):
        loss = adapted.train()(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    after = scores(adapted, inputs)
    adapted.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(
        cls.from_pretrained(tmp_path / "base"), tmp_path / "adapter"
    )
    assert torch.equal(scores(again, inputs), after)
    merged = again.merge_and_unload()
    assert type(merged) is cls
    # W + BA is rounded once, x W + (x A) B twice
    torch.testing.assert_close(scores(merged, inputs), after, rtol=1e-4, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    loaded = cls.from_pretrained(tmp_path / "merged")
    assert torch.equal(scores(loaded, inputs), scores(merged, inputs))


def test_the_example_learns_labels_and_writes_a_model_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = AllInOneConfig.from_size("nano", image_size=32, max_text_len=12, num_hidden_layers=2)
    torch.manual_seed(0)
    AllInOneForVideoClassification(config).save_pretrained(tmp_path / "model")
    clip = ClipConfig(config.num_frames, config.image_size, config.max_text_len)
    AllInOneProcessor.of(clip, DataConfig()).save_pretrained(tmp_path / "model")
    rows = ["path,label"]
    for number in range(4):
        media.write_video(tmp_path / f"{number}.mp4", frames=8, first=40 * number)
        rows.append(f"{number}.mp4,{'early' if number < 2 else 'late'}")
    table = tmp_path / "clips.csv"
    table.write_text("\n".join(rows) + "\n")
    argv = ["--model", str(tmp_path / "model"), "--table", str(table), "--epochs", "2"]
    assert main([*argv, "--out", str(tmp_path / "lora")]) == 0
    assert "trainable params" in capsys.readouterr().out
    folder = tmp_path / "lora" / "merged"
    merged = AllInOneForVideoClassification.from_pretrained(folder).eval()
    inputs = AllInOneProcessor.from_pretrained(folder)(
        str(tmp_path / "0.mp4"), merged.config.task["prompt"]
    )
    with torch.no_grad():
        expected = merged(**inputs).logits.softmax(-1)[0]
    given = ["--checkpoint", str(folder), "--video", str(tmp_path / "0.mp4"), "--json"]
    assert predict.main(["classify", *given]) == 0
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)["results"]}
    assert found.keys() == {"early", "late"}
    assert found["early"]["score"] == pytest.approx(expected[0].item(), abs=1e-4)
    assert main([*argv, "--out", str(tmp_path / "lora")]) == 2, "the folder is not empty"
    table.write_text("file\n0.mp4\n")
    assert main([*argv, "--out", str(tmp_path / "new")]) == 2
