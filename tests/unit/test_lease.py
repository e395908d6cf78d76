"""The lease of a run on a store, in memory; over a real S3 server in tests/e2e/test_object_store.py."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from memr1 import storage
from memr1.errors import MemR1Error
from memr1.training.checkpoints import TrainState, save_checkpoint

FIRST, HEIR = {"name": "first", "pid": 1, "host": "one"}, {"name": "heir", "pid": 2, "host": "two"}
TAKEN = r"heir \(process 2 on two\) trains here"


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(storage, "RENEW_S", 0.05)
    monkeypatch.setattr(storage, "DEAD_S", 0.3)
    monkeypatch.setattr(storage, "SETTLE_S", 0.0)
    monkeypatch.setenv("MEMR1_CACHE", str(tmp_path / "cache"))
    return storage.local_path(f"memory://runs/{tmp_path.name}")


def test_a_holder_that_was_taken_for_dead_leaves_everything_to_its_heir(run_dir, monkeypatch):
    first = storage.Lease(run_dir, FIRST)
    storage.check_lease(run_dir)
    write = first._write
    monkeypatch.setattr(first, "_write", lambda: None)  # cut off, or stopped
    heir = storage.Lease(run_dir, HEIR)
    storage._held[run_dir] = first  # as in the process of the first one
    monkeypatch.setattr(first, "_write", write)  # back again
    first._thread.join(10)
    assert not first._thread.is_alive()
    told = []
    with pytest.raises(MemR1Error, match=TAKEN):
        save_checkpoint(run_dir, TrainState(step=1), told.append, None)
    with pytest.raises(MemR1Error, match=TAKEN):
        storage.push(run_dir)
    assert told == [] and not (run_dir / "checkpoints").exists()
    first.release()
    time.sleep(0.2)
    assert json.loads(str(heir._read()))["name"] == "heir", "the heir keeps it"
    heir.release()
    assert heir._read() is None
