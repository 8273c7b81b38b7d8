"""JSON of unknown origin: what is wrong with a record is a ValueError, or spoils one value."""

from __future__ import annotations

import math

import pytest

from allinone.common.json_text import parse_json


def test_deep_nesting_is_a_value_error() -> None:
    for text in ("[" * 100_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000):
        with pytest.raises(ValueError, match=r"nested too deeply|Expecting"):
            parse_json(text)


def test_numbers_of_any_length_spoil_only_themselves() -> None:
    record = parse_json('{"id": "x", "n": ' + "9" * 5000 + ', "m": -' + "9" * 5000 + ', "k": 12}')
    assert record == {"id": "x", "n": math.inf, "m": -math.inf, "k": 12}


@pytest.mark.parametrize("content", [b"\xff\xfe{", b"", "nul", "{'a': 1}", b'{"a": "\xff"}'])
def test_what_is_not_json_is_a_value_error(content: bytes | str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any message
        parse_json(content)
