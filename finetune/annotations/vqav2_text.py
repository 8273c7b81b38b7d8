"""VQAv2's official rules: answer normalisation, accuracy, soft targets and the answer space.

Sources: visualqa.org/evaluation.html and the official evaluation (GT-Vision-Lab/VQA,
PythonEvaluationTools/vqaEvaluation/vqaEval.py). Its quirks are reproduced, because published
numbers depend on them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

ANSWERS = 3_129
MIN_COUNT = 9
"""Answers seen at least this often in train and val form the answer space."""
ANNOTATORS = 10

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0", **{word: str(number) for number, word in enumerate(_WORDS)}}
_ARTICLES = frozenset({"a", "an", "the"})
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's they'd
they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _misspelled() -> dict[str, str]:
    """Map every contraction without one of its apostrophes to the contraction."""
    known = {
        word[:place] + word[place + 1 :]: word
        for word in _CONTRACTED.split()
        for place, sign in enumerate(word)
        if sign == "'"
    }
    # an inconsistency of the official table
    return {**known, "somebody'd": "somebodyd"}


_CONTRACTIONS = _misspelled()
_NUMBER_WITH_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32
"""The official code passes a flag with the value 32 as the number of replacements."""


def strip_punctuation(text: str) -> str:
    """Remove punctuation marks that touch a space, and replace the others by a space.

    If the text contains a number with a comma, all are removed.
    """
    cleaned = text
    has_number = _NUMBER_WITH_COMMA.search(text) is not None
    for sign in _PUNCTUATION:
        touches_space = f"{sign} " in text or f" {sign}" in text
        # the official code replaces sign by sign in the text that it has cleaned so far
        cleaned = cleaned.replace(sign, "" if touches_space or has_number else " ")
    return _PERIOD.sub("", cleaned, count=_MOST_PERIODS)


def normalise(answer: str) -> str:
    """Normalise an answer for comparison.

    Lower case, no punctuation, digits for number words up to ten, no articles, apostrophes in
    contractions.
    """
    words = strip_punctuation(answer.replace("\n", " ").replace("\t", " ").strip()).lower().split()
    words = [word for word in (_NUMBERS.get(word, word) for word in words) if word not in _ARTICLES]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words)


def accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The official accuracy in 0..1: the mean of min(1, matches / 3) over leave-one-out sets.

    As in the official code, the annotators' answers are only stripped of punctuation, and only if
    they disagree. ValueError if there are no answers.
    """
    if not answers:
        raise ValueError(
            "no annotated answers: the labels of this split are hidden; submit the predictions to"
            " the server"
        )
    if len(set(answers)) > 1:
        answers = [strip_punctuation(answer) for answer in answers]
    return leave_one_out(list(answers).count(normalise(prediction)), len(answers))


def leave_one_out(matches: int, annotators: int = ANNOTATORS) -> float:
    """`accuracy` from the number of annotators that agree."""
    # leaving out one of those that agree leaves one match less; 1, 2 and 3 of ten give 0.3, 0.6
    # and 0.9
    return (
        matches * min(1.0, (matches - 1) / 3) + (annotators - matches) * min(1.0, matches / 3)
    ) / annotators


def soft_targets(answers: Sequence[str], numbers: dict[str, int]) -> dict[int, float]:
    """Training targets of the answers in the answer space: class number → score.

    0.3, 0.6, 0.9 and 1.0 for 1, 2, 3 and at least 4 of ten annotators.

    The annotators' strings are normalised like the answer space; raw strings would miss it ("a dog"
    against "dog").
    """
    # ViLT counts raw strings against normalised keys and loses such answers
    counts = Counter(normalise(answer) for answer in answers)
    return {
        numbers[answer]: leave_one_out(count, len(answers))
        for answer, count in counts.items()
        if answer in numbers
    }


def reference_order(most_chosen: Iterable[str], min_count: int = MIN_COUNT) -> tuple[str, ...]:
    """The answer space in the order of ViLT's class numbers, which the original uses.

    Args:
        most_chosen: `multiple_choice_answer` of train2014, then of val2014, in file order: ViLT
            numbers answers by their first occurrence.
        min_count: As in `answer_space`.
    """
    counts = Counter(normalise(answer) for answer in most_chosen)  # keeps the order
    return tuple(answer for answer, count in counts.items() if count >= min_count)


def answer_space(most_chosen: Iterable[str], min_count: int = MIN_COUNT) -> tuple[str, ...]:
    """The classes: normalised `multiple_choice_answer` seen at least `min_count` times.

    Most frequent first, ties in alphabetical order.
    """
    counts = Counter(normalise(answer) for answer in most_chosen)
    chosen = [answer for answer, count in counts.items() if count >= min_count]
    return tuple(sorted(chosen, key=lambda answer: (-counts[answer], answer)))
