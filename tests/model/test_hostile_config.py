"""A config.json from a stranger: every unusable value is one line, none runs a program or asks for
all memory."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from allinone.common.errors import InputError
from allinone.model import AllInOneConfig, AllInOneForPreTraining
from allinone.model.config import SIZES
from allinone.tools.inspection.checkpoints import load_checkpoint

NUMBERS = [name for name, kind in AllInOneConfig.__annotations__.items() if kind == "int"]
VALUES: list[Any] = [0, -1, 2**31, 10**400, 1.5, True, "64", None, [64], {"a": 64}, float("nan")]
HOSTILE: list[tuple[str, Any]] = [
    *((name, value) for name in NUMBERS for value in VALUES),
    *((name, "x") for name in ("hidden_dropout", "drop_path", "roll", "patch_order")),
    *((name, float("nan")) for name in ("hidden_dropout", "attention_dropout", "drop_path")),
    ("distillation_token", "yes"),
    ("attn_implementation", "someone/kernel"),
    ("attn_implementation", "paged|someone/kernel:entry"),
    ("attn_implementation", {"": "someone/kernel"}),
    ("_attn_implementation", "someone/kernel"),
    ("attn_implementation", "flash_attention_2"),
    ("experts_implementation", "someone/kernel"),
    ("dtype", "os"),
    ("torch_dtype", "load"),
    ("dtype", 3),
    ("to_dict", 1),
    ("num_patches", 7),
    ("__class__", "x"),
    ("from_dict", None),
    ("num_labels", -5),
    ("id2label", "x"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    config = AllInOneConfig.from_size("nano", vocab_size=99, num_hidden_layers=1)
    AllInOneForPreTraining(config).save_pretrained(path)
    return path


def test_every_hostile_value_is_one_line(folder: Path, tmp_path: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    for path in folder.glob("*.safetensors"):
        (tmp_path / path.name).symlink_to(path)
    accepted = []
    for name, value in HOSTILE:
        (tmp_path / "config.json").write_text(json.dumps(content | {name: value}))
        try:
            load_checkpoint(tmp_path, "cpu")
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017 - any other error fails the test
        else:
            accepted.append((name, value))
    # no limit of their own: labels are not used, and a text length of one token is no fault of type
    assert [name for name, _ in accepted if name not in ("num_labels", "id2label")] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 65536, "num_hidden_layers": 1024, "num_attention_heads": 64},
        {"image_size": 8192, "patch_size": 1, "hidden_size": 65536, "num_attention_heads": 64},
    ],
)
def test_a_model_larger_than_any_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="billion"):
        AllInOneConfig.from_dict({**SIZES["nano"], **changes})


def test_own_configurations_are_unchanged(tmp_path: Path) -> None:
    config = AllInOneConfig(num_frames=4, attn_implementation="eager", dtype="bfloat16")
    config.save_pretrained(tmp_path)
    again = AllInOneConfig.from_pretrained(tmp_path)
    assert again.num_frames == 4
    assert str(again.dtype) == "torch.bfloat16"


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_saved_models_follow_the_umask(tmp_path: Path, mask: int) -> None:
    model = AllInOneForPreTraining(
        AllInOneConfig.from_size("nano", vocab_size=99, num_hidden_layers=1)
    )
    before = os.umask(mask)
    try:
        model.save_pretrained(tmp_path)
        model.save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~mask}
