"""The captioning task: its loss is the captions' mean, and training makes captions repeatable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from allinone.common.errors import ConfigError
from allinone.data.text import Tokenizer
from allinone.finetune.annotations.schema import Media, RetrievalItem, Split
from allinone.finetune.inputs.batch import TaskBatch
from allinone.finetune.inputs.prompts import encode
from allinone.finetune.task_model.model import TaskModel
from allinone.finetune.task_model.source import read_source_checkpoint
from allinone.finetune.tasks import captioning
from allinone.finetune.tasks.captioning import Captioning, caption_text
from allinone.finetune.tasks.options import CaptionOptions
from allinone.model import AllInOneForCaptioning
from tests.tools.conftest import tiny_config, tiny_model

TEXTS = ("a dog runs across the field", "rain")


def task_model() -> TaskModel:
    torch.manual_seed(0)
    model = TaskModel(tiny_config(hidden_dropout=0.0, drop_path=0.0), None, words=True)
    model.load_state_dict(tiny_model().state_dict(), strict=False)
    return model


def batch_of(texts: tuple[str, ...], lengths: bool = True) -> TaskBatch:
    tokenizer = Tokenizer()
    rows = [encode(tokenizer, captioning.plain(text), 16) for text in texts]
    ids, mask = (
        torch.from_numpy(np.stack([getattr(row, name) for row in rows]))[:, None]
        for name in ("ids", "mask")
    )
    pixels = torch.randn(len(texts), 1, 1, 3, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    number = torch.arange(len(texts))
    names = tuple(map(str, range(len(texts))))
    return TaskBatch(
        pixels, ids, mask, number, number, tuple(range(len(texts))), names, 0,
        text_lengths=mask.sum(-1) if lengths else None,
    )  # fmt: skip


def test_loss_is_the_mean_over_captions_of_their_words() -> None:
    model, task = task_model(), Captioning(CaptionOptions())
    batch = batch_of(TEXTS)
    logits = AllInOneForCaptioning.of(model.backbone, model.mlm_head)(
        batch.pixels[:, 0, 0], batch.text_ids[:, 0]
    ).logits
    expected = []
    for row, number in enumerate(batch.text_mask[:, 0].sum(1).tolist()):
        target = batch.text_ids[row, 0, 1:number]
        chances = logits[row, : number - 1].log_softmax(-1)
        own = chances.gather(-1, target[:, None]).mean()
        # label smoothing: a tenth of the probability is spread over the vocabulary
        expected.append(-(0.9 * own + 0.1 * chances.mean()))
    losses = task(model, batch)
    torch.testing.assert_close(losses.total, torch.stack(expected).mean())
    padded = task(model, batch_of(TEXTS, lengths=False))
    torch.testing.assert_close(padded.total, losses.total)
    parts = [task(model, batch.only(row)).total for row in range(2)]
    torch.testing.assert_close(torch.stack(parts).mean(), losses.total)
    total, count = losses.metrics["caption_loss"].tolist()
    assert count == 2
    assert total / count == pytest.approx(float(losses.total.detach()))


def test_trained_captions_are_written_again() -> None:
    model, task = task_model(), Captioning(CaptionOptions(label_smoothing=0.0))
    batch = batch_of(TEXTS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        losses = task(model, batch)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    right, count = losses.metrics["word_accuracy"].tolist()
    assert right / count == pytest.approx(1)
    writer, tokenizer = AllInOneForCaptioning.of(model.backbone, model.mlm_head), Tokenizer()
    for beams in (1, 3):
        found = writer.generate(batch.pixels[:, 0, 0], num_beams=beams)
        assert [caption_text(tokenizer, row) for row in found.tolist()] == list(TEXTS)
    model.train()


def test_each_epoch_draws_one_caption_of_a_clip() -> None:
    item = RetrievalItem("a", Media("a", "a"), ("one", "two", "three"))
    make = Captioning(CaptionOptions()).examples(Split("train", [item], ()))
    random = np.random.default_rng(0)
    drawn = {make(0, random).texts[0][0].text for _ in range(50)}
    assert drawn == {"one", "two", "three"}
    assert make(0, None).texts == ()


def test_without_an_mlm_head_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captioning, "require_package", lambda: None)
    tiny_model().backbone.save_pretrained(tmp_path)
    source = read_source_checkpoint(tmp_path)
    task = Captioning(CaptionOptions())
    task.setup(None, source, eval_only=False)
    with pytest.raises(ConfigError, match="has no MLM head"):
        task.setup(None, source, eval_only=True)
