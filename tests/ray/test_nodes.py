"""Several nodes: ranks on different ones, runners that come and go, a node that dies with a learner.

Nodes are processes on this machine; in the last test hosts in network namespaces, with addresses and a link of their
own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray.nodes import Nodes, Run

ENDLESS = ("stages.0.steps=100000", "placement.wait_s=120", "checkpoint.every_steps=1")


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    cluster = Nodes(tmp_path)
    try:
        yield cluster
    finally:
        cluster.close()


def logged_steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "tiny" / "metrics.jsonl").read_text().splitlines()]


def one_each(*more: str) -> tuple[str, ...]:
    return (*ENDLESS, "placement.runners.cpus=1", "placement.learners.cpus=1", *more)


@pytest.mark.timeout(420)
def test_runners_join_with_nodes_and_leave_with_them_and_the_run_goes_on(nodes, make_config, tmp_path):
    make_config(tmp_path)
    nodes.add("one", cpus=2)
    run = Run(nodes, tmp_path / "tiny.yaml", tmp_path, *one_each("placement.max_runners=2"))
    first = run.until(lambda s: s["step"] >= 2, 240)
    assert (first["ready"], first["size"]) == (1, 1)
    assert any("learner 0 (1 CPU), runner 1 (1 CPU)" in line for line in run.said), run.said
    nodes.add("two", cpus=1)
    run.until(lambda s: s["ready"] == 2, 120)
    nodes.kill("two")
    away = run.until(lambda s: s["ready"] == 1, 120)
    assert away["size"] == 2
    nodes.add("three", cpus=1)
    run.until(lambda s: s["ready"] == 2, 120)
    assert run.finish() == 0, run.log.read_text()
    assert run.steps[-1]["restarts"] == 0
    assert logged_steps(tmp_path) == [s["step"] for s in run.steps] == list(range(1, len(run.steps) + 1))


def learners_on_two_nodes_lose_one(nodes: Nodes, tmp_path: Path, lose: object, **hosts: dict) -> None:
    """Ranks on nodes `a` and `b`; `c` joins, `lose()` takes `a` away; at most the current step is played again."""
    nodes.add("r", cpus=1, **hosts.get("r", {}))
    for name in ("a", "b"):
        nodes.add(name, cpus=1, pool="learn", **hosts.get(name, {}))
    settings = ("learner.num_learners=2", "placement.strategy=strict-spread", "placement.learners.labels={pool: learn}")
    run = Run(nodes, tmp_path / "tiny.yaml", tmp_path, *one_each(*settings))
    run.until(lambda s: s["step"] >= 2, 300)
    plan = [line for line in run.said if "learner" in line and "CPU" in line]
    assert len(plan) == 2 and all(line.count("learner ") == 1 for line in plan), run.said
    nodes.add("c", cpus=1, pool="learn", **hosts.get("c", {}))
    before = run.until(lambda s: True, 60)["step"]
    lose()  # type: ignore[operator]
    after = run.until(lambda s: s["restarts"] == 1, 240)
    assert after["step"] >= before + 1
    run.until(lambda s: s["step"] >= after["step"] + 2, 120)
    assert run.finish() == 0, run.log.read_text()
    # every step is there once: what was committed was kept, what was not was done again
    assert logged_steps(tmp_path) == [s["step"] for s in run.steps] == list(range(1, len(run.steps) + 1))


@pytest.mark.slow
@pytest.mark.timeout(800)
def test_a_node_that_dies_with_a_learner_costs_the_current_step(nodes, make_config, tmp_path):
    make_config(tmp_path)
    learners_on_two_nodes_lose_one(nodes, tmp_path, lambda: nodes.kill("a"))


@pytest.fixture
def hosts() -> Iterator[dict[str, tuple[str, str]]]:
    """Network namespaces on a bridge: name -> (namespace, address)."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the program ip")
    tag = f"m{os.getpid() % 10000}"
    bridge = f"{tag}br"

    def ip(*command: str, check: bool = True) -> None:
        subprocess.run(["ip", *command], check=check, capture_output=True, timeout=20)

    made: dict[str, tuple[str, str]] = {}
    try:
        try:
            ip("link", "add", bridge, "type", "bridge")
            ip("link", "set", bridge, "up")
            for i, name in enumerate(("head", "r", "a", "b", "c"), start=1):
                space, address = f"{tag}{name}", f"10.231.7.{i}"
                ip("netns", "add", space)
                made[name] = (space, address)
                ip("link", "add", f"{space}o", "type", "veth", "peer", "name", "eth0", "netns", space)
                ip("link", "set", f"{space}o", "master", bridge, "up")
                ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
                ip("-n", space, "link", "set", "lo", "up")
                ip("-n", space, "link", "set", "eth0", "up")
                ip("-n", space, "route", "add", "default", "via", "10.231.7.254")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine makes no network namespaces: {error.stderr.decode().strip()}")
        yield made
    finally:
        for space, _ in made.values():
            ip("netns", "del", space, check=False)
        ip("link", "del", bridge, check=False)


@pytest.mark.slow
@pytest.mark.timeout(800)
def test_a_host_whose_link_is_cut_costs_the_current_step(hosts, make_config, tmp_path):
    make_config(tmp_path)

    def inside(name: str) -> dict:
        space, address = hosts[name]
        return {"address": address, "prefix": ("ip", "netns", "exec", space)}

    nodes = Nodes(tmp_path, **inside("head"))
    try:

        def cut() -> None:
            space = hosts["a"][0]
            subprocess.run(["ip", "-n", space, "link", "set", "eth0", "down"], check=True, timeout=20)

        learners_on_two_nodes_lose_one(nodes, tmp_path, cut, **{n: inside(n) for n in ("r", "a", "b", "c")})
    finally:
        nodes.close()
