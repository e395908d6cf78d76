"""The submit helper against a real head node with token authentication."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from memr1.training.folders import owned
from tests.ray.programs import BIN, ROOT, end, reachable, wait_until

SUBMIT = [sys.executable, str(ROOT / "rayjobs" / "submit.py")]


@pytest.mark.timeout(600)
def test_submit_attaches_follows_and_returns_the_exit_code_of_the_job(head, make_config, tmp_path):
    pytest.importorskip("aiohttp_cors", reason="the job server needs ray[default]")
    address, env = head
    make_config(tmp_path)
    runtime_env = tmp_path / "runtime_env.yaml"
    (tmp_path / "code").mkdir()
    for name in ("memr1", "rayjobs"):
        (tmp_path / "code" / name).symlink_to(ROOT / name)
    runtime_env.write_text(f"working_dir: {tmp_path / 'code'}\n")
    base = [*SUBMIT, "--address", address, "--runtime-env", str(runtime_env)]
    wait_until(lambda: reachable(address), 120)

    def run(*arguments: str, **changed: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*base, *arguments], env=env | changed, capture_output=True, text=True, timeout=400)

    stranger = run("--", "true", RAY_AUTH_TOKEN="0" * 64)
    assert stranger.returncode == 2
    assert f"memr1: {address}: the cluster wants another token" in stranger.stderr

    # the job ends when the file is there: the second program meets it alive
    wait = f"echo begun; while [ ! -e {tmp_path}/go ]; do sleep 0.1; done; echo ended; exit 3"
    job = ("--id", "one", "--", "sh", "-c", wait)
    first = subprocess.Popen([*base, *job], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None and "begun\n" in iter(first.stdout.readline, "")
        second = subprocess.Popen([*base, *job], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            assert second.stderr is not None and "attached to one, which is running" in next(
                line for line in second.stderr if "one" in line
            )
            (tmp_path / "go").touch()
            said = second.communicate(timeout=60)[0]
        finally:
            end(second)
        rest = first.communicate(timeout=60)[0]
    finally:
        end(first)
    assert (first.returncode, second.returncode) == (3, 3)
    # Ray's own lines about the job come before and between
    assert rest.startswith("ended\n") and said.index("begun\n") < said.index("\nended\n")
    result = json.loads(rest.splitlines()[-1])
    assert (result["id"], result["status"]) == ("one", "FAILED")

    again = run(*job)  # it has ended: a new attempt, and what it left behind is there at once
    assert again.returncode == 3 and "submitted one.2" in again.stderr

    waits = run("--id", "gpu", "--num-gpus", "1", "--no-wait", "--", "true")  # Ray itself says nothing
    assert waits.returncode == 0, waits.stderr
    assert f"{address}: --num-gpus is 1 and no node has more than 0; gpu waits until one joins" in waits.stderr
    subprocess.run([BIN / "ray", "job", "stop", "--no-wait", "--address", address, "gpu"], env=env, timeout=60)

    # a run folder that another program holds
    train = (
        "--id",
        "train",
        "--",
        sys.executable,
        "rayjobs/train.py",
        str(tmp_path / "tiny.yaml"),
        f"output={tmp_path}",
    )
    with owned(tmp_path / "tiny"):
        refused = run(*train, "stages.0.steps=1", "--resume", "auto")
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "trains here; wait for it or stop it" in refused.stdout
    began = time.time()
    done = run(*train, "stages.0.steps=1", "--resume", "auto")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "submitted train.2" in done.stderr
    assert (Path(tmp_path) / "tiny" / "checkpoints" / "step_000001" / "COMMITTED").stat().st_mtime >= began - 1

    # preemption, as `ray job stop` and a pod's end announce it: SIGTERM, and a grace
    again = (
        "rayjobs/train.py",
        str(tmp_path / "tiny.yaml"),
        f"output={tmp_path}",
        "name=long",
        "stages.0.steps=100000",
    )
    sent = run("--id", "long", "--no-wait", "--", sys.executable, *again, "checkpoint.every_steps=100000")
    assert sent.returncode == 0, sent.stderr
    log = tmp_path / "long" / "metrics.jsonl"
    wait_until(lambda: log.exists() and log.read_text().count("\n") >= 2, 150)
    stop = [str(BIN / "ray"), "job", "stop", "--address", address, "long"]
    stopped = subprocess.run(stop, env=env, capture_output=True, text=True, timeout=120)
    assert stopped.returncode == 0, stopped.stderr
    last = json.loads(log.read_text().splitlines()[-1])["step"]
    assert (tmp_path / "long" / "checkpoints" / f"step_{last:06d}" / "COMMITTED").exists()
    assert (tmp_path / "long" / "report.html").exists()
