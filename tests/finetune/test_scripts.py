"""Every entry script: --help, two steps of training and an evaluation, on made-up files in its
benchmark's official format."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from allinone.finetune.command import parse
from allinone.finetune.evaluation.results import PREDICTIONS, read_predictions, read_results
from tests.finetune.official import WRITERS
from tests.finetune.runs import ROOT, Ended, FinetuneCommand, run_jobs
from tests.tools.conftest import tiny_model

PLAIN = (
    "--global-batch 2 --micro-batch 2 --workers 0 --dali-threads 1 --ds-config zero1_fp32 --steps 2"
    " --eval-every 2"
)


@dataclass(frozen=True)
class Script:
    """How a script is run, and the expected result."""

    sample: str
    """The made-up benchmark."""
    items: int
    scores: tuple[str, ...]
    options: tuple[str, ...] = ()


ACCURACY, RETRIEVAL = ("accuracy",), ("t2v/R@1", "t2v/MdR", "v2t/R@1")
CAPTIONS = ("CIDEr-D", "BLEU-4", "ROUGE-L")
QA = ("accuracy", "accuracy_answerable", "coverage")
WITHOUT_TRAINING = ("--eval-only",)
SCRIPTS = {
    "msrvtt_retrieval": Script("msrvtt", 2, RETRIEVAL, ("--variant", "1k-b")),
    "msrvtt_qa": Script("msrvtt", 8, QA),
    "msrvtt_choice": Script("msrvtt", 4, ACCURACY),
    "msrvtt_caption": Script("msrvtt", 4, CAPTIONS, ("--no-meteor",)),
    "msvd_caption": Script("msvd", 2, CAPTIONS, ("--beams", "1", "--no-meteor")),
    "vatex_caption": Script("vatex", 2, CAPTIONS, ("--views", "2", "--no-meteor")),
    "youcook2_caption": Script("youcook2", 4, CAPTIONS),
    "msvd_qa": Script("msvd", 4, QA),
    "msvd_retrieval": Script("msvd", 2, RETRIEVAL, ("--rerank", "1")),
    "tgif_action": Script("tgif", 2, ACCURACY),
    "tgif_transition": Script("tgif", 2, ACCURACY),
    "tgif_frameqa": Script("tgif", 2, QA),
    "tvqa": Script("tvqa", 4, ACCURACY, ("--variant", "timestamps-subtitles")),
    "lsmdc_choice": Script("lsmdc", 2, ACCURACY),
    "lsmdc_retrieval": Script("lsmdc", 2, RETRIEVAL),
    "activitynet_retrieval": Script("activitynet", 2, RETRIEVAL),
    "didemo_retrieval": Script("didemo", 2, RETRIEVAL),
    "vcr": Script("vcr", 2, ("q2a", "qa2r", "q2ar")),
    "k400_linear": Script("kinetics", 2, ("top1",)),
    "hmdb51_linear": Script("hmdb51", 2, ("top1",), ("--variant", "1")),
    "ucf101_linear": Script("ucf101", 12, ("top1",)),
    "vqav2": Script("vqav2", 15, ACCURACY, ("--variant", "val")),
    "coco_retrieval": Script("coco", 2, RETRIEVAL),
    "flickr30k_retrieval": Script("flickr30k", 2, RETRIEVAL, ("--rerank", "all")),
    "activitynet_qa": Script(
        "activitynet_qa",
        5,
        (*QA, "accuracy/motion", "accuracy/free", "accuracy/free:yes/no", "accuracy/free:number"),
    ),
    "nextqa": Script(
        "nextqa", 4, ("accuracy", "accuracy/causal", "accuracy/temporal:before/after")
    ),
    "vatex_retrieval": Script(
        "vatex", 2, (*RETRIEVAL, "dual-softmax/t2v/MdR"), ("--dual-softmax",)
    ),
    "youcook2_retrieval": Script("youcook2", 3, RETRIEVAL),
    "ssv2_linear": Script("ssv2", 4, ("top1",)),
    "ssv2_retrieval": Script("ssv2", 4, ("t2v/R@1", "t2v/MdR", "v2t/MdR")),
    "lsmdc_fib": Script("lsmdc", 4, QA),
    "ego4d_choice": Script("ego4d", 5, ACCURACY, WITHOUT_TRAINING),
    "egomcq": Script(
        "egomcq", 4, ("accuracy", "accuracy/inter", "accuracy/intra"), WITHOUT_TRAINING
    ),
}
HIDDEN = {"tvqa": ("tvqa", ("--eval-split", "test")), "vqav2": ("vqav2", ())}
"""Evaluations on a split with hidden labels, which write the file of the test server: name →
(sample, options)."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scripts")
    for name in {script.sample for script in SCRIPTS.values()}:
        WRITERS[name](folder / name)
    tiny_model().save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def ended(root: Path) -> dict[str, Ended]:
    """All scripts, trained and evaluated; then two of them, evaluated on hidden labels with the
    weights that they trained."""

    def job(
        name: str, sample: str, out: str, checkpoint: str, options: tuple[str, ...]
    ) -> FinetuneCommand:
        places = {
            "annotations": root / sample / "annotations",
            "media": root / sample / "media",
            "checkpoint": root / checkpoint,
        }
        argv = [text for option, path in places.items() for text in (f"--{option}", str(path))]
        return FinetuneCommand(
            name,
            [
                *argv,
                "--out",
                str(root / "out" / out),
                "--cache",
                str(root / "cache"),
                *PLAIN.split(),
                *options,
            ],
        )

    jobs = {
        name: job(name, script.sample, name, "model", script.options)
        for name, script in SCRIPTS.items()
    }
    for name, (sample, options) in HIDDEN.items():
        jobs[f"{name} hidden"] = job(
            name, sample, f"{name}-hidden", f"out/{name}", (*options, "--eval-only")
        )
    return dict(zip(jobs, run_jobs(list(jobs.values())), strict=True))


def test_every_script_is_run_here() -> None:
    found = {
        path.stem
        for path in (ROOT / "finetune").glob("*.py")
        if "\nBENCHMARK = " in path.read_text()
    }
    assert found == set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_trains_and_evaluates_every_item(
    name: str, root: Path, ended: dict[str, Ended]
) -> None:
    if name.endswith("_caption"):
        pytest.importorskip("pycocoevalcap", reason="captions are scored by it")
    assert ended[name].codes == [0], ended[name].output[-3000:]
    script, out = SCRIPTS[name], root / "out" / name
    ((path, result),) = read_results(out)
    assert (result.benchmark, result.zero_shot) == (name, "--eval-only" in script.options)
    assert path.name == f"{result.name}.json"
    assert result.items == script.items
    assert result.official is False, "made-up items"
    assert json.loads(path.read_text())["official"] is False
    assert not result.missing, "all made-up media can be shown"
    assert set(script.scores) <= set(result.scores)
    folds = sorted(out.glob("fold-*"))
    rows = [
        row
        for run in folds or [out]
        for file in (run / PREDICTIONS).glob("*.jsonl")
        for row in read_predictions(file).values()
    ]
    assert len(rows) >= script.items
    if folds:
        assert (result.variant, len(folds), len(result.details["folds"])) == ("mean", 3, 3)
        tops = [row["measures"]["top1"] for row in rows]
        assert result.scores["top1"].value == pytest.approx(100 * sum(tops) / len(tops)), (
            "here, folds are of equal size"
        )


def test_hidden_labels_give_the_test_servers_file(root: Path, ended: dict[str, Ended]) -> None:
    for name in HIDDEN:
        assert ended[f"{name} hidden"].codes == [0], ended[f"{name} hidden"].output[-3000:]
        ((_, result),) = read_results(root / "out" / f"{name}-hidden")
        assert not result.scores
    tvqa = json.loads(
        (root / "out" / "tvqa-hidden" / PREDICTIONS / "tvqa_submission.json").read_text()
    )
    assert set(tvqa) == {"10", "11"}
    assert set(tvqa.values()) <= {0, 1, 2, 3, 4}
    vqa = json.loads(
        (root / "out" / "vqav2-hidden" / PREDICTIONS / "vqav2_submission.json").read_text()
    )
    assert [row["question_id"] for row in vqa] == [
        10 * image + k for image in (201, 202) for k in range(3)
    ]
    assert {row["answer"] for row in vqa} <= {"net", "yes"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_documents_command_hardware_and_numbers(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    script = importlib.import_module(f"finetune.{name}")
    for fact in (f"finetune/{name}.py --annotations", "Hardware", "measured by us", "paper"):
        assert fact in " ".join(str(script.__doc__).split())
    with pytest.raises(SystemExit) as end:
        parse(script.BENCHMARK, ["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    for option in (
        "--annotations",
        "--media",
        "--checkpoint",
        "--eval-only",
        "--frames",
        "--views",
        "--image-size",
    ):
        assert option in shown


def test_cocos_variant_1k_is_the_mean_over_five_folds() -> None:
    script = importlib.import_module("allinone.finetune.coco_retrieval")
    required = ["--annotations", "a", "--media", "m", "--checkpoint", "c", "--out", "o"]
    for options, folds in ((["--variant", "1k"], 5), ([], 0)):
        assert parse(script.BENCHMARK, [*required, *options])[0].task.folds == folds
