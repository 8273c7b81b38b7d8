"""Losses and scores of tasks against formulas in plain torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from allinone.finetune.inputs.batch import TaskBatch
from allinone.finetune.msrvtt_retrieval import BENCHMARK as MSRVTT
from allinone.finetune.task_model.heads import pooled
from allinone.finetune.task_model.model import TaskModel, build_model
from allinone.finetune.task_model.source import read_source_checkpoint, task_config
from allinone.finetune.tasks.action_recognition import ActionRecognition
from allinone.finetune.tasks.base import Task
from allinone.finetune.tasks.multiple_choice import MultipleChoice, option_scores, zero_shot_scores
from allinone.finetune.tasks.options import ActionOptions, ChoiceOptions, RetrievalOptions
from allinone.finetune.tasks.retrieval import Retrieval
from tests.tools.conftest import FRAMES, SIDE, tiny_model

B, K, L = 3, 4, 16


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "weights"
    tiny_model().save_pretrained(folder)
    return folder


def model_of(pretrained: Path, task: Task, *, zero_shot: bool = False) -> TaskModel:
    source = read_source_checkpoint(pretrained)
    return build_model(
        source, task_config(source, None, {}), task.head_spec(zero_shot=zero_shot), seed=0
    )


def batch_of(views: int = 1) -> TaskBatch:
    random = torch.Generator().manual_seed(1)
    pixels = torch.randn(B, 1, views, FRAMES, 3, SIDE, SIDE, generator=random)
    ids = torch.randint(1000, 30_000, (B, K, L), generator=random)
    zeros = torch.zeros(B, dtype=torch.int64)
    numbers = torch.arange(B)
    names = tuple("abc")
    return TaskBatch(pixels, ids, torch.ones_like(ids), zeros, numbers, (0, 1, 2), names, 0)


@pytest.mark.parametrize("variant", ["9k-joint", "7k-joint", "9k-contrast", "7k-contrast"])
def test_a_paper_row_trains_the_originals_sum_of_losses(pretrained: Path, variant: str) -> None:
    options = MSRVTT.defaults(MSRVTT.config, variant).task
    assert isinstance(options, RetrievalOptions)
    task, batch = Retrieval(options), batch_of()
    model = model_of(pretrained, task).eval()
    with torch.no_grad():
        total = task(model, batch).total
        text = model.text_projection(model.encode_text(batch.text_ids[:, 0], batch.text_mask[:, 0]))
        video = model.video_projection(model.encode_video(batch.pixels[:, 0, 0]))
        # the model's scale is 1 / 0.05, the original's fixed temperature, until it is trained
        scale = tiny_model().logit_scale().item()
        logits = scale * F.cosine_similarity(text[:, None], video[None], dim=-1)
        own = torch.arange(B)
        # both directions are summed, not averaged
        expected = F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)
        if variant.endswith("joint"):
            pairs = pooled(model, batch.pixels[:, 0], batch.text_ids, batch.text_mask)[:, :, 0]
            row = tiny_model().vtm_head
            ranks = pairs @ row.weight[1] + row.bias[1]
            expected = expected + F.cross_entropy(ranks, torch.zeros(B, dtype=torch.int64))
    torch.testing.assert_close(total, expected)


def test_zero_shot_options_have_the_match_logit_and_log_odds(pretrained: Path) -> None:
    batch = batch_of(views=2)
    model = model_of(pretrained, MultipleChoice(ChoiceOptions()), zero_shot=True).eval()
    head = tiny_model().vtm_head
    with torch.no_grad():
        logits = head(pooled(model, batch.pixels[:, 0], batch.text_ids, batch.text_mask))
        found = zero_shot_scores(model, batch)
    odds = logits.log_softmax(-1)
    torch.testing.assert_close(found[:, 0], logits[..., 1].mean(-1))
    torch.testing.assert_close(found[:, 1], (odds[..., 1] - odds[..., 0]).mean(-1))


@pytest.mark.parametrize("dropout", [True, False])
def test_probe_dropout_is_that_of_the_frozen_backbone(pretrained: Path, dropout: bool) -> None:
    task = ActionRecognition(ActionOptions(probe="linear", probe_dropout=dropout))
    task.classes = ("run", "jump")
    model, batch = model_of(pretrained, task), batch_of()
    # a linear head has no dropout of its own
    ids, mask = batch.text_ids[:, 0], batch.text_mask[:, 0]

    def train_pass(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return model.train()(batch.pixels[:, 0, 0], ids, mask).pooled

    assert torch.equal(train_pass(1), train_pass(1))
    assert torch.equal(train_pass(1), train_pass(2)) is not dropout
    with torch.no_grad():
        evaluated = model.eval()(batch.pixels[:, 0, 0], ids, mask).pooled
    assert torch.equal(evaluated, train_pass(1)) is not dropout
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == ["task_head.weight", "task_head.bias"]


@pytest.mark.parametrize(
    "task",
    [
        Retrieval(RetrievalOptions(rank=1.0)),
        MultipleChoice(ChoiceOptions()),
        MultipleChoice(ChoiceOptions(head="option")),
    ],
    ids=["retrieval", "rank", "option"],
)
def test_tasks_without_padding_give_the_same_losses(pretrained: Path, task: Task) -> None:
    model, batch = model_of(pretrained, task).eval(), batch_of()
    lengths = torch.tensor([[16, 3, 9, 5], [7, 12, 4, 16], [3, 3, 8, 6]])
    full = replace(batch, text_mask=(torch.arange(L) < lengths[..., None]).long())
    packed = replace(full, text_lengths=lengths)
    with torch.no_grad():
        torch.testing.assert_close(task(model, packed).total, task(model, full).total)
    assert torch.equal(packed.only(1).text_lengths, lengths[1:2])


def test_clips_of_one_text_are_passed_without_padding(pretrained: Path) -> None:
    model = model_of(pretrained, MultipleChoice(ChoiceOptions())).eval()
    batch = batch_of()
    pixels = batch.pixels.expand(-1, 5, -1, -1, -1, -1, -1)
    lengths = torch.tensor([[4], [16], [9]])
    mask = (torch.arange(L) < lengths[..., None]).long()
    full = replace(batch, pixels=pixels, text_ids=batch.text_ids[:, :1], text_mask=mask)
    with torch.no_grad():
        found = option_scores(model, replace(full, text_lengths=lengths))
        torch.testing.assert_close(found, option_scores(model, full))
