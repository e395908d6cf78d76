"""The watchdog of steps: stacks of what hangs, nothing of what does not."""

from __future__ import annotations

import time
from pathlib import Path

from memr1.training.watchdog import FOLDER, watched


def a_place_that_hangs(folder: Path) -> str:
    """Returns when stacks of two dumps are there."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        text = "".join(p.read_text() for p in folder.glob("*.txt"))
        if text.count("in a_place_that_hangs") == 2:
            return text
        time.sleep(0.02)
    raise AssertionError("nothing was written")


def test_what_hangs_is_written_down_with_its_stack_and_goes_on(tmp_path):
    with watched(0.1, tmp_path, "runner 3: play"):
        assert "runner 3: play has taken 0 s" in a_place_that_hangs(tmp_path / FOLDER)
    (path,) = (tmp_path / FOLDER).iterdir()
    time.sleep(0.3)  # one more may be under way
    written = path.stat().st_size
    time.sleep(0.3)
    assert path.stat().st_size == written


def test_what_ends_in_time_leaves_nothing(tmp_path):
    with watched(30.0, tmp_path, "step 1"):
        pass
    with watched(0.0, tmp_path, "step 2"):
        time.sleep(0.05)
    assert not (tmp_path / FOLDER).exists()


def test_a_folder_that_cannot_be_written_does_not_end_a_step(tmp_path):
    (tmp_path / "file").write_text("")
    with watched(0.05, tmp_path / "file", "step 1"):
        time.sleep(0.2)
