"""docs/faults.md names every row of the list of faults and only tests that exist."""

from __future__ import annotations

import re

from allinone.common.paths import ROOT

PAGE = ROOT / "docs" / "faults.md"
ROWS = {"A": 18, "B": 14, "C": 20}


def _tests() -> set[str]:
    return {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^\s*def (test_\w+)\(", path.read_text(encoding="utf-8"), re.M)
    }


def test_every_fault_names_tests_that_exist() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if re.match(r"\| [A-C]\d+ \|", line)]
    numbers = [re.findall(r"[A-C]\d+", line)[0] for line in rows]
    assert numbers == [f"{letter}{n}" for letter, most in ROWS.items() for n in range(1, most + 1)]
    assert all(re.search(r"`test_\w+`", line.rsplit("|", 2)[1]) for line in rows)
    held = text.partition("## What held")[2]
    assert held.count("`test_") >= 10
    named = set(re.findall(r"`(test_\w+)`", text))
    assert not named - _tests()
