"""Which programs on a head are told that it goes, with a job server in this process. Over a real one: tests/ray."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def driver() -> Iterator[subprocess.Popen[str]]:
    """A program that takes a moment to end when it is told to."""
    program = "import signal, time; signal.signal(15, lambda *_: (time.sleep(1), exit(75))); print(flush=True); "
    process = subprocess.Popen([sys.executable, "-c", program + "time.sleep(60)"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_a_program_that_was_not_submitted_is_told_too_and_waited_for_by_its_process(driver, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "rayjobs"))
    import preempt

    lives = SimpleNamespace(is_terminal=lambda: False)
    job: Any = SimpleNamespace(
        submission_id=None,
        job_id="02000000",
        status=lives,
        driver_info=SimpleNamespace(node_ip_address="127.0.0.1", pid=str(driver.pid)),
    )

    def status(name: str) -> Any:
        raise RuntimeError(f"Request failed with status code 404: Job {name} does not exist")

    client = SimpleNamespace(list_jobs=lambda: [job], get_job_status=status)
    monkeypatch.setattr(preempt, "connect", lambda address: client)
    said = preempt.preempt("http://127.0.0.1:1", wait_s=30.0)
    assert said["told"] == ["02000000"] and said["left"] == []
    assert 1.0 <= said["seconds"] < 30.0
    assert driver.wait(5) == 75
