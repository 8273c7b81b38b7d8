"""DeepSpeed's files: resolved, refused, explained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from allinone.common.errors import ConfigError
from allinone.engine import ds_config
from allinone.engine.config import TrainConfig
from allinone.engine.resume import changed_options


@pytest.mark.parametrize(
    ("timers", "expected"),
    [
        (None, {"throughput": {"enabled": False}}),
        ({}, {"throughput": {"enabled": False}}),
        ({"throughput": {"enabled": True}}, {"throughput": {"enabled": True}}),
    ],
)
def test_the_throughput_timer_is_off_unless_a_file_sets_it(
    tmp_path: Path, timers: object, expected: object
) -> None:
    from deepspeed.utils.config import get_timers_config

    own = tmp_path / "own.json"
    own.write_text(json.dumps({} if timers is None else {"timers": timers}))
    config = TrainConfig(ds_config=str(own), global_batch=8, micro_batch=8)
    resolved = ds_config.resolve(config, 1, on_cpu=True)
    assert resolved["timers"] == expected
    assert get_timers_config(resolved).enabled is expected["throughput"]["enabled"]  # type: ignore[index]


def test_ds_configs_resolve_and_conflicts_are_named(
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


def test_every_ds_config_and_every_line_is_explained() -> None:
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


def test_a_run_may_resume_with_a_file_that_computes_alike() -> None:
    def changed(old: str, new: str) -> bool:
        return bool(changed_options({"train": {"ds_config": old}}, {"train": {"ds_config": new}}))

    assert not changed("zero1_bf16", "zero3_bf16")
    assert not changed("zero1_bf16", "zero2_offload_cpu_bf16")
    assert changed("zero1_bf16", "zero1_fp32")
    assert changed("gone/own.json", "zero1_fp32")
