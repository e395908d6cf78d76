"""Runners that come and go with their nodes, which are processes on this machine. Hosts of a network: test_hosts.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray.nodes import Drive, Nodes

ONE_EACH = ("placement.runners.cpus=1", "placement.learners.cpus=1", "placement.wait_s=120", "placement.max_runners=2")


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    cluster = Nodes(tmp_path)
    try:
        yield cluster
    finally:
        cluster.close()


def logged_steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "tiny" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.timeout(900)
def test_runners_join_with_nodes_and_leave_with_them_and_the_run_goes_on(nodes, make_config, tmp_path):
    make_config(tmp_path)
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
