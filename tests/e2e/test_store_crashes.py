"""Writers that are killed, 205 of them: what they acknowledged is there, in order, and nothing is torn."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.crash_store import FAILPOINTS

PROGRAM = Path(__file__).with_name("crash_store.py")


def crash(tmp_path: Path, mode: str, kills: int, seed: int) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(tmp_path / "memory.db"), mode, str(kills), str(seed)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    words = done.stdout.split()
    return dict(zip(words[::2], map(int, words[1::2]), strict=True))


def test_writers_killed_at_random_moments(tmp_path: Path) -> None:
    counts = crash(tmp_path, "random", 130, seed=1)
    assert counts["writers_that_acknowledged"] > 90  # the others were killed while they opened the store
    assert counts["decisions"] > 300


@pytest.mark.parametrize("point", FAILPOINTS)
def test_writers_killed_at_a_point_of_a_transaction(tmp_path: Path, point: str) -> None:
    counts = crash(tmp_path, point, 15, seed=2)
    if point == "after the commit":
        assert counts["unacknowledged_but_kept"] == 15  # on disk, and its writer never heard of it
    else:
        assert counts["unacknowledged_but_kept"] == 0
