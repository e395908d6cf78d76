"""The shared cluster itself: its size, and that other programs reach it with the token and not without."""

from __future__ import annotations

import os
import subprocess
import sys

CONNECT = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); print(ray.cluster_resources()['CPU'])"


def connect(address: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CONNECT, address]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


def test_cluster_has_two_cpus_and_runs_tasks_in_another_process(ray_cluster):
    import ray

    assert ray.cluster_resources()["CPU"] == 2
    assert ray.get(ray.remote(lambda: os.getpid()).remote()) != os.getpid()


def test_another_program_joins_with_the_inherited_token_only(ray_cluster, tmp_path):
    joined = connect(ray_cluster, dict(os.environ))
    assert joined.stdout.strip() == "2.0", joined.stderr
    # an empty home: no token file of the user's that would stand in for the variable
    stranger = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH_TOKEN")} | {"HOME": str(tmp_path)}
    refused = connect(ray_cluster, stranger)
    assert refused.returncode != 0
    assert "token" in refused.stderr.lower()
