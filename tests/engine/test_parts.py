"""Launch, options, schedule, groups and metrics of the engine, each against an independent
computation."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from allinone.common.errors import ConfigError
from allinone.common.retrieval_metrics import chance_metrics, ranks, retrieval_metrics
from allinone.engine import ds_config
from allinone.engine.checkpoint.manager import changed_options
from allinone.engine.config import TrainConfig, every
from allinone.engine.distributed.launch import (
    find_rank_info,
    first_host,
    gpu_of_rank,
    ranks_of_host,
    without_launcher_arguments,
)
from allinone.engine.optim.adamw import learning_rate, parameter_groups
from allinone.engine.trainer import seed_of
from allinone.model import AllInOneConfig, AllInOneForPreTraining


@pytest.mark.parametrize(
    ("env", "launcher", "rank", "world"),
    [
        ({}, "python", 0, 1),
        (
            {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "TORCHELASTIC_RUN_ID": "x"},
            "torchrun",
            3,
            8,
        ),
        (
            {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_PORT": "29501"},
            "deepspeed",
            1,
            2,
        ),
        (
            {"RANK": "0", "WORLD_SIZE": "1", "ALLINONE_LAUNCHER": "python"},
            "python",
            0,
            1,
        ),  # after the first call of `start`
        (
            {
                "SLURM_PROCID": "9",
                "SLURM_NTASKS": "16",
                "SLURM_LOCALID": "1",
                "SLURM_JOB_NODELIST": "localhost",
                "SLURM_JOB_ID": "4711",
                "SLURM_STEP_ID": "0",
            },
            "srun",
            9,
            16,
        ),
        # plain python inside the shell of a 16-task batch job, which is no step of its own
        (
            {
                "SLURM_PROCID": "0",
                "SLURM_NTASKS": "16",
                "SLURM_JOB_NODELIST": "localhost",
                "SLURM_JOB_ID": "4711",
            },
            "python",
            0,
            1,
        ),
    ],
)
def test_each_launcher_is_understood(
    env: dict[str, str], launcher: str, rank: int, world: int
) -> None:
    place = find_rank_info(env)
    assert (place.launcher, place.rank, place.world) == (launcher, rank, world)


def test_slurm_node_lists_and_launcher_arguments() -> None:
    lists = {
        "node[03-07,9]": "node03",
        "a1": "a1",
        "gpu-[12,14]": "gpu-12",
        "x1,x2": "x1",
        "rack[1-2]n[04,07],y1": "rack1n04",
    }
    assert {text: first_host(text) for text in lists} == lists
    assert without_launcher_arguments(["demo", "--local_rank=3", "--lr", "1"]) == [
        "demo",
        "--lr",
        "1",
    ]


def test_ranks_find_their_gpu_and_their_share_of_the_cores() -> None:
    assert [gpu_of_rank(rank, 8) for rank in (0, 7)] == [0, 7]
    assert gpu_of_rank(3, 1) == 0, "srun --gpus-per-task=1 shows each rank its own GPU only"
    with pytest.raises(ValueError, match="2 are visible"):
        gpu_of_rank(2, 2)
    given = [
        {"LOCAL_WORLD_SIZE": "4"},
        {"SLURM_STEP_TASKS_PER_NODE": "8(x16)"},
        {"SLURM_STEP_TASKS_PER_NODE": "3,2"},
        {},
    ]
    assert [ranks_of_host(env, 128) for env in given] == [4, 8, 3, 128]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedule_rises_to_the_peak_and_falls_to_zero(schedule: str) -> None:
    config = TrainConfig(steps=100, warmup=0.1, lr=2.0, schedule=schedule)  # type: ignore[arg-type]
    rates = [learning_rate(config, step) for step in range(1, 102)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == 2.0
    assert all(a > b for a, b in itertools.pairwise(rates[10:101]))
    assert rates[100] == pytest.approx(0)
    if schedule == "linear":
        assert rates[55] == pytest.approx(1.0)
    assert TrainConfig(steps=100, warmup=7).warmup_steps() == 7


def test_biases_and_norms_do_not_decay_and_heads_have_their_own_rate() -> None:
    model = AllInOneForPreTraining(AllInOneConfig.from_size("nano", vocab_size=50))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 0.01, head_patterns=("mlm_head",), head_lr_mult=10)
    for group in groups:
        for parameter in group["params"]:
            name = names.pop(id(parameter))
            decays = not (name.endswith("bias") or "norm" in name or "log_scale" in name)
            assert group["weight_decay"] == (0.01 if decays else 0.0), name
            assert group["lr_mult"] == (10 if "mlm_head" in name else 1), name
    assert not names


def test_a_micro_batch_that_does_not_divide_lists_those_that_do() -> None:
    with pytest.raises(ConfigError, match="valid micro-batches: 1, 2, 3, 4, 6, 12"):
        TrainConfig(global_batch=24, micro_batch=5).accumulation(2)
    with pytest.raises(ConfigError, match="7 ranks"):
        TrainConfig(global_batch=24, micro_batch=4).accumulation(7)


def test_ds_configs_resolve_and_contradictions_name_both_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVME_DIR", str(tmp_path))
    for path in ds_config.FOLDER.glob("*.json"):
        stage, *offload, precision = path.stem.split("_")
        resolved = ds_config.resolve(
            TrainConfig(ds_config=path.stem, global_batch=64, micro_batch=8), 2, on_cpu=False
        )
        assert f"zero{resolved['zero_optimization']['stage']}" == stage
        assert ds_config.precision(resolved) == precision
        assert ds_config.offload(resolved) == (offload[1] if offload else "none")
        assert resolved["gradient_accumulation_steps"] == 4
        if offload[1:] == ["nvme"]:
            assert (
                Path(resolved["zero_optimization"]["offload_optimizer"]["nvme_path"]).parent
                == tmp_path
            )
    own = tmp_path / "own.json"
    own.write_text('{"train_batch_size": 100}')
    with pytest.raises(ConfigError, match=r"train_batch_size = 100.*needs 64"):
        ds_config.resolve(
            TrainConfig(ds_config=str(own), global_batch=64, micro_batch=8), 1, on_cpu=True
        )
    with pytest.raises(ConfigError, match="valid names: zero0_bf16"):
        ds_config.load("zero9")
    with pytest.raises(ConfigError, match="fp16 on a CPU"):
        ds_config.resolve(
            TrainConfig(ds_config="zero1_fp16", global_batch=64, micro_batch=8), 1, on_cpu=True
        )
    own.write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        ds_config.load(str(own))
    on_disk = TrainConfig(ds_config="zero3_offload_nvme_bf16", global_batch=64, micro_batch=8)
    monkeypatch.setenv("NVME_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"nowhere.*give a folder"):
        ds_config.resolve(on_disk, 1, on_cpu=True)
    monkeypatch.delenv("NVME_DIR")
    monkeypatch.delenv("SLURM_TMPDIR", raising=False)
    with pytest.raises(ConfigError, match="set NVME_DIR"):
        ds_config.resolve(on_disk, 1, on_cpu=True)
    own.write_text(
        '{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}, "bf16":'
        ' {"enabled": true, "check_grad_overflow": false}}'
    )
    with pytest.raises(ConfigError, match="remove check_grad_overflow"):
        ds_config.resolve(
            TrainConfig(ds_config=str(own), global_batch=64, micro_batch=8), 1, on_cpu=True
        )


def test_every_ds_config_and_every_line_of_it_is_explained() -> None:
    text = (ds_config.FOLDER / "README.md").read_text()
    for path in ds_config.FOLDER.glob("*.json"):
        assert f"`{path.stem.rsplit('_', 1)[0]}_*`" in text
        config = ds_config.load(path.stem)
        zero, scaler = (
            config.get("zero_optimization", {}),
            config.get("fp16", {}) | config.get("bf16", {}),
        )
        for key in (
            ({*config} - {"zero_optimization", "fp16", "bf16"})
            | {*zero}
            | ({*scaler} - {"enabled"})
        ):
            assert f"`{key}`" in text, f"{path.name}: {key}"


def test_a_run_may_continue_with_another_file_that_computes_alike() -> None:
    def changed(old: str, new: str) -> bool:
        return bool(changed_options({"train": {"ds_config": old}}, {"train": {"ds_config": new}}))

    assert not changed("zero1_bf16", "zero3_bf16")
    assert not changed("zero1_bf16", "zero2_offload_cpu_bf16")
    assert changed("zero1_bf16", "zero1_fp32")
    assert changed("gone/own.json", "zero1_fp32")


def test_is_it_time() -> None:
    assert [step for step in range(1, 11) if every(step, 4, last=10)] == [4, 8, 10]
    assert not every(4, 0)


def test_seeds_of_micro_batches_differ() -> None:
    assert len({seed_of(seed, position) for seed in range(20) for position in range(500)}) == 10_000


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 7), st.integers(1, 9), st.randoms(use_true_random=False))
def test_ranks_with_ties_equal_the_mean_over_all_orders_of_the_tied(
    queries: int, candidates: int, random: object
) -> None:
    generator = torch.Generator().manual_seed(random.randrange(2**31))  # type: ignore[attr-defined]
    similarity = torch.randint(0, 4, (queries, candidates), generator=generator).float()
    right = torch.randint(0, candidates, (queries,), generator=generator)
    relevant = torch.nn.functional.one_hot(right, candidates).bool()
    found = ranks(similarity, relevant)
    for query in range(queries):
        row, best = similarity[query].tolist(), float(similarity[query, right[query]])
        above, tied = sum(value > best for value in row), sum(value == best for value in row) - 1
        places = [above + 1 + k for k in range(tied + 1)]
        assert float(found[query]) == pytest.approx(sum(places) / len(places))


def test_recall_and_median_rank_of_a_known_case_and_of_chance() -> None:
    similarity = torch.tensor([[9.0, 1, 2], [5, 4, 3], [1, 2, 0]])
    assert retrieval_metrics(similarity) == pytest.approx(
        {"R@1": 100 / 3, "R@5": 100, "R@10": 100, "MdR": 2}
    )
    assert retrieval_metrics(torch.zeros(21, 21))["MdR"] == chance_metrics(21)["MdR"] == 11
    with pytest.raises(ValueError, match="square"):
        ranks(torch.zeros(2, 3))
