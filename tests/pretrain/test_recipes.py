"""Every recipe starts as it is written, on small made-up data: two steps of nano. TensorBoard
gets losses and sample shares per data set."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from allinone.common.exit_codes import ExitCode
from allinone.data.prepare.pipeline import PrepareOptions, prepare
from allinone.pretrain import train
from allinone.pretrain.config import VIT_SOURCES, PretrainConfig
from allinone.pretrain.recipes import RECIPES
from tests.data import media
from tests.data.helpers import crc, karpathy, record

ROOT = Path(__file__).resolve().parents[2]
PAPER = sorted(
    set(RECIPES) - {"demo", "own", "webvid-howto-base"}
)  # the latter is webvid-howto by another name
SMALL = (
    "--size nano --image-size 32 --steps 2 --global-batch 8 --micro-batch 4 --image-batch 4"
    " --workers 0 --dali-threads 1 --log-every 1 --init-from none"
)
# one interpreter imports everything, each recipe is a fork of it
STARTER = """
import os, sys
from allinone.pretrain import run, train
import deepspeed, torch.utils.tensorboard
import allinone.data.loading.cotrain, allinone.data.loading.dali_pipeline
options = sys.argv[1].split()
for recipe in sys.argv[2:]:
    child = os.fork()
    if child == 0:
        sys.stdout.flush()
        log = os.open(f"{recipe}.log", os.O_CREAT | os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = 70
        try:
            code = train.main([recipe, *options])
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    print(recipe, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def webvid(source: Path) -> None:
    lines = ["videoid,page_dir,name"]
    for k in range(6):
        media.write_video(source / "videos" / "p" / f"{k}.mp4", frames=8, first=k)
        lines.append(f"{k},p,a clip that spells number {k}")
    for split in ("train", "val"):
        (source / f"results_2M_{split}.csv").write_text("\n".join(lines) + "\n")


def howto(source: Path) -> None:
    """One long video with its lines."""
    media.write_video(source / "videos" / "AAA.mp4", frames=240, gop=24)
    (source / "howto100m_csv").mkdir()
    rows = "".join(f"{2 * k},{2 * k + 2},words of line {k}\n" for k in range(9))
    (source / "howto100m_csv" / "AAA.csv").write_text(f"start,end,text\n{rows}")


def yttemporal(source: Path) -> None:
    media.write_video(source / "videos" / "BBB.mp4", frames=240, gop=24)
    (source / "yttemporal180m_000of100.jsonl.gz").write_bytes(
        gzip.compress(json.dumps(record("BBB")).encode())
    )


def panda70m(source: Path) -> None:
    """One video of training and one of validation, with their clips as lists in fields."""
    for name, split in (("PPP", "training_2m"), ("VVV", "validation")):
        media.write_video(source / "videos" / f"{name}.mp4", frames=240, gop=24)
        times = [[f"0:00:0{k}.000", f"0:00:0{k + 1}.000"] for k in range(6)]
        captions = [f"a man says number {k}" for k in range(6)]
        fields = ",".join(f'"{value}"' for value in (times, captions))
        (source / f"panda70m_{split}.csv").write_text(
            f"videoID,url,timestamp,caption,matching_score\n{name},u,{fields},[]\n"
        )


def internvid(source: Path) -> None:
    media.write_video(source / "videos" / "III.mp4", frames=240, gop=24)
    lines = [
        {
            "YoutubeID": "III",
            "Start_timestamp": f"00:00:0{k}.000",
            "End_timestamp": f"00:00:0{k + 1}.000",
            "Caption": f"woman using computer {k}",
        }
        for k in range(6)
    ]
    (source / "InternVid-10M-flt.jsonl").write_text("\n".join(map(json.dumps, lines)))


def openvid(source: Path) -> None:
    lines = ["video,caption,aesthetic score"]
    for k in range(6):
        media.write_video(source / "video" / f"v_{k}.mp4", frames=8, first=k)
        lines.append(f'v_{k}.mp4,"a long text, number {k}",5.0')
    (source / "OpenVid-1M.csv").write_text("\n".join(lines) + "\n")


def conceptual(source: Path, lists: dict[str, str], url_first: bool) -> None:
    """CC3M's or CC12M's lists, file → folder of its images, each with six."""
    for name, folder in lists.items():
        rows = []
        for k in range(6):
            pair = (f"http://example.org/{folder}/{k}.jpg", f"a picture of number {k}")
            media.write_image(source / folder / f"{crc(pair[0])}.jpg", k)
            rows.append("\t".join(pair if url_first else pair[::-1]))
        (source / name).write_text("\n".join(rows) + "\n")


def cc3m(source: Path) -> None:
    conceptual(
        source,
        {"Train_GCC-training.tsv": "training", "Validation_GCC-1.1.0-Validation.tsv": "validation"},
        url_first=False,
    )


def cc12m(source: Path) -> None:
    conceptual(source, {"cc12m.tsv": "training"}, url_first=True)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """(folder in which every recipe ran, exit code by recipe); the recipes' own paths below
    prepared/ lead to small sets, made of lists in the official formats, Visual Genome's in
    COCO's."""
    home = tmp_path_factory.mktemp("home")
    (home / "prepared").mkdir()
    makers = {
        "webvid": webvid,
        "howto100m": howto,
        "yttemporal": yttemporal,
        "cc3m": cc3m,
        "cc12m": cc12m,
        "coco": karpathy,
        "panda70m": panda70m,
        "internvid": internvid,
        "openvid": openvid,
    }
    for name, make in makers.items():
        (home / name).mkdir()
        make(home / name)
        prepare(PrepareOptions(home / name, home / "prepared" / name, workers=1), progress=False)
    (home / "prepared" / "vg").symlink_to(home / "prepared" / "coco")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    ended = subprocess.run(
        [sys.executable, "-c", STARTER, SMALL, *PAPER],
        cwd=home,
        env=env,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    codes = [line.split() for line in ended.stdout.splitlines()]
    return home, {
        words[0]: int(words[1]) for words in codes if len(words) == 2 and words[0] in PAPER
    }


@pytest.mark.parametrize("name", PAPER)
def test_paper_recipes_have_the_values_of_the_original_code(name: str) -> None:
    recipe = RECIPES[name][1]
    assert recipe.model.patch_order == "shuffled"
    assert recipe.objective.wpa == 0.1
    assert recipe.train.clip_grad == 0
    assert (recipe.train.beta1, recipe.train.beta2) == (0.9, 0.98)
    assert recipe.train.weight_decay == 0.01


@pytest.mark.parametrize("name", [*PAPER, "webvid-howto-base"])
def test_paper_recipes_refuse_to_start_without_weights(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([name]) == ExitCode.USAGE
    message = capsys.readouterr().err
    assert f"recipe {name} starts from ImageNet weights" in message
    assert "--init-from none" in message
    assert f"convert from-vit {VIT_SOURCES[RECIPES[name][1].model.size]}" in message


def names(specs: tuple[str, ...]) -> list[str]:
    return [f"{Path(spec.partition('=')[0]).name}/train" for spec in specs]


@pytest.mark.parametrize("name", PAPER)
def test_recipe_takes_two_steps_and_logs_each_dataset(
    started: tuple[Path, dict[str, int]], name: str
) -> None:
    home, codes = started
    log = (home / f"{name}.log").read_text()
    assert codes[name] == 0, log[-4000:]
    assert "step 2/2" in log
    recipe: PretrainConfig = RECIPES[name][1]
    boards = {}
    for path in (home / recipe.out / "tensorboard").glob("*/events*"):
        boards[path.parent.name] = EventAccumulator(str(path.parent))
        boards[path.parent.name].Reload()
    tags = {tag for board in boards.values() for tag in board.Tags()["scalars"]}
    for prefix, specs in (("", recipe.data), ("image_", recipe.cotrain.images)):
        if specs:
            assert {f"train/{prefix}mlm_loss", f"train/{prefix}vtm_loss"} <= tags
        if len(specs) > 1:
            shares = {
                entry: [
                    event.value
                    for event in boards[entry.replace("/", "_")].Scalars(
                        f"train/{prefix}sample_share/{entry}"
                    )
                ]
                for entry in names(specs)
            }
            assert [sum(values) for values in zip(*shares.values(), strict=True)] == pytest.approx(
                [1, 1]
            )
            assert {
                f"train/{prefix}{loss}/{entry}"
                for loss in ("mlm_loss", "vtm_loss")
                for entry in names(specs)
            } <= tags
