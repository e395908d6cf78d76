"""A timeline on demand: what is kept, what is written, and what its summary says."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from memr1.errors import MemR1Error
from memr1.rllib.timeline import FILE, KEPT_STEPS, REQUEST, Span, Timeline, ask, busy

METRICS = {"time/step_s": 10.0, "time/setup_s": 0.0, "time/rollout_s": 6.0, "time/update_s": 3.0, "time/sync_s": 1.0}


def two_nodes(timeline: Timeline, step: int) -> None:
    """One runner plays for the whole rollout, another half of it, a learner updates."""
    began = time.time() - 10
    timeline.record(Span("runner 1", "10.0.0.1", "play", began, 6.0))
    timeline.record(Span("runner 2", "10.0.0.2", "play", began, 3.0))
    timeline.record(Span("learner 0", "10.0.0.2", "update", began + 6, 3.0))
    timeline.end_step(step, METRICS)


def test_nothing_is_written_unless_asked_and_then_the_last_steps_are(tmp_path: Path) -> None:
    timeline = Timeline(tmp_path)
    for step in range(1, KEPT_STEPS + 6):
        two_nodes(timeline, step)
    assert not list(tmp_path.iterdir())
    (tmp_path / REQUEST).write_text("x")
    two_nodes(timeline, KEPT_STEPS + 6)
    assert [p.name for p in tmp_path.iterdir()] == [FILE]
    events = json.loads((tmp_path / FILE).read_text())["traceEvents"]
    steps = {e["args"]["step"] for e in events if e["ph"] == "X"}
    assert steps == set(range(7, KEPT_STEPS + 7))
    names = {e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert names == {"10.0.0.1", "10.0.0.2", "driver's node"}
    learner = next(e for e in events if e.get("args", {}).get("process") == "learner 0")
    thread = next(e for e in events if e["name"] == "thread_name" and e["tid"] == learner["tid"])
    assert thread["args"]["name"] == "learner 0" and thread["pid"] == learner["pid"]


def test_the_summary_says_what_every_process_did_and_how_long_it_was_idle(tmp_path: Path) -> None:
    (tmp_path / REQUEST).write_text("x")
    two_nodes(Timeline(tmp_path), 1)
    rows = busy(json.loads((tmp_path / FILE).read_text())["traceEvents"])
    assert [(r.process, r.node) for r in rows] == [
        ("driver", ""), ("learner 0", "10.0.0.2"), ("runner 1", "10.0.0.1"), ("runner 2", "10.0.0.2")
    ]  # fmt: skip
    assert rows[0].seconds == pytest.approx({"setup": 0.0, "rollout": 6.0, "update": 3.0, "sync": 1.0}, abs=1e-3)
    assert [r.idle for r in rows] == pytest.approx([0.0, 0.7, 0.4, 0.7], abs=0.01)


def test_a_request_is_answered_by_the_run_and_not_by_an_older_file(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    (tmp_path / FILE).write_text(json.dumps({"request": "old", "traceEvents": []}))
    timeline = Timeline(tmp_path)

    def train() -> None:
        while not (tmp_path / REQUEST).exists():
            time.sleep(0.01)
        two_nodes(timeline, 1)

    thread = threading.Thread(target=train)
    thread.start()
    assert len(busy(ask(tmp_path, 30))) == 4
    thread.join()


def test_a_run_that_does_not_train_is_told(tmp_path: Path) -> None:
    with pytest.raises(MemR1Error, match="no run there"):
        ask(tmp_path, 1)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(MemR1Error, match=r"no answer within 0 s\. .* look whether it trains"):
        ask(tmp_path, 0.1)
    assert not (tmp_path / REQUEST).exists(), "a run that starts later answers nobody"


def test_a_run_without_ray_is_refused_at_once_and_not_asked(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("backend: local\n")
    with pytest.raises(MemR1Error, match="config.yaml: backend is local, and only runs on Ray keep a timeline"):
        ask(tmp_path, 600.0)
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]
