"""Clusters of several nodes on one machine: every node is a `ray start` of its own, with processes that can be killed.

A node runs on a `Host`: this machine itself, or a network namespace with an address and a link of its own. `Job` is a
training on such a cluster, through `ray job submit`.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from memr1.config import Config
from memr1.rllib.timeline import ask
from memr1.training.local import LocalSession
from memr1.training.runlog import RunLog, read_rollouts, rollout_files
from tests.ray.programs import BIN, ROOT, free_ports, wait_until

START_ATTEMPTS = 3
"""A busy machine misses the deadline of Ray's start-up now and then."""
START_S = 300
HEALTH = {"initial_delay_ms": "2000", "period_ms": "1000", "timeout_ms": "1000", "failure_threshold": "5"}
"""How soon the head takes a silent node for dead: after five seconds. Ray's own settings take up to a minute."""


@dataclass(frozen=True)
class Host:
    """Where nodes run."""

    address: str = "127.0.0.1"
    space: str = ""
    """Network namespace; empty for this machine itself."""

    @property
    def prefix(self) -> list[str]:
        """What a command on this host begins with."""
        return ["ip", "netns", "exec", self.space] if self.space else []

    def cut(self) -> None:
        """Take its link away: nothing is closed, there is just no answer any more."""
        ip("-n", self.space, "link", "set", "eth0", "down")

    def crash(self) -> None:
        """End everything on it at once, as a power cut does."""
        pids = subprocess.run(["ip", "netns", "pids", self.space], capture_output=True, text=True, timeout=20).stdout
        for pid in map(int, pids.split()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


HERE = Host()
LONG = ("stages.0.steps=100000",)
"""Longer than any test."""
_networks = itertools.count()


def ip(*command: str, check: bool = True) -> None:
    subprocess.run(["ip", *command], check=check, capture_output=True, timeout=20)


@contextmanager
def network(names: Sequence[str]) -> Iterator[dict[str, Host]]:
    """Hosts in network namespaces on a bridge. Raises CalledProcessError where this machine makes none."""
    tag = f"m{os.getpid() % 10000}{next(_networks)}"
    bridge = f"{tag}br"
    made: dict[str, Host] = {}
    try:
        ip("link", "add", bridge, "type", "bridge")
        ip("link", "set", bridge, "up")
        for i, name in enumerate(names, start=1):
            host = Host(f"10.231.7.{i}", f"{tag}{name}")
            ip("netns", "add", host.space)
            made[name] = host
            ip("link", "add", f"{host.space}o", "type", "veth", "peer", "name", "eth0", "netns", host.space)
            ip("link", "set", f"{host.space}o", "master", bridge, "up")
            ip("-n", host.space, "addr", "add", f"{host.address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", host.space, "link", "set", device, "up")
            ip("-n", host.space, "route", "add", "default", "via", "10.231.7.254")
        yield made
    finally:
        for host in made.values():
            host.crash()
            ip("netns", "del", host.space, check=False)
        ip("link", "del", bridge, check=False)


class Nodes:
    """A cluster with a token and a server for jobs. Its head has no CPUs: drivers run there, actors elsewhere."""

    def __init__(self, folder: Path, head: Host = HERE) -> None:
        self.folder, self.head = folder, head
        self.port, client, dashboard = free_ports(3)
        self.jobs = f"http://{head.address}:{dashboard}"
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        self.env |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_agent_register_timeout_ms": "120000",
            "RAY_JOB_STOP_WAIT_TIME_S": "120",
            "PYTHONPATH": str(ROOT),
        }
        self.env |= {f"RAY_health_check_{name}": value for name, value in HEALTH.items()}
        self.processes: dict[str, subprocess.Popen[Any]] = {}
        self._own: dict[Path, str] = {}
        """Folders for Ray with the names of their nodes, one each as on machines of their own: in a common one a node
        that joins would unpack the job's code anew under the feet of the others."""
        options = ["--head", f"--port={self.port}", "--num-cpus=0", f"--ray-client-server-port={client}"]
        options += ["--include-dashboard=true", f"--dashboard-host={head.address}", f"--dashboard-port={dashboard}"]
        self._start("head", head, options)

    def add(self, name: str, cpus: int, pool: str = "", host: Host = HERE) -> None:
        """Start a node, with the label `pool` if that is given; returns when it has joined."""
        options = [f"--address={self.head.address}:{self.port}", f"--num-cpus={cpus}"]
        self._start(name, host, options + ([f"--labels=pool={pool}"] if pool else []))

    def _start(self, name: str, host: Host, options: list[str]) -> None:
        command = [*host.prefix, str(BIN / "ray"), "start", "--block", "--disable-usage-stats", *options]
        command += [f"--node-ip-address={host.address}", f"--node-name={name}", "--object-store-memory=100000000"]
        own = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # a short path, since sockets lie in it
        self._own[own] = name
        command += [f"--temp-dir={own}", f"--dashboard-agent-listen-port={free_ports(1)[0]}"]
        log = self.folder / f"{name}.txt"
        for attempt in range(START_ATTEMPTS):
            with log.open("wb") as out:
                process = self.run(name, command, stdout=out, stderr=subprocess.STDOUT)
            wait_until(lambda p=process: "Ray runtime started" in log.read_text() or p.poll() is not None, START_S)
            if process.poll() is None:
                return
            time.sleep(2 * attempt)
        raise AssertionError(f"node {name} did not start: {log.read_text()[-2000:]}")

    def run(self, name: str, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """A program that ends with this cluster at the latest."""
        self.processes[name] = subprocess.Popen(command, env=self.env, start_new_session=True, **options)
        return self.processes[name]

    def actors(self) -> list[tuple[str, str, str]]:
        """Class, state, and name of the node, of every actor that a job has or had."""
        names = {node["node_id"]: node["node_name"] for node in self._listed("nodes")}
        own = [a for a in self._listed("actors") if a["class_name"] != "JobSupervisor"]  # Ray's, one for each job
        return sorted((a["class_name"], a["state"], names.get(a["node_id"], "")) for a in own)

    def drain(self, name: str, seconds: int) -> None:
        """Say that a node is going to leave in so many seconds, as an autoscaler or the notice of a spot machine does.
        Ending it then is left to the caller."""
        (node,) = (n["node_id"] for n in self._listed("nodes") if n["node_name"] == name and n["state"] == "ALIVE")
        command = [str(BIN / "ray"), "drain-node", "--address", f"{self.head.address}:{self.port}", "--node-id", node]
        command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the machine is needed"]
        command += ["--deadline-remaining-seconds", str(seconds)]
        subprocess.run([*self.head.prefix, *command], env=self.env, check=True, timeout=120)

    def _listed(self, what: str) -> list[dict[str, Any]]:
        """What Ray knows of all its nodes or actors, from the head on this machine."""
        request = urllib.request.Request(f"{self.jobs}/api/v0/{what}?detail=true&limit=1000")
        request.add_header("Authorization", f"Bearer {self.env['RAY_AUTH_TOKEN']}")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["data"]["result"]["result"]

    def kill(self, name: str) -> None:
        """End a node with all its processes, without a word."""
        process = self.processes.pop(name)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)

    def close(self) -> None:
        for name in reversed(list(self.processes)):
            self.kill(name)
        for own, name in self._own.items():
            if (logs := own / "session_latest" / "logs").is_dir():
                shutil.copytree(logs, self.folder / f"logs-{name}-{own.name}", ignore_dangling_symlinks=True)
            shutil.rmtree(own, ignore_errors=True)


class Job:
    """A training as a job, with the metrics of its steps as they are logged."""

    def __init__(
        self, nodes: Nodes, name: str, config: str | Path, folder: Path, *overrides: str, run: str = "tiny"
    ) -> None:
        """name: of the job. run: of its run, in the folder."""
        self.nodes, self.name, self.run_dir = nodes, name, folder / run
        self.log, self.metrics = folder / f"{name}.txt", self.run_dir / "metrics.jsonl"
        code = folder / "code"  # a working directory without the virtual environment and runs of this checkout
        code.mkdir(exist_ok=True)
        for part in ("memr1", "rayjobs", "configs"):
            if not (code / part).exists():
                (code / part).symlink_to(ROOT / part)
        command = self.ray("submit", "--submission-id", name, "--working-dir", str(code), "--", sys.executable)
        command += ["rayjobs/train.py", str(config), f"output={folder}", *overrides, "--resume", "auto"]
        with self.log.open("w") as out:
            self.process = nodes.run(f"job {name}", command, stdout=out, stderr=subprocess.STDOUT)

    def ray(self, verb: str, *arguments: str) -> list[str]:
        """A command `ray job` on the head's host."""
        return [*self.nodes.head.prefix, str(BIN / "ray"), "job", verb, "--address", self.nodes.jobs, *arguments]

    def steps(self) -> list[dict[str, Any]]:
        if not self.metrics.exists():
            return []
        return [json.loads(line) for line in self.metrics.read_text().splitlines() if line.endswith("}")]

    def until(self, step: int, seconds: float) -> None:
        """Wait until a step is logged."""

        def there() -> bool:
            assert self.process.poll() is None, f"the job ended: {self.log.read_text()[-4000:]}"
            return bool(steps := self.steps()) and steps[-1]["step"] >= step

        wait_until(there, seconds)

    def plays(self, runner: int, since: float) -> bool:
        """Whether a runner has played in one of the last steps, after a moment in seconds since 1970."""
        mine = [e for e in ask(self.run_dir, 120) if e["args"].get("process") == f"runner {runner}"]
        return any(e["name"] == "play" and e["ts"] > since * 1e6 for e in mine)

    def stop(self) -> None:
        """As somebody does who goes on with it later."""
        command = self.ray("stop", self.name)
        done = subprocess.run(command, env=self.nodes.env, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stderr

    def survives(self, fault: Callable[[], None], seconds: float = 300) -> float:
        """Let something happen during training and wait until that goes on; seconds between the two steps around it."""
        fault()
        happened = time.time()
        known = self.steps()[-1]["step"] + 5  # what was under way may still end, and be done again
        self.until(known, seconds)
        times = [line["time"] for line in self.steps()]
        gaps = [after - before for before, after in itertools.pairwise(times) if after > happened - 1]
        return max(gaps)


def assert_undisturbed(job: Job, alone: Config) -> None:
    """Every step is in the log once, with the loss that it has in one process where nothing happens, and with the very
    words of its rollouts. alone: the configuration for that."""
    steps = job.steps()
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))
    session = LocalSession(alone, RunLog(alone.run_dir), None)
    try:
        expected = [session.step() for _ in steps]
    finally:
        session.close()
    assert [line.get("learner/loss") for line in steps] == pytest.approx(
        [metrics.get("learner/loss") for metrics in expected],
        rel=1e-3,
        abs=1e-7,  # terms of a loss can cancel, and what is left is rounding
    )
    played, wanted = rollout_files(job.run_dir), rollout_files(alone.run_dir)
    assert played.keys() == wanted.keys()
    for step, path in played.items():
        assert said(path) == said(wanted[step]), f"step {step}"


def said(rollouts: Path) -> list[Any]:
    """Of every trajectory its task, its reward, and what was said in it."""
    return [
        (played["task_id"], played["reward"], [s["completion_text"] for s in played["steps"]])
        for played in read_rollouts(rollouts)
    ]
