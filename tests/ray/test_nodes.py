"""Placement on nodes with labels, and runners that come and go with their nodes, which are processes on this machine.
Hosts of a network: test_hosts.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.ray.nodes import Drive, Job, Nodes, assert_undisturbed

ONE_EACH = ("placement.runners.cpus=1", "placement.learners.cpus=1", "placement.wait_s=120", "placement.max_runners=2")


LABELLED = (
    "learner.num_learners=2",
    "placement.strategy=strict-spread",
    "placement.num_embedders=1",
    "placement.learners={cpus: 1, labels: {pool: learn}}",
    "placement.runners={cpus: 1, labels: {pool: play}}",
    "placement.embedders={cpus: 1, labels: {pool: embed}}",
)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Nodes]]:
    """A cluster that ends with the test."""
    with ExitStack() as stack:

        def started(**options: bool) -> Nodes:
            nodes = Nodes(tmp_path, **options)
            stack.callback(nodes.close)
            return nodes

        yield started


def logged_steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "tiny" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.timeout(900)
def test_a_job_trains_with_every_role_on_the_nodes_that_its_labels_name(start, make_config, tmp_path):
    make_config(tmp_path)
    nodes = start(jobs=True)
    for name, pool in (("a", "learn"), ("b", "learn"), ("r", "play"), ("e", "embed")):
        nodes.add(name, cpus=1, pool=pool)
    job = Job(nodes, "labelled", tmp_path / "tiny.yaml", tmp_path, *LABELLED, "stages.0.steps=4")
    assert job.process.wait(600) == 0, job.log.read_text()[-4000:]
    said = job.log.read_text()
    assert "embedder: hash in 1 embedder for all runners" in said.splitlines()
    actors = nodes.actors()
    roles = [("DialogueEnvRunner", "play"), ("EmbedderActor", "embed"), *[("LearnerActor", "learn")] * 2]
    assert [(kind, pool) for kind, pool, _ in actors] == roles
    assert len({node for _, _, node in actors}) == 4, "the two ranks are on different nodes"
    assert_undisturbed(job, make_config, tmp_path)

    far = (*LABELLED, "name=far", "placement.runners.labels={pool: far}")
    nowhere = Job(nodes, "nowhere", tmp_path / "tiny.yaml", tmp_path, *far)
    assert nowhere.process.wait(300) != 0
    refused = nowhere.log.read_text()
    assert "placement: 1 of 4 actors do not fit. Wanted: runner 1: 1 CPU on {'pool': 'far'}" in refused
    assert all(f"labels {{'pool': '{pool}'}}" in refused for pool in ("learn", "play", "embed"))


@pytest.mark.timeout(900)
def test_runners_join_with_nodes_and_leave_with_them_and_the_run_goes_on(start, make_config, tmp_path):
    make_config(tmp_path)
    nodes = start()
    nodes.add("one", cpus=2)
    run = Drive(nodes, tmp_path / "tiny.yaml", tmp_path, "stages.0.steps=100000", *ONE_EACH)
    first = run.until(lambda s: s["step"] >= 2, 400)
    assert (first["ready"], first["size"]) == (1, 1)
    assert any("learner 0 (1 CPU), runner 1 (1 CPU)" in line for line in run.said), run.said
    nodes.add("two", cpus=1)
    run.until(lambda s: s["ready"] == 2, 300)
    nodes.kill("two")
    away = run.until(lambda s: s["ready"] == 1, 300)
    assert away["size"] == 2
    nodes.add("three", cpus=1)
    run.until(lambda s: s["ready"] == 2, 300)
    assert run.finish() == 0, run.log.read_text()
    assert run.steps[-1]["restarts"] == 0
    assert logged_steps(tmp_path) == [s["step"] for s in run.steps] == list(range(1, len(run.steps) + 1))
