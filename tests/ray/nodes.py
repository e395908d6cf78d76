"""Clusters of several nodes on one machine: every node is a `ray start` of its own, with processes that can be killed.

A node runs on a `Host`: this machine itself, or a network namespace with an address, a link and a folder for Ray of its
own. `Drive` runs a training on such a cluster as a driver of the tests' own, `Job` through `ray job submit`.

`python tests/ray/nodes.py CONFIG FOLDER OVERRIDES...` is the driver: it prints a line of JSON for every step, and ends
when a file `stop` is in the folder.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

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
    folder: str = ""
    """What the host has for /tmp/ray."""

    @property
    def prefix(self) -> list[str]:
        """What a command on this host begins with. `ip netns exec` gives a process mounts of its own as well."""
        if not self.space:
            return []
        inside = f'mount --bind {self.folder} /tmp/ray && exec "$@"'
        return ["ip", "netns", "exec", self.space, "sh", "-c", inside, "sh"]

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
def network(names: Sequence[str], folder: Path) -> Iterator[dict[str, Host]]:
    """Hosts in network namespaces on a bridge. Raises CalledProcessError where this machine makes none."""
    tag = f"m{os.getpid() % 10000}{next(_networks)}"
    bridge = f"{tag}br"
    made: dict[str, Host] = {}
    try:
        ip("link", "add", bridge, "type", "bridge")
        ip("link", "set", bridge, "up")
        for i, name in enumerate(names, start=1):
            own = Path("/tmp") / f"{tag}{name}"  # short: sockets of Ray lie in it
            host = Host(f"10.231.7.{i}", f"{tag}{name}", str(own))
            for path in (own, Path("/tmp/ray")):
                path.mkdir(exist_ok=True)
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
        for host in made.values():
            logs = Path(host.folder) / "session_latest" / "logs"
            if logs.is_dir():
                subprocess.run(["cp", "-rL", str(logs), str(folder / f"logs-{host.space}")], check=False)
            subprocess.run(["rm", "-rf", host.folder], check=False)


class Nodes:
    """A cluster with a token. Its head has no CPUs: the driver runs there, actors elsewhere."""

    def __init__(self, folder: Path, head: Host = HERE, *, jobs: bool = False) -> None:
        """jobs: with the server for `ray job submit`."""
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
        options = ["--head", f"--port={self.port}", "--num-cpus=0", f"--ray-client-server-port={client}"]
        options += [f"--include-dashboard={str(jobs).lower()}"]
        options += [f"--dashboard-host={head.address}", f"--dashboard-port={dashboard}"] if jobs else []
        self._start("head", head, options)

    def add(self, name: str, cpus: int, pool: str = "", host: Host = HERE) -> None:
        """Start a node, with the label `pool` if that is given; returns when it has joined."""
        options = [f"--address={self.head.address}:{self.port}", f"--num-cpus={cpus}"]
        self._start(name, host, options + ([f"--labels=pool={pool}"] if pool else []))

    def _start(self, name: str, host: Host, options: list[str]) -> None:
        command = [*host.prefix, str(BIN / "ray"), "start", "--block", "--disable-usage-stats", *options]
        command += [f"--node-ip-address={host.address}", "--object-store-memory=100000000"]
        command += [f"--dashboard-agent-listen-port={free_ports(1)[0]}"]
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
        """Class, label `pool` of the node, and id of the node, of every actor that a job has or had."""
        found = []
        for what in ("nodes", "actors"):
            command = [str(BIN / "ray"), "list", what, "--address", self.jobs, "--detail", "--format", "json"]
            done = subprocess.run(
                [*self.head.prefix, *command], env=self.env, capture_output=True, text=True, timeout=120
            )
            assert done.returncode == 0, done.stderr
            found.append(json.loads(done.stdout))
        pools = {node["node_id"]: node["labels"].get("pool", "") for node in found[0]}
        own = [a for a in found[1] if a["class_name"] != "JobSupervisor"]  # Ray's, one for each job
        return sorted((a["class_name"], pools[a["node_id"]], a["node_id"]) for a in own)

    def kill(self, name: str) -> None:
        """End a node with all its processes, without a word."""
        process = self.processes.pop(name)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)

    def close(self) -> None:
        for name in reversed(list(self.processes)):
            self.kill(name)


class Job:
    """A training as a job, with the metrics of its steps as they are logged."""

    def __init__(self, nodes: Nodes, name: str, config: Path, folder: Path, *overrides: str) -> None:
        self.nodes, self.name = nodes, name
        self.log, self.metrics = folder / f"{name}.txt", folder / "tiny" / "metrics.jsonl"
        code = folder / "code"  # a working directory without the virtual environment and runs of this checkout
        code.mkdir(exist_ok=True)
        for part in ("memr1", "rayjobs"):
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

    def survives(self, fault: Callable[[], None], seconds: float = 300) -> float:
        """Let something happen during training and wait until that goes on; seconds between the two steps around it."""
        fault()
        happened = time.time()
        known = self.steps()[-1]["step"] + 5  # what was under way may still end, and be done again
        self.until(known, seconds)
        times = [line["time"] for line in self.steps()]
        gaps = [after - before for before, after in itertools.pairwise(times) if after > happened - 1]
        return max(gaps)


def assert_undisturbed(job: Job, make_config: Callable[..., Any], folder: Path) -> None:
    """Every step is in the log once, with the loss that it has in one process where nothing happens."""
    from memr1.training.local import LocalSession
    from memr1.training.runlog import RunLog

    steps = job.steps()
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))
    alone = make_config(folder, "name=alone", "backend=local", *LONG)
    session = LocalSession(alone, RunLog(alone.run_dir), None)
    session.trainer.save = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    try:
        expected = [session.step()["learner/loss"] for _ in steps]
    finally:
        session.close()
    assert [line["learner/loss"] for line in steps] == pytest.approx(expected, rel=1e-3)


class Drive:
    """A driver on a cluster: its steps as they come."""

    def __init__(self, nodes: Nodes, config: Path, folder: Path, *overrides: str) -> None:
        self.stop = folder / "stop"
        self.log = folder / "driver.txt"
        command = [sys.executable, __file__, str(config), str(folder), *overrides]
        command = [*nodes.head.prefix, "env", f"RAY_ADDRESS={nodes.head.address}:{nodes.port}", *command]
        with self.log.open("w") as errors:
            self.process = nodes.run("driver", command, stdout=subprocess.PIPE, stderr=errors, text=True)
        self.said: list[str] = []
        self.steps: list[dict[str, Any]] = []

    def until(self, condition: Callable[[dict[str, Any]], bool], seconds: float) -> dict[str, Any]:
        """Read steps until one fulfils the condition."""
        deadline = time.monotonic() + seconds
        for step in self._read():
            if condition(step):
                return step
            assert time.monotonic() < deadline, f"not within {seconds} s; last: {step}"
        raise AssertionError(f"the driver ended: {self.log.read_text()[-3000:]}")

    def finish(self) -> int:
        """Stop it after a step; its exit code."""
        self.stop.touch()
        for _ in self._read():
            pass
        return self.process.wait(60)

    def _read(self) -> Iterator[dict[str, Any]]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                self.steps.append(json.loads(line))
                yield self.steps[-1]
            else:
                self.said.append(line.rstrip())


def drive(config_file: str, folder: str, overrides: Sequence[str]) -> None:
    """The driver."""
    from memr1.config_file import load_config
    from memr1.rllib.session import RaySession
    from memr1.training.runlog import RunLog

    config = load_config(config_file, [f"output={folder}", *overrides])
    session = RaySession(config, RunLog(config.run_dir), None)
    try:
        while not (Path(folder) / "stop").exists():
            metrics = session.step()
            pool, state, lost = session.algorithm.pool, session.trainer.state, session.algorithm.recovery.restarts
            line = {"step": state.step, "ready": pool.num_ready, "size": pool.size, "restarts": lost}
            print(json.dumps(line | {"loss": metrics["learner/loss"]}), flush=True)
    finally:
        session.close()


if __name__ == "__main__":
    drive(sys.argv[1], sys.argv[2], sys.argv[3:])
