"""Texts made of parts."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allinone.data.text import Tokenizer
from allinone.finetune.inputs.prompts import CONTEXT, KEEP, LIST, QUESTION, Part, encode, option


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer()


@settings(max_examples=40, deadline=None)
@given(
    question=st.integers(0, 60),
    options=st.integers(0, 60),
    context=st.integers(0, 90),
    length=st.integers(12, 60),
)
def test_answer_is_never_cut_while_other_parts_are_left(
    tokenizer: Tokenizer, question: int, options: int, context: int, length: int
) -> None:
    parts = (
        Part("the " * context, CONTEXT),
        Part("what " * question, QUESTION, after_sep=True),
        Part("of " * options, LIST),
        Part("answer : a red apple", KEEP),
    )
    encoded = encode(tokenizer, parts, length)
    words = tokenizer.decode(encoded.ids[: encoded.mask.sum()].tolist()).split()
    assert len(encoded.ids) == length
    assert words[-5:] == ["answer", ":", "a", "red", "apple"]
    left = {word: words.count(word) for word in ("the", "what", "of")}
    if left["what"] < question:  # the question is cut last
        assert left["the"] == left["of"] == 0
    if left["of"] < options:
        assert left["the"] == 0
    assert encoded.shortened == (sum(left.values()) < question + options + context)
    assert not encoded.lost


def test_inputs_of_a_question_with_long_options_differ(tokenizer: Tokenizer) -> None:
    choices = [
        f"walk slowly over the long wooden bridge towards the {place}"
        for place in ("north", "south", "east", "west", "sea")
    ]
    rows = [
        encode(tokenizer, option("what does the man do ?", choice, choices), 40)
        for choice in choices
    ]
    assert len({row.ids.tobytes() for row in rows}) == 5
    first = tokenizer.encode(
        f"what does the man do ?Options: {' '.join(choices)}Answer: {choices[0]}", 40
    )[0]
    other = tokenizer.encode(
        f"what does the man do ?Options: {' '.join(choices)}Answer: {choices[4]}", 40
    )[0]
    assert (first == other).all(), "the original's way does not fail here"


def test_text_whose_deciding_part_is_cut_is_counted(tokenizer: Tokenizer) -> None:
    assert encode(tokenizer, (Part("one two three four five six seven eight"),), 6).lost
