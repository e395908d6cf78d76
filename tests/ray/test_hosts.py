"""Jobs over a network of hosts: namespaces with addresses of their own, a cut link, a crashed host, a lost head.

In every test the losses are those of an undisturbed run in one process. Each prints how long training stood still.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.ray.nodes import LONG, Host, Job, Nodes, assert_undisturbed, network

NAMES = ("head", "a", "b", "c", "r", "s")
ENDLESS = (*LONG, "placement.wait_s=120")
TWO_RANKS = (
    "learner.num_learners=2",
    "placement.strategy=strict-spread",
    "placement.learners.cpus=1",
    "placement.learners.labels={pool: learn}",
    "placement.runners.cpus=1",
)


@pytest.fixture
def hosts() -> Iterator[dict[str, Host]]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the program ip")
    pytest.importorskip("aiohttp_cors", reason="the job server needs ray[default]")
    with ExitStack() as stack:
        try:
            made = stack.enter_context(network(NAMES))
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine makes no network namespaces: {error.stderr.decode().strip()}")
        yield made


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def start(stack: ExitStack, folder: Path, hosts: dict[str, Host]) -> Nodes:
    nodes = Nodes(folder, hosts["head"])
    stack.callback(nodes.close)
    return nodes


@pytest.mark.timeout(1200)
def test_a_job_trains_with_learners_on_two_hosts_of_a_network(hosts, stack, make_config, tmp_path):
    make_config(tmp_path)
    nodes = start(stack, tmp_path, hosts)
    nodes.add("a", cpus=2, pool="learn", host=hosts["a"])
    nodes.add("b", cpus=1, pool="learn", host=hosts["b"])
    job = Job(nodes, "short", tmp_path / "tiny.yaml", tmp_path, *TWO_RANKS, "stages.0.steps=4")
    assert job.process.wait(600) == 0, job.log.read_text()[-4000:]
    said = job.log.read_text().splitlines()
    for name in "ab":
        (plan,) = (line for line in said if line.startswith(f"{hosts[name].address}, "))
        assert plan.count("learner ") == 1
    assert len(job.steps()) == 4
    assert_undisturbed(job, make_config(tmp_path, "name=alone", "backend=local", *LONG))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_cut_link_and_a_crashed_host_cost_the_current_step(hosts, stack, make_config, tmp_path, capsys):
    make_config(tmp_path)
    nodes = start(stack, tmp_path, hosts)
    nodes.add("r", cpus=1, host=hosts["r"])
    for name in "ab":
        nodes.add(name, cpus=1, pool="learn", host=hosts[name])
    job = Job(nodes, "job", tmp_path / "tiny.yaml", tmp_path, *TWO_RANKS, *ENDLESS, "checkpoint.every_steps=1")
    job.until(3, 600)
    nodes.add("c", cpus=1, pool="learn", host=hosts["c"])
    link = job.survives(hosts["a"].cut)
    nodes.add("s", cpus=1, host=hosts["s"])
    runner = job.survives(hosts["r"].crash)
    nodes.add("a2", cpus=1, pool="learn", host=hosts["r"])
    learner = job.survives(hosts["b"].crash)
    job.stop()
    said = job.log.read_text()
    assert said.count("learners lost, going back to step_") >= 2, said[-4000:]
    with capsys.disabled():
        print(f"\nstood still: cut link {link:.0f} s, runner's host {runner:.0f} s, learner's host {learner:.0f} s")
    last = job.steps()[-1]["step"]
    assert (tmp_path / "tiny" / "checkpoints" / f"step_{last:06d}" / "COMMITTED").exists()
    assert_undisturbed(job, make_config(tmp_path, "name=alone", "backend=local", *LONG))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_lost_head_costs_the_steps_since_the_checkpoint_and_one_that_is_told_none(
    hosts, stack, make_config, tmp_path, capsys
):
    make_config(tmp_path)
    nodes = start(stack, tmp_path, hosts)
    nodes.add("a", cpus=2, host=hosts["a"])
    job = Job(nodes, "job", tmp_path / "tiny.yaml", tmp_path, *ENDLESS, "checkpoint.every_steps=1")
    job.until(3, 600)
    for name in ("head", "a"):
        hosts[name].crash()
    lost, before = time.time(), job.steps()[-1]["step"]
    nodes.close()

    nodes = start(stack, tmp_path, hosts)
    nodes.add("a", cpus=2, host=hosts["a"])
    there = time.time()
    # no checkpoint but the one that it writes when it is told to go
    job = Job(nodes, "job", tmp_path / "tiny.yaml", tmp_path, *ENDLESS, "checkpoint.every_steps=100000")
    job.until(before + 3, 600)
    resumed = next(line["time"] for line in job.steps() if line["time"] > there)
    tell = [*hosts["head"].prefix, sys.executable, str(Path("rayjobs") / "preempt.py"), "--address", nodes.jobs]
    told = subprocess.run(tell, env=nodes.env, capture_output=True, text=True, timeout=200)
    assert told.returncode == 0, told.stderr
    answer = json.loads(told.stdout.splitlines()[-1])
    assert (answer["told"], answer["left"]) == (["job"], [])
    assert job.process.wait(60) != 0, "whatever retries jobs must not take it for finished"
    assert "exit code 75" in job.log.read_text()
    with capsys.disabled():
        print(f"\nhead lost: {resumed - lost:.0f} s, of them {there - lost:.0f} s for a new cluster; told to go: "
              f"checkpoint after {answer['seconds']} s")  # fmt: skip
    last = job.steps()[-1]["step"]
    committed = sorted(p.parent.name for p in (tmp_path / "tiny" / "checkpoints").glob("*/COMMITTED"))
    assert committed[-1] == f"step_{last:06d}"
    assert_undisturbed(job, make_config(tmp_path, "name=alone", "backend=local", *LONG))
