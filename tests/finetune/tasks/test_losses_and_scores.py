"""Losses and scores of tasks against formulas in plain torch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from allinone.common.errors import ConfigError
from allinone.finetune.config import FinetuneConfig, TuneConfig
from allinone.finetune.inputs.batch import TaskBatch
from allinone.finetune.msrvtt_retrieval import BENCHMARK as MSRVTT
from allinone.finetune.task_model.heads import pooled
from allinone.finetune.task_model.model import TaskModel, build_model
from allinone.finetune.task_model.source import read_source_checkpoint, task_config
from allinone.finetune.tasks.action_recognition import ActionRecognition, draw_share, mix
from allinone.finetune.tasks.base import Task
from allinone.finetune.tasks.multiple_choice import MultipleChoice, option_scores, zero_shot_scores
from allinone.finetune.tasks.open_ended_qa import OpenEndedQA
from allinone.finetune.tasks.options import (
    ActionOptions,
    ChoiceOptions,
    QAOptions,
    RetrievalOptions,
)
from allinone.finetune.tasks.retrieval import Retrieval
from tests.parity.timm_golden import GOLDEN, LAM, SMOOTHING, mixup_inputs
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


def probe(pretrained: Path, **options: float) -> tuple[ActionRecognition, TaskModel, TaskBatch]:
    task = ActionRecognition(ActionOptions(probe="full", **options))  # type: ignore[arg-type]
    task.classes = tuple("abcde")
    batch = replace(batch_of(), target=torch.tensor([0, 3, 4]))
    one = replace(batch, text_ids=batch.text_ids[:, :1], text_mask=batch.text_mask[:, :1])
    return task, model_of(pretrained, task).eval(), one


def smoothed(logits: torch.Tensor, target: torch.Tensor, share: float) -> torch.Tensor:
    """The formula: 1 - share on the class, and share / K on each of the K classes."""
    classes = logits.shape[-1]
    wanted = F.one_hot(target, classes) * (1 - share) + share / classes
    return -(wanted * logits.log_softmax(-1)).sum(-1)


def logits_of(model: TaskModel, batch: TaskBatch, pixels: torch.Tensor) -> torch.Tensor:
    ids, mask = batch.text_ids[:, 0], batch.text_mask[:, 0]
    return model.task_head(model(pixels[:, 0, 0], ids, mask, read="pooled").pooled)


def test_label_smoothing_of_classes_and_answers(pretrained: Path) -> None:
    task, model, batch = probe(pretrained, label_smoothing=0.1)
    questions = OpenEndedQA(QAOptions(label_smoothing=0.1))
    questions.vocabulary = task.classes
    with torch.no_grad():
        expected = smoothed(logits_of(model, batch, batch.pixels), batch.target, 0.1).mean()
        torch.testing.assert_close(task(model, batch).total, expected)
        torch.testing.assert_close(questions(model, batch).total, expected)
    with pytest.raises(ConfigError, match=r"--label-smoothing 0\.1 is for --loss ce"):
        QAOptions(loss="bce", label_smoothing=0.1)


def test_mixup_mixes_pixels_and_targets_as_timm_does(pretrained: Path) -> None:
    logits, classes = mixup_inputs()
    _, parts = mix(replace(batch_of(), target=classes), torch.tensor(LAM))
    losses = sum(
        share * F.cross_entropy(logits, target, reduction="none", label_smoothing=SMOOTHING)
        for share, target in parts
    )
    expected = torch.tensor(json.loads(GOLDEN.read_text())["mixup_losses"])
    torch.testing.assert_close(losses, expected)
    task, model, batch = probe(pretrained, mixup=0.8)
    with torch.no_grad():
        torch.manual_seed(5)
        share = draw_share(0.8, batch.pixels.device)
        pixels = share * batch.pixels + (1 - share) * batch.pixels[[2, 1, 0]]
        found = logits_of(model, batch, pixels)
        own = F.cross_entropy(found, batch.target)
        other = F.cross_entropy(found, batch.target[[2, 1, 0]])
        torch.manual_seed(5)
        torch.testing.assert_close(task(model, batch).total, share * own + (1 - share) * other)


def test_mixup_shares_follow_the_beta_distribution() -> None:
    torch.manual_seed(0)
    drawn = torch.stack([draw_share(0.4, torch.device("cpu")) for _ in range(4000)])
    # Beta(a, a): mean 1/2, variance 1 / (4 (2a + 1))
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.02)
    assert drawn.var().item() == pytest.approx(1 / 7.2, rel=0.05)
    with pytest.raises(ConfigError, match="--mixup mixes the clips of a micro-batch"):
        FinetuneConfig(task=ActionOptions(mixup=0.2), train=TuneConfig(micro_batch=1))
