"""BLEU-4, METEOR, ROUGE-L and CIDEr-D as the COCO caption server computes them.

Everything is computed by the server's own code in the package pycocoevalcap (Chen et al. 2015,
arXiv 1504.00325). Its tokenizer (Stanford's PTBTokenizer) and METEOR 1.5 are Java programs. Without
Java, texts are split by a plain rule and METEOR is left out, and the result says so.

Scores are times 100, as papers print them. BLEU-4 and METEOR are corpus scores, of the sums of all
captions' statistics; ROUGE-L and CIDEr-D are means over the clips.
"""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from allinone.common.errors import ConfigError, DataError
from allinone.finetune.evaluation.bootstrap import Array, mean
from allinone.finetune.evaluation.results import Score
from allinone.finetune.evaluation.summaries import scaled

PACKAGE = "pycocoevalcap"
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
_TOKENIZE_S = 600
"""Time-out of the tokenizer; a million captions take about a minute."""
# columns of METEOR's statistics: lengths, matches of 5 kinds of words, chunks, matched words
_TEST_LENGTH, _REFERENCE_LENGTH, _CHUNKS, _TEST_MATCHES, _REFERENCE_MATCHES = 0, 1, 20, 21, 22


@dataclass(frozen=True)
class CaptionScores:
    """Scores of the captions of N clips."""

    scores: dict[str, Score]
    """CIDEr-D, BLEU-4, METEOR, ROUGE-L, with intervals over the clips."""
    per_clip: dict[str, Array]
    """Name → [N], 0 to 1 (CIDEr-D: 0 to 10); BLEU-4 of single clips is not given."""
    details: dict[str, Any] = field(default_factory=dict)
    """How texts were tokenised, and why a score is missing."""


def require_package() -> None:
    """ConfigError without the package of the official scores."""
    if find_spec(PACKAGE) is None:
        raise ConfigError(
            f"captions are scored by the package {PACKAGE}, which is not installed: pip install"
            " 'allinone-pretrain[caption-metrics]' (METEOR and the official tokenizer also need"
            " Java, `apt install default-jre-headless`)"
        )


def caption_scores(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    clips: Sequence[str],
    *,
    meteor: bool = True,
) -> CaptionScores:
    """Score one caption per clip against the references of the clip.

    Args:
        captions: N of them; an empty one scores 0.
        references: Of each clip, at least one.
        clips: Id of each item's media, the clusters of the bootstrap: segments of one video are
            not independent.
        meteor: Compute METEOR if there is Java.

    Raises:
        ConfigError: The package is not installed.
        DataError: A Java program fails.
    """
    require_package()
    java = shutil.which("java")
    tokens = _tokenized([*captions, *(text for texts in references for text in texts)], java)
    results = {str(n): [text] for n, text in enumerate(tokens[: len(captions)])}
    truth, position = {}, len(captions)
    for n, texts in enumerate(references):
        truth[str(n)] = tokens[position : position + len(texts)]
        position += len(texts)
    clusters = np.asarray(clips)
    # the document frequencies of CIDEr-D stay those of all references in every resample
    cider = np.asarray(_scorer("cider.cider", "Cider").compute_score(truth, results)[1], float)
    rouge = np.asarray(_scorer("rouge.rouge", "Rouge").compute_score(truth, results)[1], float)
    per_clip = {"CIDEr-D": cider, "ROUGE-L": rouge}
    scores = {
        "CIDEr-D": scaled(cider, mean, clusters),
        "BLEU-4": scaled(_bleu_counts(results, truth), bleu_4, clusters),
    }
    details: dict[str, Any] = {"tokenizer": "PTBTokenizer" if java else "words (no Java)"}
    if not java:
        details["METEOR"] = "not computed: there is no Java"
    elif meteor:
        scores["METEOR"], per_clip["METEOR"] = _meteor(results, truth, clusters)
    scores["ROUGE-L"] = scaled(rouge, mean, clusters)
    return CaptionScores(scores, per_clip, details)


def _scorer(module: str, name: str, *arguments: Any) -> Any:
    return getattr(importlib.import_module(f"{PACKAGE}.{module}"), name)(*arguments)


def _tokenized(texts: Sequence[str], java: str | None) -> list[str]:
    """Lower-case tokens without punctuation, joined by spaces.

    Args:
        texts: Captions.
        java: Path of Java; None: words of letters and digits.
    """
    lines = [" ".join(text.split()) for text in texts]
    if java is None:
        return [" ".join(_WORD.findall(line.lower())) for line in lines]
    package = importlib.import_module(f"{PACKAGE}.tokenizer.ptbtokenizer")
    jar = Path(str(package.__file__)).with_name(package.STANFORD_CORENLP_3_4_1_JAR)
    # not the package's own call, which writes a file into its folder, where users may not write
    command = [java, "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    command += ["-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    content = "".join(f"{line}\n" for line in lines).encode()
    try:
        ended = subprocess.run(command, input=content, capture_output=True, timeout=_TOKENIZE_S)
    except subprocess.TimeoutExpired as error:
        raise DataError(f"the tokenizer of captions did not end in {_TOKENIZE_S} s") from error
    # "\n" alone: PTBTokenizer keeps other characters that Python takes for line ends
    found = ended.stdout.decode().split("\n")[: len(lines)]
    if ended.returncode or len(found) != len(lines):
        reason = ended.stderr.decode(errors="replace").strip()[-300:]
        raise DataError(f"the tokenizer of captions failed: {reason}")
    dropped = set(package.PUNCTUATIONS)
    return [" ".join(w for w in line.rstrip().split(" ") if w not in dropped) for line in found]


def _bleu_counts(results: Mapping[str, list[str]], truth: Mapping[str, list[str]]) -> Array:
    """[N, 10]: correct and guessed n-grams of 1 to 4 words, and both lengths.

    Args:
        results: Item → its tokenised caption.
        truth: Item → its tokenised references.
    """
    scorer = _scorer("bleu.bleu_scorer", "BleuScorer", None, None, 4)
    for name, (caption,) in results.items():
        scorer += (caption, truth[name])
    rows = []
    for counts in scorer.ctest:
        length = counts["testlen"]
        # the closest reference length, the shorter of two
        closest = min((abs(other - length), other) for other in counts["reflen"])[1]
        rows.append([*counts["correct"], *counts["guess"], length, closest])
    return np.array(rows, float)


def bleu_4(counts: Array) -> float:
    """BLEU-4 of a corpus (Papineni et al. 2002) with the constants of the official scorer.

    Args:
        counts: [N, 10], see `_bleu_counts`.
    """
    sums = counts.sum(0)
    tiny, small = 1e-15, 1e-9
    precision = float(np.prod((sums[:4] + tiny) / (sums[4:8] + small))) ** 0.25
    ratio = (sums[8] + tiny) / (sums[9] + small)
    return precision * float(np.exp(min(0.0, 1 - 1 / ratio)))


def _meteor(
    results: Mapping[str, list[str]], truth: Mapping[str, list[str]], clusters: Array
) -> tuple[Score, Array]:
    """METEOR of the corpus with its interval, and of each item.

    Args:
        results: Item → its tokenised caption.
        truth: Item → its tokenised references.
        clusters: Clip of each item.
    """
    scorer = _scorer("meteor.meteor", "Meteor")
    try:
        lines = [scorer._stat(caption, truth[name]) for name, (caption,) in results.items()]
        statistics = np.array([line.split() for line in lines], float)
        single = np.array([_evaluated(scorer, row) for row in statistics])
        # as METEOR adds statistics: a caption that matches completely counts no chunk
        whole = (
            (statistics[:, _TEST_MATCHES] == statistics[:, _TEST_LENGTH])
            & (statistics[:, _REFERENCE_MATCHES] == statistics[:, _REFERENCE_LENGTH])
            & (statistics[:, _CHUNKS] == 1)
        )
        added = statistics.copy()
        added[whole, _CHUNKS] = 0

        def corpus(rows: Array) -> float:
            return _evaluated(scorer, rows.sum(0))

        score = scaled(added, corpus, clusters)
        if len(single) == 1:  # the sum of one is that one
            score = Score(100 * single[0], 100 * single[0], 100 * single[0], "")
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f"METEOR (Java) failed: {error}") from error
    return score, single


def _evaluated(scorer: Any, statistics: Array) -> float:
    """METEOR of one row of statistics."""
    line = f"EVAL ||| {' '.join(f'{value:.0f}' for value in statistics)}\n"
    scorer.meteor_p.stdin.write(line.encode())
    scorer.meteor_p.stdin.flush()
    first, _ = scorer.meteor_p.stdout.readline(), scorer.meteor_p.stdout.readline()
    return float(first)
