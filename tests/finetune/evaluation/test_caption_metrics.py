"""Caption scores are those of pycocoevalcap's own entry points."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest

from allinone.common.errors import ConfigError
from allinone.finetune.evaluation import caption_metrics
from allinone.finetune.evaluation.caption_metrics import caption_scores, require_package

REFERENCES = [
    ["A man's dog is running (fast).", "a dog runs across the field", "the dog runs!"],
    ["a woman slices an onion", "someone is cutting an onion - into pieces"],
    ["two children play football"],
    ["café owner pours 12.5 % milk", "a man pours milk into a cup"],
    ["a cat sleeps", "cat, sleeping"],
    ["a person is folding paper", "someone folds a paper", "paper is folded by a person"],
]
CAPTIONS = [
    "a dog is running across the field",
    "a woman is cutting an onion",
    "two children play football",
    "",
    "the dog sleeps on a bed",
    "a person folds paper",
]
CLIPS = [str(n) for n in range(len(CAPTIONS))]
needs_package = pytest.mark.skipif(
    caption_metrics.find_spec("pycocoevalcap") is None, reason="pycocoevalcap is not installed"
)
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="there is no Java")


def official(captions: list[str]) -> dict[str, float]:
    """The scores of the package's own classes, as its COCOEvalCap calls them."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    def tokenized(texts: list[list[str]]) -> dict[int, list[str]]:
        captioned = {n: [{"caption": text} for text in row] for n, row in enumerate(texts)}
        return PTBTokenizer().tokenize(captioned)

    truth, found = tokenized(REFERENCES), tokenized([[text] for text in captions])
    scores = {
        "BLEU-4": Bleu(4).compute_score(truth, found, verbose=0)[0][3],
        "METEOR": Meteor().compute_score(truth, found)[0],
        "ROUGE-L": Rouge().compute_score(truth, found)[0],
        "CIDEr-D": Cider().compute_score(truth, found)[0],
    }
    return {name: 100 * float(score) for name, score in scores.items()}


@needs_package
@needs_java
def test_scores_are_those_of_the_official_scorer() -> None:
    # the package's tokenizer takes the first of two empty lines for the last
    captions = [text or "." for text in CAPTIONS]
    expected = official(captions)
    for given in (captions, CAPTIONS):
        found = caption_scores(given, REFERENCES, CLIPS)
        assert list(found.scores) == ["CIDEr-D", "BLEU-4", "METEOR", "ROUGE-L"]
        for name, score in found.scores.items():
            assert score.value == pytest.approx(expected[name], rel=1e-9), name
            assert score.low is not None
            assert score.high is not None
            assert score.low <= score.value <= score.high
            assert score.low < score.high
        assert found.details == {"tokenizer": "PTBTokenizer"}
        assert found.per_clip["CIDEr-D"][3] == found.per_clip["METEOR"][3] == 0


@needs_package
@needs_java
def test_perfect_captions_have_the_official_perfect_scores() -> None:
    captions = [texts[0] for texts in REFERENCES]
    expected, found = official(captions), caption_scores(captions, REFERENCES, CLIPS)
    for name, score in found.scores.items():
        assert score.value == pytest.approx(expected[name], rel=1e-9), name
    assert found.scores["ROUGE-L"].value == pytest.approx(100)
    assert found.scores["METEOR"].value == pytest.approx(100)


@needs_package
def test_segments_of_one_video_are_one_observation() -> None:
    same = ["video"] * len(CAPTIONS)
    for score in caption_scores(CAPTIONS, REFERENCES, same, meteor=False).scores.values():
        assert score.low == pytest.approx(score.value)
        assert score.high == pytest.approx(score.value)


@needs_package
def test_without_java_the_result_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> None:
        return None

    monkeypatch.setattr(caption_metrics.shutil, "which", nothing)
    found = caption_scores(CAPTIONS, REFERENCES, CLIPS)
    assert list(found.scores) == ["CIDEr-D", "BLEU-4", "ROUGE-L"]
    assert found.details == {
        "tokenizer": "words (no Java)",
        "METEOR": "not computed: there is no Java",
    }
    # item 2 is a reference word for word
    assert found.per_clip["ROUGE-L"][2] == 1


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> Any:
        return None

    monkeypatch.setattr(caption_metrics, "find_spec", nothing)
    with pytest.raises(ConfigError, match="caption-metrics"):
        require_package()


def test_bleu_of_one_long_caption_is_papineni_s() -> None:
    # correct 1- to 4-grams 6, 4, 2, 1 of 8, 7, 6, 5; lengths 8 and 10
    counts = np.array([[6, 4, 2, 1, 8, 7, 6, 5, 8, 10]], float)
    expected = (6 / 8 * 4 / 7 * 2 / 6 * 1 / 5) ** 0.25 * np.exp(1 - 10 / 8)
    assert caption_metrics.bleu_4(counts) == pytest.approx(expected, rel=1e-6)
