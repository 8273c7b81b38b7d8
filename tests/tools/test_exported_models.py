"""Exported folders: their models compute what the run's evaluation computed, with transformers
alone, and predict uses their heads."""

from __future__ import annotations

import contextlib
import csv
import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import allinone
from allinone.finetune.annotations.schema import VCRItem
from allinone.finetune.annotations.vcr import Tokens
from allinone.finetune.command import parse
from allinone.finetune.evaluation.evaluator import Evaluator
from allinone.finetune.evaluation.results import read_results
from allinone.finetune.inputs.batch import TaskBatch
from allinone.finetune.run import FinetuneJob
from allinone.finetune.tasks import action_recognition, open_ended_qa
from allinone.model.contrast import embed_text, embed_video
from allinone.tools import predict, search
from allinone.tools.convert import main
from allinone.tools.inspection.checkpoints import load_checkpoint
from allinone.tools.video_index.build import update_index
from tests.data.media import write_image
from tests.finetune.official import WRITERS
from tests.finetune.runs import FinetuneCommand, run_jobs
from tests.forked import ROOT
from tests.tools.conftest import tiny_model

PLAIN = (
    "--global-batch 4 --micro-batch 2 --workers 0 --ds-config zero1_fp32 --steps 2 --eval-every 2"
    " --lr 1e-2 --eval-batch 3 --max-text-len 32"
)
RUNS = {
    "msrvtt_qa": ("msrvtt", ()),
    "k400_linear": ("kinetics", ("--views", "1", "--probe", "full")),
    "tgif_action": ("tgif", ()),
    "msrvtt_retrieval": (
        "msrvtt",
        ("--variant", "full", "--rank", "1", "--negatives", "2", "--rerank", "2"),
    ),
    "vcr": ("vcr", ()),
}
if importlib.util.find_spec("pycocoevalcap"):  # which scores captions
    RUNS["msrvtt_caption"] = ("msrvtt", ("--beams", "3", "--no-meteor"))
needs_captions = pytest.mark.skipif(
    "msrvtt_caption" not in RUNS, reason="pycocoevalcap is not installed"
)


def arguments(root: Path, benchmark: str) -> list[str]:
    sample, more = RUNS[benchmark]
    folders = {
        "annotations": root / sample / "annotations",
        "media": root / sample / "media",
        "cache": root / "cache",
    }
    given = [text for name, path in folders.items() for text in (f"--{name}", str(path))]
    return [*given, *PLAIN.split(), *more]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuned run of each task, in root/NAME, exported to root/NAME.model."""
    folder = tmp_path_factory.mktemp("exported")
    for name in {sample for sample, _ in RUNS.values()}:
        WRITERS[name](folder / name)
    tiny_model().save_pretrained(folder / "model")
    jobs = [
        FinetuneCommand(
            name,
            [
                *arguments(folder, name),
                *("--checkpoint", str(folder / "model"), "--out", str(folder / f"{name}.run")),
            ],
        )
        for name in RUNS
    ]
    for name, ended in zip(RUNS, run_jobs(jobs), strict=True):
        assert set(ended.codes) == {0}, ended.output
        out = folder / f"{name}.model"
        assert main(["to-safetensors", str(folder / f"{name}.run"), "--out", str(out)]) == 0
    return folder


Recorded = list[tuple[str, TaskBatch, Any, Tensor]]


def evaluation(
    root: Path, name: str, out: Path, monkeypatch: pytest.MonkeyPatch, *more: str
) -> tuple[Recorded, FinetuneJob]:
    """(stage, batch, model, values) of the run's evaluation."""
    recorded: Recorded = []
    run = Evaluator.run

    def recording(self: Evaluator, stage: str, *given: Any) -> Any:
        *others, score = given

        def scored(model: Any, batch: TaskBatch) -> Tensor:
            values = score(model, batch)
            recorded.append((stage, batch, model, values))
            return values

        return run(self, stage, *others, scored)

    monkeypatch.setattr(Evaluator, "run", recording)
    benchmark = importlib.import_module(f"allinone.finetune.{name}").BENCHMARK
    argv = [*arguments(root, name), "--eval-only", "--checkpoint", str(root / f"{name}.run")]
    argv += more
    job = FinetuneJob(benchmark, parse(benchmark, [*argv, "--out", str(out)])[0])
    job.run()
    assert recorded
    return recorded, job


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_answers_of_the_exported_model_are_the_runs(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = transformers.AutoModelForVisualQuestionAnswering
    model = auto.from_pretrained(root / "msrvtt_qa.model").eval()
    assert isinstance(model, allinone.AllInOneForQuestionAnswering)
    recorded, job = evaluation(root, "msrvtt_qa", tmp_path, monkeypatch)
    assert list(model.config.id2label.values()) == list(job.task.vocabulary)  # type: ignore[attr-defined]
    for _, batch, tuned, _ in recorded:
        output = model(batch.pixels[:, 0, 0], batch.text_ids[:, 0], batch.text_mask[:, 0])
        close(output.logits, open_ended_qa._logits(tuned, batch))


@torch.no_grad()
def test_classes_of_the_exported_model_are_the_runs(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = root / "k400_linear.model"
    model = transformers.AutoModelForVideoClassification.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    recorded, job = evaluation(root, "k400_linear", tmp_path, monkeypatch)
    assert list(model.config.label2id) == list(job.task.classes)  # type: ignore[attr-defined]
    for _, batch, tuned, values in recorded:
        output = model(batch.pixels[:, 0, 0], batch.text_ids[:, 0], batch.text_mask[:, 0])
        close(output.logits, values)
        close(action_recognition._logits(tuned, batch), values)
    # the file, through the exported processor and the prompt in config.json
    item = job.splits.test.items[batch.items[0]]
    file = root / "kinetics" / "media" / job.library[item.media].path
    inputs = processor(videos=file, text=model.config.task["prompt"], return_tensors="pt")
    close(model(**inputs).logits[0], values[0])


@torch.no_grad()
def test_options_of_the_exported_model_are_scored_alike(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = transformers.AutoModelForMultipleChoice.from_pretrained(root / "tgif_action.model")
    assert model.config.task["list_options"]
    for _, batch, _, values in evaluation(root, "tgif_action", tmp_path, monkeypatch)[0]:
        given = batch.pixels[:, 0, 0], batch.text_ids, batch.text_mask
        close(model.eval()(*given).logits, values)
        # as well with one clip per option
        clips = given[0][:, None].expand(-1, batch.text_ids.shape[1], -1, -1, -1, -1)
        one = model(clips, batch.text_ids[:, 0], batch.text_mask[:, 0]).logits
        close(one[:, 0], values[:, 0])


@torch.no_grad()
def test_answers_and_rationales_of_vcr_are_scored_alike(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = allinone.AllInOneForMultipleChoice.from_pretrained(root / "vcr.model").eval()
    for _, batch, _, values in evaluation(root, "vcr", tmp_path, monkeypatch)[0]:
        for picture, part, texts in (
            (0, "answer", slice(4)),
            (1, "rationale", slice(4, None)),
        ):
            ids, mask = batch.text_ids[:, texts], batch.text_mask[:, texts]
            output = model(batch.pixels[:, picture, 0], ids, mask, part=part)
            close(output.logits, values[:, texts])


@torch.no_grad()
def test_towers_and_rank_head_of_retrieval_are_the_runs(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = allinone.AllInOneForRetrieval.from_pretrained(root / "msrvtt_retrieval.model").eval()
    recorded, _ = evaluation(root, "msrvtt_retrieval", tmp_path, monkeypatch)
    stages = {stage for stage, *_ in recorded}
    assert {"clips", "texts"} < stages
    tuned = recorded[0][2]
    for stage, batch, _, values in recorded:
        if stage == "clips":
            pixels = batch.pixels[:, 0, 0]
            close(model.get_video_features(pixels).pooler_output, values)
        elif stage == "texts":
            ids, mask = batch.text_ids[:, 0], batch.text_mask[:, 0]
            close(model.get_text_features(ids, mask).pooler_output, values)
    output = model(pixels, ids, mask, labels=torch.zeros(len(ids), dtype=torch.int64))
    cosines = embed_text(tuned, ids, mask) @ embed_video(tuned, pixels).T
    close(output.logits, tuned.logit_scale() * cosines)
    pairs = tuned(pixels[:1].expand(len(ids), -1, -1, -1, -1), ids, mask, read="pooled").pooled
    expected = tuned.task_head(pairs).squeeze(-1)
    clips = torch.zeros(len(ids), dtype=torch.int64)
    close(model.get_pair_logits(pixels[:1], ids, mask, clips), expected)


def test_weights_of_one_head_are_not_loaded_as_another(root: Path) -> None:
    with pytest.raises(ValueError, match="load them by AllInOneForQuestionAnswering"):
        allinone.AllInOneForMultipleChoice.from_pretrained(root / "msrvtt_qa.model")


def test_the_card_names_data_scores_with_intervals_and_limits(root: Path) -> None:
    card = (root / "msrvtt_qa.model" / "README.md").read_text()
    ((_, result),) = read_results(root / "msrvtt_qa.run")
    score = result.scores["accuracy"]
    assert f"| accuracy | {score.value:.2f} % | {score.low:.2f} to {score.high:.2f} |" in card
    assert "| benchmark | msrvtt\\_qa |" in card or "| benchmark | msrvtt_qa |" in card
    assert "one of" in card
    assert "cut at 32 tokens" in card
    assert str(root) not in card, "a card is published: it names no folders of this machine"


def test_exported_files_follow_the_umask(root: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    for path in (root / "msrvtt_qa.model").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask, path


ALONE = """
import importlib.util, json, sys

BLOCKED = {"allinone", "nvidia", "deepspeed", "pyarrow"}

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Blocked())
# with accelerate, transformers asks whether deepspeed can be found
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: None if name in BLOCKED else find(name, *args)
import transformers
folder, video = sys.argv[1:]
given = {"trust_remote_code": True}
auto = transformers.AutoModelForVisualQuestionAnswering
model = auto.from_pretrained(folder, **given).eval()
processor = transformers.AutoProcessor.from_pretrained(folder, **given)
inputs = processor(videos=video, text="what is it?", return_tensors="pt").to("cpu")
ids = transformers.AutoTokenizer.from_pretrained(folder, **given)("what is it?")["input_ids"]
backbone = transformers.AutoModel.from_pretrained(folder, **given)
print(json.dumps([model(**inputs).logits[0].tolist(), ids, type(backbone).__name__]))
assert not [name for name in sys.modules if name.split(".")[0] == "allinone"]
"""


def test_the_folder_loads_with_transformers_alone(root: Path, video: Path, tmp_path: Path) -> None:
    folder = root / "msrvtt_qa.model"
    # -I: neither this folder nor PYTHONPATH is searched
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, str(folder), str(video)],
        cwd=tmp_path,
        env={"HF_HOME": str(tmp_path), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    logits, ids, backbone = json.loads(done.stdout.splitlines()[-1])
    model = allinone.AllInOneForQuestionAnswering.from_pretrained(folder).eval()
    inputs = allinone.AllInOneProcessor.from_pretrained(folder)(video, "what is it?")
    with torch.no_grad():
        # without DALI, torch resizes: both round differently
        torch.testing.assert_close(
            torch.tensor(logits), model(**inputs).logits[0], atol=1e-4, rtol=1e-4
        )
    assert ids == inputs["text_ids"][0][: len(ids)].tolist()
    assert backbone == "AllInOneModel"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], None]:
    """A stand-in of the model hub: (id, folder) → snapshot_download delivers the folder."""
    import huggingface_hub

    folders: dict[str, Path] = {}

    def download(source: str, **kwargs: Any) -> str:
        if source not in folders:
            raise huggingface_hub.errors.LocalEntryNotFoundError("no connection\nsecond line")
        return str(folders[source])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return lambda name, folder: folders.update({name: folder})


def test_hub_ids_are_taken_where_checkpoints_are(
    root: Path, hub: Callable[[str, Path], None], video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub("somebody/answers", root / "msrvtt_qa.model")
    given = ["--video", str(video), "--question", "what is it?", "--json"]
    assert predict.main(["answer", "--checkpoint", "somebody/answers", *given]) == 0
    assert json.loads(capsys.readouterr().out)["weights_are"] == "somebody/answers on the hub"
    processor = allinone.AllInOneProcessor.from_pretrained("somebody/answers")
    assert processor.clip.max_text_len == 32
    assert predict.main(["answer", "--checkpoint", "somebody/else", *given]) == 2
    error = capsys.readouterr().err
    assert "somebody/else is not a file or folder here, and the model hub did not deliver" in error
    assert len(error.splitlines()) == 1
    # the owner is a folder here: a wrong path is not asked of the hub
    assert predict.main(["answer", "--checkpoint", "tests/nothing", *given]) == 2
    assert "tests/nothing does not exist" in capsys.readouterr().err


def test_init_from_takes_runs_files_and_hub_ids(
    root: Path, hub: Callable[[str, Path], None], tmp_path: Path
) -> None:
    from allinone.pretrain.config import ModelOptions

    hub("somebody/weights", root / "model")
    run = root / "msrvtt_qa.run"
    for given, what in (
        (str(run), f"best weights of {run}, step 2"),
        (str(root / "model" / "model.safetensors"), "file "),
        ("somebody/weights", "somebody/weights on the hub"),
    ):
        found = ModelOptions(init_from=given).initial_weights()
        assert found is not None
        assert str(found).startswith(what)


@needs_captions
def test_captions_of_the_exported_model_are_the_runs(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = transformers.AutoModelForImageTextToText
    model = auto.from_pretrained(root / "msrvtt_caption.model").eval()
    assert isinstance(model, allinone.AllInOneForCaptioning)
    recorded, _ = evaluation(root, "msrvtt_caption", tmp_path, monkeypatch)
    processor = allinone.AllInOneProcessor.from_pretrained(root / "msrvtt_caption.model")
    for _, batch, _, values in recorded:
        found = model.generate(batch.pixels[:, 0, 0], num_beams=3, length_penalty=0.6)
        length = found.shape[1]
        assert torch.equal(found, values[:, :length].long())
        assert not values[:, length:].any()
        texts = processor.batch_decode(found, skip_special_tokens=True)
        assert texts == [processor.decode(row, skip_special_tokens=True) for row in found]


@needs_captions
def test_predict_writes_captions(
    root: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, clip = root / "msrvtt_caption.run", ("--video", str(video))
    for decoding, rows in (("beam", 2), ("greedy", 1), ("nucleus", 2)):
        options = ("--decoding", decoding, "--top", "2", "--max-tokens", "5")
        found = asked(capsys, "caption", run, *clip, *options)
        assert 1 <= len(found["results"]) <= rows
        assert all(0 < row["score"] <= 1 for row in found["results"])
        assert found["notes"] == []
        assert asked(capsys, "caption", run, *clip, *options) == found
    shutil.copytree(video.parent, tmp_path / "videos")
    out = tmp_path / "captions.csv"
    argv = ["--checkpoint", str(run), "--videos", str(tmp_path / "videos"), "--out", str(out)]
    assert predict.main(["caption", *argv]) == 0
    (row,) = csv.DictReader(out.open())
    assert row["prediction"] == asked(capsys, "caption", run, *clip)["results"][0]["name"]
    untuned = asked(capsys, "caption", root / "model", *clip)
    assert "not fine-tuned for captions" in untuned["notes"][0]
    assert predict.main(["caption", "--checkpoint", str(root / "msrvtt_qa.run"), *clip]) == 2
    assert "was fine-tuned for open_ended_qa" in capsys.readouterr().err


def test_push_uploads_the_folder_and_says_what_failed(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import huggingface_hub

    pushed: dict[str, Any] = {}

    class Hub:
        def create_repo(self, name: str, **kwargs: Any) -> None:
            if name == "me/refused":
                raise OSError("401 Unauthorized\nmore")
            pushed.update(kwargs, name=name)

        def upload_folder(self, *, repo_id: str, folder_path: Path) -> str:
            pushed["files"] = {path.name for path in folder_path.iterdir()}
            return f"https://hub/{repo_id}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    command = ["to-safetensors", str(root / "model"), "--out"]
    done = main([*command, str(tmp_path / "a"), "--push-to-hub", "me/mine"])
    assert done == 0
    assert "https://hub/me/mine" in capsys.readouterr().out
    assert pushed["private"]
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= pushed["files"]
    assert (
        "from_pretrained('me/mine', trust_remote_code=True)"
        in (tmp_path / "a" / "README.md").read_text()
    )
    assert main([*command, str(tmp_path / "b"), "--push-to-hub", "me/refused"]) == 2
    assert "did not take" in capsys.readouterr().err
    assert (tmp_path / "b" / "model.safetensors").is_file()


def asked(capsys: pytest.CaptureFixture[str], task: str, run: Path, *options: str) -> Any:
    capsys.readouterr()
    code = predict.main([task, "--checkpoint", str(run), *options, "--json"])
    assert code == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_predict_uses_the_fine_tuned_heads(
    root: Path, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = ("--video", str(video))
    run = root / "msrvtt_qa.run"
    found = asked(capsys, "answer", run, *clip, "--question", "what is it?")
    config = allinone.AllInOneConfig.from_pretrained(root / "msrvtt_qa.model")
    assert {row["name"] for row in found["results"]} <= set(config.label2id)
    assert found["weights_are"] == f"best weights of {run}, step 2"
    exported = asked(capsys, "answer", root / "msrvtt_qa.model", *clip, "--question", "what is it?")
    assert exported["results"] == found["results"]
    classes = asked(capsys, "classify", root / "k400_linear.run", *clip)["results"]
    config = allinone.AllInOneConfig.from_pretrained(root / "k400_linear.model")
    assert {row["name"] for row in classes} <= set(config.label2id)
    chosen = asked(
        capsys, "choose", root / "tgif_action.run", *clip, "--choices", "run", "jump", "sit"
    )
    assert chosen["head"] == "multiple-choice head"
    assert sum(row["score"] for row in chosen["results"]) == pytest.approx(1)


def test_predict_refuses_the_head_of_another_task(
    root: Path, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = ["--video", str(video)]
    given = ["--checkpoint", str(root / "msrvtt_qa.run"), *clip]
    assert predict.main(["classify", *given]) == 2
    assert "was fine-tuned for open_ended_qa; give a run" in capsys.readouterr().err
    assert predict.main(["answer", *given, "--question", "x?", "--choices", "no such answer"]) == 2
    assert "'no such answer' is none of the" in capsys.readouterr().err
    given = ["--checkpoint", str(root / "model"), *clip]
    assert predict.main(["classify", *given]) == 2
    assert "was not fine-tuned" in capsys.readouterr().err


def as_written(tokens: Tokens) -> str:
    """A text of VCR's files as predict takes it: regions by their number, from 1."""
    return " ".join(
        token if isinstance(token, str) else f"[{','.join(str(index + 1) for index in token)}]"
        for token in tokens
    )


def test_predict_asks_about_regions_as_vcr_is_evaluated(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recorded, job = evaluation(root, "vcr", tmp_path, monkeypatch, "--highlight", "boxes")
    run = root / "vcr.run"
    for _, batch, _, values in recorded:
        for number, scores in zip(batch.items, values, strict=True):
            item = job.splits.test.items[number]
            assert isinstance(item, VCRItem)
            boxes = [f"{r.name}:{','.join(f'{x:g}' for x in r.box)}" for r in item.regions]
            given = ["--video", str(root / "vcr" / "media" / item.media.path)]
            given += ["--question", as_written(item.question), "--regions", *boxes]
            answers = [as_written(answer) for answer in item.answers]
            found = asked(capsys, "answer", run, *given, "--choices", *answers)
            assert found["head"] == "VCR head for answers"
            expected = dict(zip(answers, scores[:4].softmax(-1).tolist(), strict=True))
            assert {row["name"]: row["score"] for row in found["results"]} == pytest.approx(
                expected, abs=1e-5
            )
            reasons = [as_written(rationale) for rationale in item.rationales]
            given += ["--given-answer", answers[2], "--choices", *reasons]
            found = asked(capsys, "choose", root / "vcr.model", *given)
            expected = dict(zip(reasons, scores[12:16].softmax(-1).tolist(), strict=True))
            assert {row["name"]: row["score"] for row in found["results"]} == pytest.approx(
                expected, abs=1e-5
            )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--question", "why?"], "this model chooses among answers: give --choices"),
        (
            ["--question", "[3]?", "--choices", "a", "b"],
            "mentions region [3], but --regions gives 1",
        ),
        (["--question", "[1]?", "--choices", "a", "b [0]"], "--choices mentions region [0]"),
        (
            ["--question", "q", "--choices", "a", "--regions", "dog 1,2,3,4"],
            "is not NAME:X1,Y1,X2,Y2",
        ),
        (["--question", "q", "--choices", "a", "--regions", "dog:5,2,3,4"], "is empty: X1 must be"),
        (["--question", "[1]", "--choices", "a", "--regions", "dog:0,0,9999,4"], "the picture has"),
    ],
)
def test_regions_that_do_not_fit_are_named(
    root: Path, video: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["answer", "--checkpoint", str(root / "vcr.run"), "--video", str(video)]
    assert predict.main([*given, "--regions", "dog:1,2,30,40", *options]) == 2
    assert message in capsys.readouterr().err


def test_only_models_of_vcr_take_regions(
    root: Path, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, question in (("msrvtt_qa", "what?"), ("tgif_action", "")):
        given = ["--checkpoint", str(root / f"{name}.run"), "--video", str(video)]
        given += ["--question", question, "--choices", "a", "--regions", "dog:1,2,30,40"]
        assert predict.main(["choose", *given]) == 2
        assert "only a model that was fine-tuned for VCR" in capsys.readouterr().err


@torch.no_grad()
def test_pairs_are_ranked_by_the_fine_tuned_rank_head(
    root: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, texts = root / "msrvtt_retrieval.run", ["a red ball", "two dogs", "rain"]
    model = allinone.AllInOneForRetrieval.from_pretrained(root / "msrvtt_retrieval.model").eval()
    processor = allinone.AllInOneProcessor.from_pretrained(root / "msrvtt_retrieval.model")
    inputs = processor(str(video), texts)
    clips = torch.zeros(3, dtype=torch.int64)
    expected = dict(
        zip(
            texts,
            model.get_pair_logits(
                inputs["pixels"][:1], inputs["text_ids"], inputs["text_mask"], clips
            ).tolist(),
            strict=True,
        )
    )
    found = asked(capsys, "rank", run, "--video", str(video), "--text", *texts, "--by", "match")
    assert "rank head of the fine-tuning" in found["by"]
    scores = {row["name"]: row["score"] for row in found["results"]}
    assert scores == pytest.approx(expected, abs=1e-4)
    assert list(scores) == sorted(texts, key=lambda text: -expected[text])
    pair = asked(capsys, "match", run, "--video", str(video), "--text", texts[0])["results"]
    assert pair[0]["score"] == pytest.approx(expected[texts[0]], abs=1e-4)
    assert "VTC" in pair[1]["name"]
    # an index of the fine-tuned run is re-ranked by the same head
    (tmp_path / "videos").mkdir()
    shutil.copy(video, tmp_path / "videos")
    loaded = load_checkpoint(run, "cpu")
    where = tmp_path / "videos", tmp_path / "index"
    update_index(loaded, str(run), *where, workers=0, quiet=True)
    assert search.main([texts[1], "--index", str(where[1]), "--rerank", "1", "--json"]) == 0
    (hit,) = json.loads(capsys.readouterr().out)
    assert hit["match"] == pytest.approx(expected[texts[1]], abs=1e-4)
    assert "rank head" in hit["match_by"]


def test_a_cut_question_is_reported(
    root: Path, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    question = "word " * 600
    options = ("--video", str(video), "--question", question)
    notes = asked(capsys, "answer", root / "msrvtt_qa.run", *options)["notes"]
    assert "has 602 tokens, the model reads 32" in notes[0]


def test_an_interrupted_table_of_videos_is_continued(
    root: Path,
    video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from allinone.tools.inspection.predictor import Predictor

    for name in ("a.mp4", "b.mp4", "c.mp4"):
        shutil.copy(video, tmp_path / name)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    rows = ["path,question,option_1,option_2"]
    rows += ["a.mp4,what?,,", "bad.mp4,what?,,", "b.mp4,<b>who</b>?,,", "c.mp4,where?,,"]
    (tmp_path / "in.csv").write_text("\n".join(rows) + "\n")
    run = root / "msrvtt_qa.run"
    command = ["answer", "--checkpoint", str(run), "--videos", str(tmp_path / "in.csv"), "--out"]
    out, part = tmp_path / "out.csv", tmp_path / ".out.csv.part"
    answer, calls = Predictor.answer, []

    def dies(self: Predictor, path: Path, *given: Any, **named: Any) -> Any:
        calls.append(path.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return answer(self, path, *given, **named)

    monkeypatch.setattr(Predictor, "answer", dies)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        sys.exit(predict.main([*command, str(out)]) or 0)
    assert not out.exists()
    with part.open("a") as file:
        file.write('{"path": "torn')  # the power fails while a line is written
    assert predict.main([*command, str(out)]) == 0
    assert calls == ["a.mp4", "bad.mp4", "b.mp4", "b.mp4", "c.mp4"], "done rows are not repeated"
    assert "2 of 4 rows were done before" in capsys.readouterr().out
    assert not part.exists()
    table = list(csv.DictReader(out.open()))
    assert [Path(row["path"]).name for row in table] == ["a.mp4", "bad.mp4", "b.mp4", "c.mp4"]
    assert [bool(row["error"]) for row in table] == [False, True, False, False]
    single = asked(capsys, "answer", run, "--video", str(video), "--question", "what?")
    assert json.loads(table[0]["results"]) == single["results"]
    assert predict.main([*command, str(out)]) == 2
    assert "exists" in capsys.readouterr().err
    for suffix in (".jsonl", ".parquet", ".html"):
        assert predict.main([*command, str(tmp_path / f"out{suffix}")]) == 0
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["prediction"] or "" for line in lines] == [
        row["prediction"] for row in table
    ]
    import pyarrow.parquet

    assert pyarrow.parquet.read_table(tmp_path / "out.parquet").num_rows == 4
    page = (tmp_path / "out.html").read_text()
    assert page.count("data:image/webp;base64,") == 3
    assert "&lt;b&gt;who&lt;/b&gt;" in page
    assert "<b>who" not in page


def test_rows_of_other_weights_are_not_continued(
    root: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".out.csv.part").write_text('{"command": "of another"}\n')
    options = ["--video", str(video), "--out", str(tmp_path / "out.csv")]
    assert predict.main(["classify", "--checkpoint", str(root / "k400_linear.run"), *options]) == 2
    assert "rows of another command" in capsys.readouterr().err


def blocks(guide: str, language: str) -> list[str]:
    text = (ROOT / "docs" / "guides" / guide).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_commands_of_the_predict_guide_run(
    root: Path,
    video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()
    for name in ("a.mp4", "b.mp4", "clips/c.mp4"):
        shutil.copy(video, tmp_path / name)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(root / "model")
    (tmp_path / "runs" / "qa").symlink_to(root / "msrvtt_qa.run")
    labels = allinone.AllInOneConfig.from_pretrained(root / "msrvtt_qa.model").label2id
    (table,) = blocks("predict.md", "csv")
    first, second = list(labels)[:2]
    table = table.replace("a jump", first).replace("a fall", second)
    (tmp_path / "questions.csv").write_text(table)
    (tmp_path / "runs" / "vcr").symlink_to(root / "vcr.run")
    write_image(tmp_path / "still.jpg", 3, width=400, height=300)
    commands = "".join(blocks("predict.md", "sh")).replace("\\\n", " ")
    lines = [line for line in commands.splitlines() if line]
    assert len(lines) == 6
    for line in lines:
        program, command, *argv = shlex.split(line)
        assert (program, command) == ("allinone", "predict")
        assert predict.main(argv) == 0, capsys.readouterr().err
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert rows[0]["prediction"] in labels
    assert {row["name"] for row in rows[1]["results"]} == {first, second}
    assert len(list(csv.DictReader((tmp_path / "ranks.csv").open()))) == 1


def test_code_of_the_python_guide_runs(root: Path, tmp_path: Path) -> None:
    (exporting,) = blocks("python.md", "sh")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(root / "model")
    program, command, *argv = shlex.split(exporting)
    assert (program, command) == ("allinone", "convert")
    with contextlib.chdir(tmp_path):
        assert main(argv) == 0
    own = (tmp_path / "my-model").as_posix()
    *with_project, alone = (
        block.replace('"my-model"', repr(own)) for block in blocks("python.md", "python")
    )
    with contextlib.chdir(ROOT):  # the paths of the demo's clips
        for block in with_project:
            exec(compile(block, "python.md", "exec"), {})
    # the last block is the one for transformers alone
    blocked = ALONE.partition("import transformers")[0]
    done = subprocess.run(
        [sys.executable, "-I", "-c", blocked + alone],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
