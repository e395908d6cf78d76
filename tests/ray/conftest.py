"""One local Ray cluster for all tests of this folder. (No `__init__.py` here: the folder is not the package ray.)"""

from __future__ import annotations

import os
import secrets
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from memr1.config import Config
from memr1.config_file import load_config
from tests.ray.nodes import Nodes
from tests.ray.programs import BIN, end, free_ports

START_ATTEMPTS = 3
NUM_CPUS = 2

TINY = """
name: tiny
model: {name: tiny-random, threads: 1}
memory: {embedder: hash, answerer_top_k: 4, manager_top_k: 3}
data: {factworld: {num_worlds: 2}}
rollout: {prompts_per_step: 4, group_size: 2, answer_max_new_tokens: 32, max_prompt_tokens: 512}
evaluation: {at_end: false}
checkpoint: {every_steps: 1}
stages:
  - {role: answerer, objective: sft, steps: 4, examples_per_step: 4, learning_rate: 1e-3}
"""


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """Address of a cluster with 2 CPUs that this process is connected to; stopped when the session ends.

    A busy machine can miss the deadline of Ray's start-up check, so the start is tried up to three times.
    """
    import ray

    if ray.is_initialized():  # a test file connected by itself: use that cluster and leave it running
        yield ray.get_runtime_context().gcs_address
        return
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            # "local" starts a cluster of our own even where RAY_ADDRESS names another
            ray.init(address="local", num_cpus=NUM_CPUS, include_dashboard=False, log_to_driver=False)
            break
        except Exception as e:
            ray.shutdown()
            if attempt == START_ATTEMPTS:
                raise
            warnings.warn(f"Ray did not start (attempt {attempt} of {START_ATTEMPTS}): {e}", stacklevel=1)
            time.sleep(5 * attempt)
    try:
        yield ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()


@pytest.fixture(scope="session")
def make_config(tiny_random: Path) -> Callable[..., Config]:
    """(folder, *overrides) -> a configuration that trains the random model in seconds."""

    def make(folder: Path, *overrides: str) -> Config:
        path = folder / "tiny.yaml"
        path.write_text(TINY)
        return load_config(path, [f"output={folder}", *overrides])

    return make


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    """A cluster of a head without CPUs, for jobs; the test adds nodes to it."""
    pytest.importorskip("aiohttp_cors", reason="the job server needs ray[default]")
    with closing(Nodes(tmp_path)) as made:
        yield made


@pytest.fixture
def head(tmp_path) -> Iterator[tuple[str, dict[str, str]]]:
    """A head node of its own with dashboard and a token: its job address and the environment to reach it."""
    port, dashboard, agent, client = free_ports(4)
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") or k.startswith("RAY_SERVE_")}
    env |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_agent_register_timeout_ms": "120000",
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
    }
    command = [str(BIN / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}"]
    command += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    command += [f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}", "--num-cpus=2"]
    command += ["--object-store-memory=200000000", "--disable-usage-stats"]
    log = tmp_path / "head.txt"
    with log.open("w") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            yield f"http://127.0.0.1:{dashboard}", env
        finally:
            end(process)
