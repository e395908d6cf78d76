"""From one machine to a cluster: another number of ranks, placement as asked, and metrics that can be scraped."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from typing import Any

import pytest

from memr1.rllib.timeline import FILE, REQUEST, busy
from memr1.training.checkpoints import committed
from memr1.training.run import prepare_folder
from memr1.training.runlog import RunLog, read_metrics

STAGE = ("stages.0.steps=4", "stages.0.examples_per_step=6")


def steps(session: Any, count: int) -> None:
    try:
        for _ in range(count):
            session.step()
    finally:
        session.close()


@pytest.mark.timeout(400)
def test_a_run_of_one_process_goes_on_with_two_ranks_as_if_it_had_gone_on_alone(
    ray_cluster, make_config, tmp_path, capfd
):
    from memr1.rllib.session import RaySession
    from memr1.training.local import LocalSession

    alone = make_config(tmp_path, "name=alone", "backend=local", *STAGE)
    prepare_folder(alone, "never")
    steps(LocalSession(alone, RunLog(alone.run_dir), None), 4)

    moved = make_config(tmp_path, "name=moved", "backend=local", *STAGE)
    prepare_folder(moved, "never")
    steps(LocalSession(moved, RunLog(moved.run_dir), None), 2)
    wider = make_config(
        tmp_path,
        "name=moved",
        "learner.num_learners=2",
        "placement.strategy=pack",
        "placement.runners.cpus=0.5",
        *STAGE,
    )
    checkpoint = prepare_folder(wider, "auto")
    assert checkpoint == committed(wider.run_dir)[-1] and checkpoint.name == "step_000002"
    session = RaySession(wider, RunLog(wider.run_dir), checkpoint)
    try:
        session.step()
        assert len(session.trainer.learners.actors) == 2
        (wider.run_dir / REQUEST).write_text("asked")
        session.step()
        told = json.loads((wider.run_dir / FILE).read_text())
        assert told["request"] == "asked" and not (wider.run_dir / REQUEST).exists()
        rows = {row.process: row for row in busy(told["traceEvents"])}
        assert list(rows) == ["driver", "learner 0", "learner 1", "runner 1"]
        assert set(rows["driver"].seconds) == {"setup", "rollout", "update", "sync"}
        assert {"start", "update", "weights"} <= set(rows["learner 1"].seconds)
        assert rows["runner 1"].seconds["load_weights"] > 0
        for e in (e for e in told["traceEvents"] if e["name"] == "update"):
            (whole,) = (d for d in told["traceEvents"] if d["name"] == "update" and d["args"]["process"] == "driver"
                        and d["args"]["step"] == e["args"]["step"])  # fmt: skip
            assert whole["ts"] - 1e5 <= e["ts"] and e["ts"] + e["dur"] <= whole["ts"] + whole["dur"] + 1e5
        assert scraped("ray_memr1_step", 60) == {"moved": 4.0}
        phases = scraped("ray_memr1_phase_seconds", 10, "phase")
        assert set(phases) == {"setup", "rollout", "update", "sync"}
        assert phases["update"] == pytest.approx(read_metrics(wider.run_dir)[-1]["time/update_s"], rel=1e-6)
    finally:
        session.close()
    plan = capfd.readouterr().out
    assert "placement:" in plan and "learner 1 (" in plan and "runner 1 (0.5 CPU)" in plan

    expected, got = ([m["learner/loss"] for m in read_metrics(c.run_dir)] for c in (alone, wider))
    assert got == pytest.approx(expected, rel=1e-4) and len(got) == 4


def scraped(name: str, seconds: float, label: str = "run") -> dict[str, float]:
    """Values by a label of one metric, as Prometheus would read them from the node; polled until there are some."""
    import ray

    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            text = urllib.request.urlopen(url, timeout=10).read().decode()
        except OSError:
            text = ""
        found = re.findall(rf"^{name}{{([^}}]*)}} (\S+)$", text, re.MULTILINE)
        labelled = [(dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value)) for labels, value in found]
        values = {labels[label]: value for labels, value in labelled if labels["run"] == "moved"}
        if values and (name != "ray_memr1_step" or 4.0 in values.values()):
            return values
        time.sleep(1)
    raise AssertionError(f"{name} was not exported at {url} within {seconds} s")
