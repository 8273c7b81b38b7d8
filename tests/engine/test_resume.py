"""How a start in a run folder continues."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from allinone.common.errors import ConfigError
from allinone.common.exit_codes import ExitCode
from allinone.common.options import MAY_CHANGE, RECORDED, RunInput, RunOptions, option
from allinone.engine.checkpoint import reshard
from allinone.engine.checkpoint.best import BestCheckpoint, Selection
from allinone.engine.checkpoint.layout import CheckpointError, step_folder
from allinone.engine.checkpoint.manifest import write_manifest
from allinone.engine.config import TrainConfig
from allinone.engine.distributed.topology import Layout
from allinone.engine.resume import compare_options, decide, evaluation_due, examine, is_done
from allinone.finetune.config import FinetuneConfig
from allinone.finetune.tasks.options import TaskOptions
from allinone.pretrain.config import PretrainConfig

RENAMED = {"old-depth": "depth"}


@dataclass(frozen=True)
class Model:
    depth: int = 2
    width: int = 8


@dataclass(frozen=True)
class Head:
    labels: int = 3


@dataclass(frozen=True)
class Config:
    out: Path = field(metadata=MAY_CHANGE)
    model: Model = field(default_factory=Model)
    head: Head = field(default_factory=Head, metadata=RECORDED)
    train: TrainConfig = field(default_factory=TrainConfig)


CONFIG = Config(Path("runs/x"))


def options(**train: Any) -> RunOptions:
    return RunOptions.of(replace(CONFIG, train=TrainConfig(**train)))


def write_checkpoint(
    out: Path, step: int, damaged: bool = False, layout: dict[str, Any] | None = None
) -> Path:
    folder = step_folder(out, step)
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"step": step}))
    if layout:
        (folder / "layout.json").write_text(json.dumps(layout))
    write_manifest(folder)
    if damaged:
        (folder / "run.json").unlink()
    return folder


def test_an_empty_folder_is_claimed_for_a_new_run(tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    decision = decide(tmp_path, options())
    assert (decision.kind, decision.step) == ("fresh", 0)
    assert json.loads((tmp_path / "run.json").read_text()) == options()
    assert "new run" in decision.explain()


def test_a_run_resumes_from_its_newest_checkpoint(tmp_path: Path) -> None:
    decide(tmp_path, options())
    write_checkpoint(tmp_path, 5)
    newest = write_checkpoint(tmp_path, 10)
    decision = decide(tmp_path, options(log_every=7))
    assert (decision.kind, decision.step, decision.checkpoint) == ("resume", 10, newest)
    assert [str(change) for change in decision.changed] == ["train.log_every: 50 → 7"]
    assert "after step 10" in decision.explain()


def test_a_damaged_checkpoint_is_set_aside_for_the_previous_one(tmp_path: Path) -> None:
    decide(tmp_path, options())
    previous = write_checkpoint(tmp_path, 5)
    damaged = write_checkpoint(tmp_path, 10, damaged=True)
    assert examine(tmp_path, options()).checkpoint == previous
    assert damaged.exists(), "examine changes nothing"
    decision = decide(tmp_path, options())
    assert decision.checkpoint == previous
    assert "step-00000010 is missing run.json" in decision.damaged[0]
    assert (damaged.parent / "damaged-step-00000010").exists()


def test_a_folder_of_damaged_checkpoints_only_is_refused(tmp_path: Path) -> None:
    decide(tmp_path, options())
    folder = write_checkpoint(tmp_path, 5, damaged=True)
    with pytest.raises(CheckpointError, match="all checkpoints are damaged") as caught:
        decide(tmp_path, options())
    assert caught.value.exit_code == ExitCode.USAGE
    assert folder.exists()


def test_a_folder_with_other_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    decision = examine(tmp_path, options())
    assert decision.kind == "refused"
    assert "give another --out" in decision.explain()
    with pytest.raises(ConfigError, match="not empty"):
        decide(tmp_path, options())
    assert not (tmp_path / "run.json").exists()


def test_every_option_that_changes_the_result_is_named(tmp_path: Path) -> None:
    decide(tmp_path, options())
    before = (tmp_path / "run.json").read_text()
    with pytest.raises(ConfigError, match=r"train\.lr: 0\.0001 → 0\.5; train\.seed: 0 → 3"):
        decide(tmp_path, options(lr=0.5, seed=3, keep_last=9))
    assert (tmp_path / "run.json").read_text() == before


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"tensor_parallel": 2, "quiet": True}, []),
        ({"ds_config": "zero3_bf16"}, []),
        ({"ds_config": "zero1_fp32"}, ["train.ds_config: zero1_bf16 → zero1_fp32"]),
    ],
)
def test_a_layout_may_change_while_the_arithmetic_is_kept(
    changes: dict[str, Any], refused: list[str]
) -> None:
    found = compare_options(options(), options(**changes))
    assert [str(change) for change in found.refused] == refused


def test_a_layout_that_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    decide(tmp_path, options())
    layout = reshard.identity({"bf16": {"enabled": True}}, Layout(0, 4, 1))
    folder = write_checkpoint(tmp_path, 5, layout=layout)
    assert decide(tmp_path, options(), layout).layout_change == ""
    other = reshard.identity({"bf16": {"enabled": True}}, Layout(0, 4, 2))
    decision = decide(tmp_path, options(), other)
    assert decision.layout_change == "data ranks 4 → 2, tensor parallel 1 → 2"
    assert decision.layout_change in decision.explain()
    with pytest.raises(CheckpointError, match="written in bf16, this run computes in fp32"):
        decide(tmp_path, options(), reshard.identity({}, Layout(0, 4, 1)))
    (folder / "layout.json").unlink()
    (folder / "manifest.json").unlink()
    write_manifest(folder)
    with pytest.raises(CheckpointError, match=r"without layout\.json"):
        decide(tmp_path, options(), layout)


def test_renamed_and_moved_options_keep_their_value() -> None:
    old: dict[str, Any] = json.loads(json.dumps(options(max_anomaly_reports=3)))
    old["train"]["max_dossiers"] = old["train"].pop("max_anomaly_reports")
    old["model"]["old_depth"] = old["model"].pop("depth") + 1
    old["width"] = old["model"].pop("width")
    found = compare_options(old, options(max_anomaly_reports=4))
    assert [str(change) for change in found.refused] == ["model.depth: 3 → 2"]
    assert [str(change) for change in found.allowed] == ["train.max_anomaly_reports: 3 → 4"]
    assert not found.unknown


def test_options_of_other_versions_do_not_forbid_to_resume() -> None:
    old: dict[str, Any] = json.loads(json.dumps(options()))
    old["train"]["gone"] = 1
    del old["train"]["beta2"], old["train"]["quiet"]
    found = compare_options(old, options())
    assert not found.refused
    assert found.unknown == ["train.gone"]
    found = compare_options(old, options(beta2=0.9))
    assert [str(change) for change in found.refused] == ["train.beta2: 0.98 → 0.9"]


def test_a_group_with_a_policy_must_be_recorded_completely() -> None:
    old: dict[str, Any] = json.loads(json.dumps(options()))
    old["head"]["answers"] = old["head"].pop("labels")
    found = compare_options(old, options())
    assert [change.name for change in found.refused] == ["head.answers", "head.labels"]


def test_runs_of_the_previous_version_resume() -> None:
    """run.json of these configs was written before policies existed; the set below decided."""
    harmless = """log_every save_every keep_last keep_every eval_every max_skipped spike_deviations
        max_anomaly_reports straggler_ratio hang_timeout_s json device compile
        activation_checkpointing tensor_parallel out val val_items workers image_workers
        dali_threads pipelines prefetch backend clip_timeout_s max_bad_share"""
    places = {"data", "images", "init_from", "annotations", "checkpoint"}
    expected = {*harmless.split(), "ds_config", "quiet", "verbose", "augment_backend", *places}
    expected |= {"media", "cache", "accept_changed_data", "keep_best", "log_to", "eval_at_start"}
    expected |= {"cache_dir", "cache_gb"}
    pretrain = PretrainConfig(Path("runs/x"), ("prepared",)).as_json()
    path = Path()
    finetune = FinetuneConfig(path, path, path, path, task=TaskOptions()).as_json()
    found = {
        name.rpartition(".")[2]
        for options in (pretrain, finetune)
        for name, info in options.known.items()
        if info.policy != "same"
    }
    assert found == expected
    assert {
        name.rpartition(".")[2]
        for options in (pretrain, finetune)
        for name, info in options.known.items()
        if info.policy == "content"
    } == places
    for options in (pretrain, finetune):
        assert not compare_options(json.loads(json.dumps(options)), options).refused


@dataclass(frozen=True)
class Placed:
    data: tuple[str, ...] = option((), resume="content")
    train: TrainConfig = field(default_factory=TrainConfig)


def placed(*data: str, **digests: str) -> RunOptions:
    inputs = {
        key: RunInput(f"the set {key}", lambda digest=digest: {"clips": digest}, "data")
        for key, digest in digests.items()
    }
    return RunOptions.of(Placed(data), inputs)


def refusal(out: Path, options: RunOptions, **accept: bool) -> str:
    found = examine(out, options, **accept).refusal
    return "" if found is None else str(found)


def test_content_decides_and_not_how_a_path_is_spelled(tmp_path: Path) -> None:
    decide(tmp_path, placed("a/x", a="1"))
    for same in ("a/x", "/elsewhere/y", "a/x/", "a/x:train", "a/x=1"):
        assert refusal(tmp_path, placed(same, a="1")) == ""
    assert "data: ['a/x'] → ['a/x=2']" in refusal(tmp_path, placed("a/x=2", a="1"))
    assert "data: ['a/x'] → ['a/x:val']" in refusal(tmp_path, placed("a/x:val", a="1"))
    assert "the set a: changed" in refusal(tmp_path, placed("a/x", a="2"))
    assert refusal(tmp_path, placed("b", a="2"), accept_changed=True) == ""
    assert "data" in refusal(tmp_path, placed("b=2", a="2"), accept_changed=True)


def test_without_a_fingerprint_the_real_path_decides(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    out = tmp_path / "run"
    decide(out, placed(str(tmp_path / "data")))
    assert refusal(out, placed(f"{tmp_path}/link/:train", a="1")) == ""
    assert "data" in refusal(out, placed("elsewhere", a="1"))
    assert refusal(out, placed("elsewhere", a="1"), accept_changed=True) == ""


def test_a_run_is_done_when_its_last_step_is_evaluated(tmp_path: Path) -> None:
    config = TrainConfig(steps=4, eval_every=2)
    best = BestCheckpoint(Selection("score", patience=1), tmp_path)
    assert not is_done(config, 2, best, evaluates=True)
    assert evaluation_due(config, 2, best, evaluates=True)
    assert is_done(config, 4, best, evaluates=False)
    assert not is_done(config, 4, best, evaluates=True)
    best.update(2, {"score": 1.0})
    assert not evaluation_due(config, 2, best, evaluates=True)
    best.update(3, {"score": 0.5})
    assert is_done(config, 3, best, evaluates=True), "patience ends"
