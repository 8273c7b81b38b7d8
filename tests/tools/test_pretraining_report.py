"""The page of a pre-training run and its pictures: what they hold, read by a parser."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from allinone.common.command_line.config_file import config_from_file
from allinone.common.formatting import percent_text
from allinone.pretrain.config import PretrainConfig
from allinone.pretrain.evaluation import EvaluationOutput
from allinone.pretrain.objectives import registry
from allinone.pretrain.recipes import RECIPES
from allinone.tools.reporting import pretrain_examples, pretrain_figures
from allinone.tools.reporting.pretrain_examples import retrieval_examples
from allinone.tools.reporting.pretrain_figures import (
    MaskedWord,
    RankedClip,
    RetrievalExample,
    held_out_series,
    plot_losses,
)
from allinone.tools.reporting.pretrain_page import RunFacts, write_report
from allinone.tools.reporting.run_report import chance_losses

FRAMES = np.zeros((3, 8, 8, 3), np.uint8)
HISTORY: list[dict[str, Any]] = [
    {"step": 0, "evaluation": {"a_val/vtm_accuracy": 50.0, "a_val/text_to_video_R@10": 4.0}},
    *(
        {
            "step": step,
            "metrics": {
                "mlm_loss": 9.0 - step / 10,
                "mlm_accuracy": step / 100,
                "vtm_loss": 0.69,
                "vtm_accuracy": 0.5,
                "wpa_loss": -0.01 * step,
                "vtc_loss": 3.4,
            },
        }
        for step in (10, 20)
    ),
    {"step": 20, "evaluation": {"a_val/vtm_accuracy": 60.0, "a_val/text_to_video_R@10": 8.0}},
]
CHANCE = {
    "mlm_loss": math.log(30522),
    "vtm_loss": math.log(2),
    "a_val/vtm_accuracy": 50.0,
    "a_val/text_to_video_R@10": 4.1,
}
WORDS = [("in", 0.07), ("with", 0.06)]


class Page(HTMLParser):
    """Texts by the class of the element around them, table rows, and sources of images."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.path: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("img", "meta", "br"):
            assert (values.get("src") or "data:").startswith("data:")
            return
        self.path.append(f"{tag}.{values.get('class') or ''}")
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.path.pop().startswith(f"{tag}.")

    def handle_data(self, data: str) -> None:
        if self.path and self.path[-1].startswith(("td.", "th.")):
            self.tables[-1][-1][-1] += data
        if data.strip():
            self.texts.append((" ".join(self.path), " ".join(data.split())))

    def within(self, part: str) -> list[str]:
        """Texts inside elements of a class."""
        return [text for path, text in self.texts if part in path]


def ranked(rank: int, *, correct: bool = False) -> RankedClip:
    return RankedClip(FRAMES, f"caption {rank}", rank, correct)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a written report."""
    folder = tmp_path_factory.mktemp("report")
    clips = [*(ranked(rank) for rank in range(1, 6)), ranked(37, correct=True)]
    results: dict[str, Any] = {
        "a_val": {
            way: {"R@1": 1.0, "R@5": 5.0, "R@10": 8.0, "MdR": 30.0}
            for way in ("text_to_video", "video_to_text", "chance")
        },
        "vtm_accuracy": 60.0,
        "train_clips": 1234,
        "seconds": {"train": 90.0},
    }
    write_report(
        folder,
        results,
        HISTORY,
        [RetrievalExample("caption 37", clips)],
        [MaskedWord("man", "weights", "lifting", WORDS, FRAMES, rank=1018, probability=0.004)],
        RunFacts([("Model", "nano"), ("Seed", "7")], [("train.lr", "0.002")], CHANCE),
    )
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    text = (folder / "report.html").read_text()
    # elements whose end HTML leaves out
    return Page(text.replace('<html lang="en">', "").replace("</html>", ""))


def test_model_data_date_and_seed_come_before_everything_else(page: Page) -> None:
    assert page.within("dl.head") == ["Model", "nano", "Seed", "7"]
    texts = [text for path, text in page.texts if "style." not in path and "title." not in path]
    assert texts[:2] == ["What one transformer learned from 1,234 clips", "Model"]


def test_evaluations_and_options_are_tables(page: Page) -> None:
    retrieval, evaluations, options = page.tables
    assert retrieval[0][0] == "split"
    assert evaluations == [
        ["score", "step 0", "step 20", "chance"],
        ["a_val/vtm_accuracy", "50.0", "60.0", "50.0"],
        ["a_val/text_to_video_R@10", "4.0", "8.0", "4.1"],
    ]
    assert options == [["option", "value"], ["train.lr", "0.002"]]


def test_the_correct_clip_is_shown_with_its_rank_behind_the_best(folder: Path, page: Page) -> None:
    captions = page.within("figcaption.")
    assert captions == [*(f"{rank}. caption {rank}" for rank in range(1, 6)), "37. caption 37"]
    assert page.within("figure.correct") == ["37. caption 37"]
    with Image.open(folder / "gallery.png") as picture:
        assert picture.width == pytest.approx(6 * 205, abs=2)  # six columns


def test_a_hidden_word_behind_the_guesses_has_a_bar_and_a_rank(page: Page) -> None:
    assert page.within("div.bar correct") == ["lifting (rank 1,018)", "0.4 %"]
    bars = [text for text in page.within("div.bar") if not text.endswith("%")]
    assert bars == ["in", "with", "lifting (rank 1,018)"]


def test_a_hidden_word_among_the_guesses_is_marked_once() -> None:
    word = MaskedWord("", "", "with", [("with", 0.9), ("with", 0.1)], FRAMES, 2, 0.1)
    assert [bar.correct for bar in word.bars] == [False, True]


def test_shares_of_any_size_can_be_read() -> None:
    shown = [percent_text(share) for share in (1.0, 0.414, 0.01, 0.0099, 0.001, 0.0009, 0.0)]
    assert shown == ["100 %", "41 %", "1 %", "1.0 %", "0.1 %", "< 0.1 %", "< 0.1 %"]


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Figure:
    """The figure of HISTORY's losses, not saved."""
    kept: list[Figure] = []
    monkeypatch.setattr(pretrain_figures, "_save", lambda made, *_, **__: kept.append(made))
    plot_losses(HISTORY, tmp_path / "x.png", CHANCE)
    return kept[0]


def test_losses_are_stacked_over_one_axis_of_steps(figure: Figure) -> None:
    losses, scores = figure.axes[::2], figure.axes[1::2]
    titles = [axes.get_title(loc="left") for axes in losses]
    assert titles == [objective.title for objective in registry.OBJECTIVES]
    assert len({axes.get_xlim() for axes in losses}) == 1
    assert [axes.get_xlabel() for axes in losses] == ["", "", "", "step"]
    assert [axes.get_ylabel() for axes in losses[:3]] == [
        "training loss, nats",
        "training loss, nats",
        "training loss",  # WPA's is a distance
    ]
    assert losses[2].get_ylim()[0] < -0.2  # a negative loss is not cut off
    assert [axes.get_visible() for axes in scores] == [True, True, False, True]


def test_losses_and_scores_have_their_chance_lines(figure: Figure) -> None:
    def dashed(number: int) -> list[float]:
        lines = figure.axes[number].get_lines()
        return [float(line.get_ydata()[0]) for line in lines if line.get_linestyle() == "--"]

    assert dashed(0) == [pytest.approx(math.log(30522))]
    assert dashed(2) == [pytest.approx(math.log(2))]
    assert dashed(4) == []
    assert dashed(3) == [50.0]
    assert dashed(7) == [4.1]


def test_held_out_scores_are_points_at_their_steps(figure: Figure) -> None:
    assert held_out_series(HISTORY, "vtm_accuracy") == {"a_val": ([0, 20], [50.0, 60.0])}
    points = [line for line in figure.axes[3].get_lines() if line.get_marker() == "o"]
    assert [line.get_xydata().tolist() for line in points] == [[[0, 50], [20, 60]]]
    legend = figure.axes[7].get_legend()
    assert legend is not None
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["held-out R@10, a_val", "held-out chance, 4.1 %"]


def test_guessing_has_the_loss_of_a_uniform_distribution() -> None:
    found = {
        objective.name: objective.chance_loss(words=1000, candidates=64)
        for objective in registry.OBJECTIVES
    }
    # the cross-entropy of equal logits
    for name, classes in (("mlm", 1000), ("vtm", 2), ("vtc", 64)):
        equal = torch.nn.functional.cross_entropy(torch.zeros(1, classes), torch.tensor([0]))
        assert found[name] == pytest.approx(equal.item(), abs=1e-5)
    assert found["wpa"] is None


def test_examples_hold_the_captions_own_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [f"clip {number}" for number in range(8)]
    # every caption prefers clip 0, then clip 1, ...: its own clip has rank number + 1
    text, video = torch.ones(8, 1), torch.arange(8, 0, -1.0).unsqueeze(1)
    output = EvaluationOutput(items, items, {"text": text, "video": video})
    frames = dict.fromkeys(items, FRAMES)
    monkeypatch.setattr(pretrain_examples, "frames_by_clip", lambda *_: frames)
    examples = retrieval_examples(output, None, rows=8)  # type: ignore[arg-type]
    for number, example in enumerate(examples):
        ranks = [clip.rank for clip in example.clips]
        assert ranks == [1, 2, 3, 4, 5, *([number + 1] if number > 4 else [])]
        assert [clip.caption for clip in example.clips if clip.correct] == [example.caption]
        assert example.rank == number + 1


def test_options_of_a_run_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    """`allinone report` and `allinone check --run` read run.json without the command's parser."""
    record = RECIPES["demo"][1].as_json()
    loader = {"augmentation": "torch"}  # the name that earlier versions gave augment_backend
    (tmp_path / "run.json").write_text(json.dumps({**record, "loader": loader}))
    config: PretrainConfig = config_from_file(tmp_path / "run.json", PretrainConfig)
    assert config.loader.augment_backend == "torch"


def test_guessing_in_a_run_counts_the_clips_of_all_ranks() -> None:
    config = RECIPES["demo"][1]
    history = [{"step": 0, "event": "start", "ranks": 4}]
    found = chance_losses(config, 30522, history)
    assert found == {
        "mlm_loss": pytest.approx(math.log(30522)),
        "vtm_loss": pytest.approx(math.log(2)),
        "vtc_loss": pytest.approx(math.log(4 * config.train.micro_batch)),
    }


def test_a_single_record_is_a_visible_point(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept: list[Figure] = []
    monkeypatch.setattr(pretrain_figures, "_save", lambda made, *_, **__: kept.append(made))
    plot_losses(HISTORY[:2], tmp_path / "x.png")
    (line,) = kept[0].axes[0].get_lines()
    assert line.get_marker() == "."
