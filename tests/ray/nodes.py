"""Clusters of several nodes on one machine: every node is a `ray start` of its own that can be killed.

`python tests/ray/nodes.py CONFIG FOLDER OVERRIDES...` is the driver of a run on such a cluster: it prints a line of
JSON for every step, and ends when a file `stop` is in the folder.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.ray.programs import BIN, ROOT, end, free_ports, wait_until

START_ATTEMPTS = 3
"""A busy machine misses the deadline of Ray's start-up now and then."""


class Nodes:
    """A cluster with a token. `prefix` runs a node's commands elsewhere, for example in a network namespace."""

    def __init__(self, folder: Path, address: str = "127.0.0.1", prefix: Sequence[str] = ()) -> None:
        self.folder, self.address, self.prefix = folder, address, list(prefix)
        self.port, *ports = free_ports(3)
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        self.env |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_agent_register_timeout_ms": "120000",
            "RAY_health_check_initial_delay_ms": "2000",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "5",
            "PYTHONPATH": str(ROOT),
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        options = ["--head", f"--port={self.port}", f"--node-ip-address={address}", "--num-cpus=0"]
        options += ["--include-dashboard=false", f"--ray-client-server-port={ports[0]}"]
        self._start("head", self.prefix, options)

    def add(self, name: str, cpus: int, pool: str = "", address: str = "", prefix: Sequence[str] = ()) -> None:
        """Start a node, with the label `pool` if that is given; returns when it has joined."""
        options = [f"--address={self.address}:{self.port}", f"--num-cpus={cpus}"]
        options += [f"--node-ip-address={address or self.address}"] + ([f"--labels=pool={pool}"] if pool else [])
        self._start(name, list(prefix), options)

    def _start(self, name: str, prefix: list[str], options: list[str]) -> None:
        command = [*prefix, str(BIN / "ray"), "start", "--block", "--disable-usage-stats", *options]
        command += ["--object-store-memory=100000000", f"--dashboard-agent-listen-port={free_ports(1)[0]}"]
        log = self.folder / f"{name}.txt"
        for attempt in range(START_ATTEMPTS):
            with log.open("wb") as out:
                process = self.processes[name] = subprocess.Popen(
                    command, env=self.env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
                )
            wait_until(lambda p=process: "Ray runtime started" in log.read_text() or p.poll() is not None, 120)
            if process.poll() is None:
                return
            time.sleep(2 * attempt)
        raise AssertionError(f"node {name} did not start: {log.read_text()[-2000:]}")

    def kill(self, name: str) -> None:
        """End a node with all its processes, without a word."""
        process = self.processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)

    def close(self) -> None:
        for process in reversed(list(self.processes.values())):
            end(process)


class Run:
    """A driver on a cluster: its steps as they come."""

    def __init__(self, nodes: Nodes, config: Path, folder: Path, *overrides: str) -> None:
        self.stop = folder / "stop"
        self.log = folder / "driver.txt"
        command = [*nodes.prefix, sys.executable, __file__, str(config), str(folder), *overrides]
        env = nodes.env | {"RAY_ADDRESS": f"{nodes.address}:{nodes.port}"}
        with self.log.open("w") as errors:
            self.process = subprocess.Popen(
                command, env=env, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
            )
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
            pool, state = session.algorithm.pool, session.trainer.state
            line = {"step": state.step, "ready": pool.num_ready, "size": pool.size, "restarts": session.restarts}
            print(json.dumps(line | {"loss": metrics["learner/loss"]}), flush=True)
    finally:
        session.close()


if __name__ == "__main__":
    drive(sys.argv[1], sys.argv[2], sys.argv[3:])
