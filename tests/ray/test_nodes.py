"""Placement on nodes with labels, and nodes that come and go during a job. All are processes on this machine.
Hosts of a network: test_hosts.py."""

from __future__ import annotations

import re
import time

import pytest

from tests.ray.nodes import LONG, Job, Nodes, assert_undisturbed
from tests.ray.programs import wait_until

LABELLED = (
    "learner.num_learners=2",
    "placement.strategy=strict-spread",
    "placement.num_embedders=1",
    "placement.max_runners=2",
    "placement.learners={cpus: 1, labels: {pool: learn}}",
    "placement.runners={cpus: 1, labels: {pool: play}}",
    "placement.embedders={cpus: 1, labels: {pool: embed}}",
)
PLAYED = ("stages.0.objective=ppo", "stages.0.group_size=1", "rollout.answer_max_new_tokens=8")
"""Steps with rollouts, after each of which there are new weights, whatever a model of random weights earns."""
ELASTIC = ("placement.runners.cpus=1", "placement.learners.cpus=1", "placement.wait_s=120", "placement.max_runners=2")
SELDOM = ("checkpoint.every_steps=100000",)


@pytest.mark.timeout(900)
def test_every_role_of_a_job_is_on_nodes_with_its_labels_and_a_lost_embedder_comes_back(nodes, make_config, tmp_path):
    make_config(tmp_path)
    for name, pool in (("a", "learn"), ("b", "learn"), ("r", "play"), ("e", "embed")):
        nodes.add(name, cpus=1, pool=pool)
    job = Job(nodes, "labelled", tmp_path / "tiny.yaml", tmp_path, *LONG, *PLAYED, *LABELLED)
    job.until(2, 600)
    assert "embedder: hash in 1 embedder for all runners" in job.log.read_text().splitlines()
    roles = [("DialogueEnvRunner", "r"), ("EmbedderActor", "e"), ("LearnerActor", "a"), ("LearnerActor", "b")]
    assert living(nodes) == roles
    # the node of the only embedder is lost; a runner that joins asks it for every vector
    nodes.kill("e")
    for name, pool in (("r2", "play"), ("e2", "embed")):
        nodes.add(name, cpus=1, pool=pool)
    wait_until(lambda: job.plays(2, since=0), 300)
    assert living(nodes)[:3] == [("DialogueEnvRunner", "r"), ("DialogueEnvRunner", "r2"), ("EmbedderActor", "e2")]
    job.stop()
    assert_undisturbed(job, make_config(tmp_path, "name=alone", "backend=local", *LONG, *PLAYED))

    far = (*LABELLED, "name=far", "placement.runners.labels={pool: far}")
    nowhere = Job(nodes, "nowhere", tmp_path / "tiny.yaml", tmp_path, *far)
    assert nowhere.process.wait(300) != 0
    refused = nowhere.log.read_text()
    assert "placement: 1 of 4 actors do not fit. Wanted: runner 1: 1 CPU on {'pool': 'far'}" in refused
    assert all(f"labels {{'pool': '{pool}'}}" in refused for pool in ("learn", "play", "embed"))


@pytest.mark.timeout(900)
def test_a_job_goes_on_while_nodes_join_are_lost_and_leave(nodes, make_config, tmp_path):
    make_config(tmp_path)
    nodes.add("one", cpus=2)
    job = Job(nodes, "elastic", tmp_path / "tiny.yaml", tmp_path, *LONG, *PLAYED, *ELASTIC, *SELDOM)
    job.until(2, 400)
    assert living(nodes) == [("DialogueEnvRunner", "one"), ("LearnerActor", "one")]
    nodes.add("two", cpus=1)
    wait_until(lambda: job.plays(2, since=0), 300)
    assert ("DialogueEnvRunner", "two") in living(nodes)
    nodes.kill("two")
    job.until(job.steps()[-1]["step"] + 3, 300)
    nodes.add("three", cpus=3)  # runner 1 will want room there as well as the learner
    there = time.time()
    wait_until(lambda: job.plays(2, since=there), 300)
    assert not list((tmp_path / "tiny" / "checkpoints").glob("*/COMMITTED")), "no step was done again until now"
    nodes.drain("one", seconds=300)
    job.until(job.steps()[-1]["step"] + 3, 300)
    before = job.steps()[-1]["step"]
    nodes.kill("one")
    wait_until(lambda: "learners lost" in job.log.read_text(), 300)
    (back,) = re.findall(r"learners lost, going back to step_(\d+)", job.log.read_text())
    assert int(back) >= before - 1, "the step under way when the node went is all that is lost"
    job.until(int(back) + 3, 300)
    assert ("LearnerActor", "three") in living(nodes)
    job.stop()
    assert_undisturbed(job, make_config(tmp_path, "name=alone", "backend=local", *LONG, *PLAYED))


def living(nodes: Nodes) -> list[tuple[str, str]]:
    """Class and node of every actor that is alive."""
    return [(kind, node) for kind, state, node in nodes.actors() if state == "ALIVE"]
