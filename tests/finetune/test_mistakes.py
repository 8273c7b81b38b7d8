"""User errors: each ends with code 2 and a message that states what was given, what is needed, and
what to change."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from allinone.finetune.annotations.schema import AnnotationError, LabelItem, Media, Split
from allinone.finetune.benchmark import Benchmark
from allinone.finetune.command import main
from allinone.finetune.k400_linear import BENCHMARK as K400
from allinone.finetune.msrvtt_choice import BENCHMARK as CHOICE
from allinone.finetune.msrvtt_qa import BENCHMARK as QA
from allinone.finetune.msrvtt_retrieval import BENCHMARK as RETRIEVAL
from allinone.finetune.task_model.model import build_model
from allinone.finetune.task_model.source import read_source_checkpoint, task_config
from allinone.finetune.tasks.action_recognition import ActionRecognition
from allinone.finetune.tasks.open_ended_qa import OpenEndedQA
from allinone.finetune.tasks.options import ActionOptions, QAOptions, RetrievalOptions
from allinone.finetune.tasks.retrieval import Retrieval
from tests.finetune.official import MadeUpBenchmark
from tests.tools.conftest import tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "pretrained"
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def answering(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was fine-tuned on answers that differ from those of the made-up benchmark."""
    task = OpenEndedQA(QAOptions())
    task.vocabulary = ("cat", "dog", "zebra")
    source = read_source_checkpoint(model)
    tuned = build_model(
        source, task_config(source, None, {}), task.head_spec(zero_shot=False), seed=0
    )
    folder = tmp_path_factory.mktemp("model") / "answering"
    tuned.save_pretrained(folder)
    return folder


@pytest.fixture
def refused(
    samples: Callable[[str], MadeUpBenchmark],
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., str]:
    """Returns the error message of a command that must end with code 2."""

    def run(benchmark: Benchmark, *options: str, **places: Path) -> str:
        sample = samples("kinetics" if benchmark is K400 else "msrvtt")
        paths = {
            "annotations": sample.annotations,
            "media": sample.media,
            "checkpoint": model,
            "out": tmp_path / "out",
            **places,
        }
        argv = [text for name, path in paths.items() for text in (f"--{name}", str(path))]
        plain = [
            "--cache",
            str(tmp_path / "cache"),
            "--workers",
            "0",
            "--steps",
            "1",
            "--global-batch",
            "2",
            "--micro-batch",
            "2",
        ]
        try:
            code = main(benchmark, [*argv, *plain, "--ds-config", "zero1_fp32", *options])
        except SystemExit as left:
            code = left.code  # type: ignore[assignment]
        output = capsys.readouterr()
        assert code == 2, output.err
        return output.err

    return run


def test_missing_annotations_or_media_name_the_archive(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    message = refused(QA, annotations=tmp_path / "empty")
    assert "test_qa.json" in message
    assert "MSRVTT-QA.zip" in message
    message = refused(QA, media=tmp_path / "nowhere")
    assert "--media" in message
    assert "train_val_videos.zip" in message


def test_a_wrong_column_is_named(
    refused: Callable[..., str], samples: Callable[[str], MadeUpBenchmark], tmp_path: Path
) -> None:
    shutil.copytree(samples("msrvtt").annotations, tmp_path / "annotations")
    path = tmp_path / "annotations" / "MSRVTT_JSFUSION_test.csv"
    path.write_text(path.read_text().replace("sentence", "caption", 1))
    message = refused(RETRIEVAL, annotations=tmp_path / "annotations")
    assert "column sentence is missing" in message
    assert "caption" in message


def test_another_size_names_both_sizes(refused: Callable[..., str]) -> None:
    message = refused(QA, "--size", "base")
    assert "32 wide, 4 blocks, 2 heads" in message
    assert "--size base" in message
    assert "nano, tiny, small, base" in refused(QA, "--size", "giant")


def test_changed_answer_vocabulary_shows_the_difference(
    refused: Callable[..., str], answering: Path
) -> None:
    message = refused(QA, "--eval-only", checkpoint=answering)
    assert "was trained with 3 answers" in message
    assert "zebra" in message


def test_a_task_without_a_zero_shot_form_says_so(
    refused: Callable[..., str], answering: Path
) -> None:
    assert "there is no zero-shot form" in refused(QA, "--eval-only")
    assert "another head" in refused(CHOICE, "--eval-only", checkpoint=answering)


def test_the_best_weights_are_never_chosen_on_the_test_split(refused: Callable[..., str]) -> None:
    assert "may not be chosen by it" in refused(RETRIEVAL, "--val-split", "test")
    assert "share" in refused(RETRIEVAL, "--train-split", "train-full")


def test_wrong_names_list_the_valid_ones(refused: Callable[..., str]) -> None:
    assert "valid variants: 9k, 7k, full, 1k-b" in refused(RETRIEVAL, "--variant", "8k")
    assert "did you mean --rerank" in refused(RETRIEVAL, "--rerunk", "3")
    assert "a number of candidates, or all" in refused(RETRIEVAL, "--rerank", "some")
    assert "needs a trained rank head" in refused(RETRIEVAL, "--rerank", "3")


def test_retrieval_without_projections_asks_for_the_joint_pass(model: Path) -> None:
    source = read_source_checkpoint(model)
    for name in ("text_projection.weight", "text_projection.bias"):
        del source.tensors[name]
    with pytest.raises(ValueError, match="Give --rerank all"):
        Retrieval(RetrievalOptions()).setup(None, source, eval_only=True)
    Retrieval(RetrievalOptions(rerank="all")).setup(None, source, eval_only=True)


def test_a_label_outside_the_range_names_the_item() -> None:
    task = ActionRecognition(ActionOptions())
    task.classes = ("run", "jump")
    split = Split("train", [LabelItem("clip7", Media("m", "m"), 2)], ("list.txt",))
    with pytest.raises(AnnotationError, match=r"clip7 has the label 2, outside 0 to 1: list\.txt"):
        task.trainable(split)
    with pytest.raises(AnnotationError, match="classes that are not"):
        task.trainable(Split("train", split.items, (), ("run", "fall")))


def test_weights_that_do_not_fit_are_refused_before_media_are_probed(
    refused: Callable[..., str], model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "more words"
    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    name = "backbone.text_embeddings.word.weight"
    tensors[name] = torch.cat([tensors[name], tensors[name][:2]])
    save_file(tensors, folder / "model.safetensors")
    message = refused(QA, checkpoint=folder)
    assert "words, the vocabulary of this project" in message
    assert not (tmp_path / "cache" / "media").exists()
