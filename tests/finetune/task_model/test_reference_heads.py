"""Every optional head of the original's fine-tuned files loads into its task and scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from allinone.common.errors import ConfigError
from allinone.finetune.annotations.schema import AnnotationError, Split
from allinone.finetune.inputs.batch import TaskBatch
from allinone.finetune.task_model.heads import pooled
from allinone.finetune.task_model.model import TaskModel, build_model
from allinone.finetune.task_model.source import (
    SourceCheckpoint,
    read_source_checkpoint,
    task_config,
)
from allinone.finetune.tasks import action_recognition, multiple_choice, open_ended_qa, vcr
from allinone.finetune.tasks.base import Task
from allinone.finetune.tasks.options import (
    ActionOptions,
    ChoiceOptions,
    QAOptions,
    RetrievalOptions,
    VCROptions,
)
from allinone.finetune.tasks.retrieval import Retrieval
from allinone.model.contrast import embed_text, embed_video
from tests.finetune.reference import SIDE, TOKENS, objectives, random_tensors, reference_model
from tests.tools.lightning import save

ITEMS, VIEWS = 2, 2
HEAD_SCALE = 0.02
"""Small, so that the epsilon of LayerNorm is visible in the result."""


def source_with(tmp_path: Path, objective: str) -> tuple[SourceCheckpoint, dict[str, Tensor]]:
    """A file with every head of an objective, and those heads."""
    head = random_tensors(objectives()[objective], seed=1, scale=HEAD_SCALE)
    return read_source_checkpoint(
        save(tmp_path / "tuned.ckpt", {**reference_model(), **head})
    ), head


def loaded(task: Task, source: SourceCheckpoint, train: Split | None = None) -> TaskModel:
    """The task's model as an evaluation builds it."""
    task.setup(train, source, eval_only=True)
    spec = task.head_spec(zero_shot=not source.task)
    return build_model(source, task_config(source, None, {}), spec, seed=5).eval()


def batch_of(clips: int, texts: int) -> TaskBatch:
    random = torch.Generator().manual_seed(3)
    pixels = torch.randn(ITEMS, clips, VIEWS, 3, 3, SIDE, SIDE, generator=random)
    ids = torch.randint(1000, 30_000, (ITEMS, texts, TOKENS), generator=random)
    mask = torch.ones_like(ids)
    mask[1, :, TOKENS // 2 :] = 0
    number = torch.zeros(ITEMS, dtype=torch.int64)
    return TaskBatch(pixels, ids, mask, number, number, (0, 1), ("a", "b"), 0)


def linear(x: Tensor, head: Mapping[str, Tensor], name: str) -> Tensor:
    return x @ head[f"{name}.weight"].T + head[f"{name}.bias"]


def layer_norm(x: Tensor, head: Mapping[str, Tensor], name: str) -> Tensor:
    """With PyTorch's default epsilon, 1e-5."""
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * head[f"{name}.weight"] + head[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    """The exact form, not the approximation by tanh."""
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def two_layers(x: Tensor, head: Mapping[str, Tensor], name: str, first: int) -> Tensor:
    """Linear, LayerNorm, GELU, Linear; GELU has no parameters, but a number."""
    hidden = gelu(layer_norm(linear(x, head, f"{name}.{first}"), head, f"{name}.{first + 1}"))
    return linear(hidden, head, f"{name}.{first + 3}")


def tokens(model: TaskModel, batch: TaskBatch, clip: int, texts: slice = slice(None)) -> Tensor:
    """Pooled class tokens [B, K, V, W] of one clip."""
    return pooled(model, batch.pixels[:, clip], batch.text_ids[:, texts], batch.text_mask[:, texts])


def names(count: int) -> tuple[str, ...]:
    return tuple(f"label {number}" for number in range(count))


@pytest.mark.parametrize(
    ("objective", "answers", "options", "first"),
    [
        ("openend_vqa msrvtt", 1500, QAOptions(), 1),
        ("vqa (VQAv2)", 3129, QAOptions(answers=0, loss="bce"), 0),
    ],
)
def test_answer_heads_score_in_the_order_of_the_official_list(
    tmp_path: Path, objective: str, answers: int, options: QAOptions, first: int
) -> None:
    source, head = source_with(tmp_path, objective)
    task, batch = open_ended_qa.OpenEndedQA(options), batch_of(1, 1)
    train = Split("train", (), ("answers.json",), answer_space=names(answers))
    with torch.no_grad():
        model = loaded(task, source, train)
        expected = two_layers(tokens(model, batch, 0)[:, 0], head, "vqa_classifier", first).mean(1)
        found = open_ended_qa._logits(model, batch)
    # the original's further class, which is never a target, is left out
    torch.testing.assert_close(found, expected[:, :answers])
    assert task.vocabulary == names(answers)


def test_an_action_head_scores_the_classes_of_the_annotations(tmp_path: Path) -> None:
    # the TSV lists no action head: it is openend_vqa's with 401 outputs
    shapes = {
        key: [401, *shape[1:]] if ".4." in key else shape
        for key, shape in objectives()["openend_vqa msrvtt"].items()
    }
    head = random_tensors(shapes, seed=1, scale=HEAD_SCALE)
    source = read_source_checkpoint(save(tmp_path / "k400.ckpt", {**reference_model(), **head}))
    task, batch = action_recognition.ActionRecognition(ActionOptions()), batch_of(1, 1)
    with torch.no_grad():
        model = loaded(task, source, Split("train", (), ("train.csv",), classes=names(400)))
        expected = two_layers(tokens(model, batch, 0)[:, 0], head, "vqa_classifier", 1).mean(1)
        found = action_recognition._logits(model, batch)
    torch.testing.assert_close(found, expected[:, :400])


def _option(x: Tensor, head: Mapping[str, Tensor]) -> Tensor:
    return two_layers(x, head, "mc_vqa_classifier", 1)


def _rank(x: Tensor, head: Mapping[str, Tensor]) -> Tensor:
    return linear(x, head, "rank_output")


@pytest.mark.parametrize(
    ("objective", "options", "apply"),
    [
        ("mc_vqa", ChoiceOptions(head="mlp"), _option),
        ("multiple_choice", ChoiceOptions(), _rank),
    ],
)
def test_choice_heads_score_options(
    tmp_path: Path,
    objective: str,
    options: ChoiceOptions,
    apply: Callable[[Tensor, Mapping[str, Tensor]], Tensor],
) -> None:
    source, head = source_with(tmp_path, objective)
    batch = batch_of(1, 5)
    with torch.no_grad():
        model = loaded(multiple_choice.MultipleChoice(options), source)
        expected = apply(tokens(model, batch, 0), head).squeeze(-1).mean(-1)
        torch.testing.assert_close(multiple_choice.option_scores(model, batch), expected)


def test_both_rank_heads_of_vcr_score_their_own_texts(tmp_path: Path) -> None:
    source, head = source_with(tmp_path, "vcr_q2a")
    batch = batch_of(2, 20)
    with torch.no_grad():
        model = loaded(vcr.VCR(VCROptions()), source)
        answers = linear(tokens(model, batch, 0, slice(4)), head, "rank_output")
        rationales = linear(tokens(model, batch, 1, slice(4, None)), head, "rank_output_2")
        expected = torch.cat([answers, rationales], 1).squeeze(-1).mean(-1)
        torch.testing.assert_close(vcr._scores(model, batch), expected)


def test_the_rank_head_of_retrieval_is_kept(tmp_path: Path) -> None:
    source, head = source_with(tmp_path, "irtr")
    batch = batch_of(1, 3)
    with torch.no_grad():
        model = loaded(Retrieval(RetrievalOptions(contrast=0, rank=1, rerank="all")), source)
        features = tokens(model, batch, 0)
        torch.testing.assert_close(model.task_head(features), linear(features, head, "rank_output"))


def test_projections_give_the_originals_similarities(tmp_path: Path) -> None:
    source, head = source_with(tmp_path, "ind_itc")
    batch = batch_of(1, 1)
    with torch.no_grad():
        model = loaded(Retrieval(RetrievalOptions()), source)
        ids, mask, pixels = batch.text_ids[:, 0], batch.text_mask[:, 0], batch.pixels[:, 0, 0]
        found = embed_text(model, ids, mask) @ embed_video(model, pixels).T
        text = linear(model.encode_text(ids, mask), head, "txt_proj")
        video = linear(model.encode_video(pixels), head, "vid_proj")
    expected = torch.cosine_similarity(text[:, None], video[None], dim=-1, eps=1e-8)
    assert text.shape == (ITEMS, 512), "the original's projection does not depend on the width"
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("objective", ["vcop", "mpp"])
def test_heads_that_the_original_cannot_train_are_left_out(tmp_path: Path, objective: str) -> None:
    source, head = source_with(tmp_path, objective)
    model = loaded(multiple_choice.MultipleChoice(ChoiceOptions()), source)
    for key in head:
        assert any(line.startswith(f"{key}: the original's") for line in source.report.ignored)
    assert model.config.task["kind"] == multiple_choice.ZERO_SHOT, "still a pre-trained file"


def test_every_objective_of_the_list_is_tested_here() -> None:
    text = Path(__file__).read_text()
    assert [name for name in objectives() if f'"{name}"' not in text] == []


@pytest.mark.parametrize(
    ("train", "error", "message"),
    [
        (None, AnnotationError, r"1,501 outputs.*train_ans2label\.json"),
        (Split("train", (), ()), AnnotationError, r"--annotations lacks it"),
        (
            Split("train", (), ("list.json",), answer_space=names(1499)),
            ConfigError,
            r"1,501 outputs, but list\.json names 1,499",
        ),
    ],
)
def test_class_numbers_without_their_official_names_are_refused(
    tmp_path: Path, train: Any, error: type[Exception], message: str
) -> None:
    source, _ = source_with(tmp_path, "openend_vqa msrvtt")
    with pytest.raises(error, match=message):
        open_ended_qa.OpenEndedQA(QAOptions()).setup(train, source, eval_only=True)


def test_a_head_without_one_of_its_tensors_is_refused(tmp_path: Path) -> None:
    weights = {**reference_model(), "rank_output.weight": torch.ones(1, 128)}
    source = read_source_checkpoint(save(tmp_path / "cut.ckpt", weights))
    with pytest.raises(ValueError, match=r"1 missing: task_head\.bias"):
        loaded(multiple_choice.MultipleChoice(ChoiceOptions()), source)


def test_training_on_other_answers_starts_a_new_head(tmp_path: Path) -> None:
    source, _ = source_with(tmp_path, "openend_vqa msrvtt")
    task = open_ended_qa.OpenEndedQA(QAOptions())
    task.vocabulary = ("cat", "dog")
    config = task_config(source, None, {})
    model = build_model(source, config, task.head_spec(zero_shot=False), seed=5)
    assert model.task_head[4].out_features == 2
    assert "vqa_classifier: this task does not use it" in source.report.ignored
