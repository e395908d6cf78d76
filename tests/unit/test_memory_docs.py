"""docs/memory.md: its example prints what it says, and its table of reasons is complete."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

from memr1.memory.state import REASONS

PAGE = Path(__file__).parents[2] / "docs" / "memory.md"


def test_the_example_prints_what_the_page_says() -> None:
    outcome = doctest.testfile(str(PAGE), module_relative=False)
    assert outcome.attempted >= 10 and outcome.failed == 0


def test_every_reason_has_a_row_in_the_table() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE)) == set(REASONS)
