"""From one machine to a cluster: another number of ranks, placement as asked, and metrics that can be scraped."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from memr1.config_file import load_config
from memr1.rllib.timeline import FILE, REQUEST, busy
from memr1.training.checkpoints import committed
from memr1.training.run import prepare_folder
from memr1.training.runlog import RunLog, read_metrics
from tests.ray.nodes import LONG, Job, assert_undisturbed
from tests.ray.programs import BIN, ROOT, end, wait_until

TRAIN_LOCAL = "configs/train_local.yaml"
SMALL = (
    "model.name=tiny-random",
    "model.threads=1",
    "memory.embedder=hash",
    "data.factworld.num_worlds=2",
    "rollout.prompts_per_step=4",
    "rollout.group_size=6",
    "evaluation.at_end=false",
)
TWO_RANKS = (
    "learner.num_learners=2",
    "placement.strategy=strict-spread",
    "placement.learners.cpus=1",
    "placement.runners.cpus=1",
)
POOLS = (
    "placement.learners.labels={pool: learn}",
    "placement.runners.labels={pool: play}",
    "placement.max_runners=2",
)
LEARNABLE = (
    "model.weights=full",
    "stages.0.steps=60",
    "stages.0.learning_rate=5e-3",
    "stages.0.examples_per_step=8",
    "stages.1.steps=6",
    "stages.2.reward=f1",
    "stages.2.steps=100000",
)
"""Two stages of train_local.yaml in which the random model learns its worlds by heart, and one with rollouts whose
rewards differ."""
STAGE = ("stages.0.steps=4", "stages.0.examples_per_step=6")


def steps(session: Any, count: int) -> None:
    try:
        for _ in range(count):
            session.step()
    finally:
        session.close()


def begin(folder: Path, step: int, *overrides: str) -> int:
    """`make train-local` until a step, and Ctrl-C; the step of the checkpoint that it leaves."""
    command = [str(BIN / "memr1"), "train", TRAIN_LOCAL, "--resume", "auto", f"output={folder}", *overrides]
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    log, metrics = folder / "local.txt", folder / "train_local" / "metrics.jsonl"
    with log.open("w") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            wait_until(
                lambda: process.poll() is not None or (metrics.exists() and metrics.read_text().count("\n") >= step),
                300,
            )
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(120) == 0, log.read_text()[-3000:]
        finally:
            end(process)
    (reached,) = re.findall(r"stopped; checkpoint: .*step_(\d+)", log.read_text())
    return int(reached)


@pytest.mark.timeout(600)
def test_a_run_begun_by_make_train_local_goes_on_as_a_job_with_two_ranks_on_two_nodes(nodes, tiny_random, tmp_path):
    run = (*SMALL, *LONG)
    reached = begin(tmp_path, 2, *run)
    for name, cpus in (("a", 2), ("b", 1)):
        nodes.add(name, cpus)
    job = Job(nodes, "wider", TRAIN_LOCAL, tmp_path, *run, *TWO_RANKS, run="train_local")
    job.until(reached + 2, 300)
    job.stop()
    assert f"resumed from step_{reached:06d}" in job.log.read_text()
    learners = [node for kind, _, node in nodes.actors() if kind == "LearnerActor"]
    assert learners == ["a", "b"]
    alone = load_config(ROOT / TRAIN_LOCAL, [f"output={tmp_path}", "name=alone", "backend=local", *run])
    assert_undisturbed(job, alone)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_of_several_stages_goes_on_as_a_job_with_other_ranks_while_nodes_join_and_leave(
    nodes, tiny_random, tmp_path
):
    run = (*SMALL, *LEARNABLE)
    reached = begin(tmp_path, 62, *run)
    assert 62 <= reached < 66, "in the stage of the manager"
    for name, pool in (("a", "learn"), ("b", "learn"), ("r", "play")):
        nodes.add(name, cpus=1, pool=pool)
    seldom = "checkpoint.every_steps=100000"
    job = Job(nodes, "wider", TRAIN_LOCAL, tmp_path, *run, *TWO_RANKS, *POOLS, seldom, run="train_local")
    job.until(67, 600)
    nodes.add("r2", cpus=1, pool="play")
    wait_until(lambda: job.plays(2, since=0), 300)
    nodes.drain("a", seconds=300)
    nodes.add("c", cpus=1, pool="learn")
    job.until(job.steps()[-1]["step"] + 2, 300)
    before = job.steps()[-1]["step"]
    for name in ("a", "r"):
        nodes.kill(name)
    wait_until(lambda: "learners lost" in job.log.read_text(), 300)
    (back,) = re.findall(r"learners lost, going back to step_(\d+)", job.log.read_text())
    assert int(back) >= before - 1
    job.until(int(back) + 3, 300)
    job.stop()
    alone = load_config(ROOT / TRAIN_LOCAL, [f"output={tmp_path}", "name=alone", "backend=local", *run])
    assert_undisturbed(job, alone)
    rewards = [line["reward/mean"] for line in job.steps() if "reward/mean" in line]
    assert 0.05 < rewards[-1] < 0.999, "else this test would prove little"


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
        assert {"start", "update", "ship"} <= set(rows["learner 1"].seconds)
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
