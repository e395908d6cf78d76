"""Whole programs: Ctrl-C on `memr1 train` with Ray, and a job submitted to a real head node with token authentication.

Every process is started and ended here; everything listens on 127.0.0.1.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ray.programs import BIN, ROOT, end, free_ports, reachable, wait_until


@pytest.mark.timeout(240)
def test_ctrl_c_in_a_terminal_ends_in_a_checkpoint_and_a_report(make_config, tmp_path):
    """A terminal sends SIGINT to the whole process group, Ray's processes included."""
    make_config(tmp_path, "stages.0.steps=3")
    command = [str(BIN / "memr1"), "train", str(tmp_path / "tiny.yaml"), f"output={tmp_path}", "stages.0.steps=100000"]
    command += ["checkpoint.every_steps=100000"]
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    log = tmp_path / "log.txt"
    with log.open("w") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            wait_until(lambda: "answerer-sft 2/" in log.read_text() or process.poll() is not None, 150)
            os.killpg(process.pid, signal.SIGINT)
            code = process.wait(60)
        finally:
            end(process)
    text = log.read_text()
    assert code == 0, text
    assert "stopped; checkpoint:" in text
    last = json.loads((tmp_path / "tiny" / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert (tmp_path / "tiny" / "checkpoints" / f"step_{last:06d}" / "COMMITTED").exists()
    assert (tmp_path / "tiny" / "report.html").exists()


def test_an_address_without_a_cluster_is_told_at_once(make_config, tmp_path):
    make_config(tmp_path)
    (port,) = free_ports(1)
    done = subprocess.run(
        [str(BIN / "memr1"), "train", str(tmp_path / "tiny.yaml"), f"output={tmp_path}"],
        env=os.environ | {"RAY_ADDRESS": f"127.0.0.1:{port}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert f"memr1: RAY_ADDRESS=127.0.0.1:{port}: nothing answers there" in done.stderr


@pytest.mark.parametrize("token", ["0" * 64, None])
def test_a_wrong_or_missing_token_is_told_with_what_to_set(ray_cluster, make_config, tmp_path, token):
    make_config(tmp_path)
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")} | {"HOME": str(tmp_path)}
    env |= {"RAY_ADDRESS": ray_cluster} | ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {})
    command = [str(BIN / "memr1"), "train", str(tmp_path / "tiny.yaml"), f"output={tmp_path}"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 2, done.stderr
    assert f"memr1: RAY_ADDRESS={ray_cluster}: " in done.stderr
    assert "RAY_AUTH_MODE and RAY_AUTH_TOKEN" in done.stderr


@pytest.mark.timeout(330)
def test_submitted_jobs_train_and_evaluate_and_print_their_results(head, make_config, tmp_path):
    pytest.importorskip("aiohttp_cors", reason="the job server needs ray[default]")
    address, env = head
    make_config(tmp_path)
    (tmp_path / "code").mkdir()
    for name in ("memr1", "rayjobs"):  # a working directory without the virtual environment and runs of this checkout
        (tmp_path / "code" / name).symlink_to(ROOT / name)
    command = [str(BIN / "ray"), "job", "submit", "--address", address, "--working-dir", str(tmp_path / "code")]
    command += ["--", sys.executable, "rayjobs/train.py", str(tmp_path / "tiny.yaml")]

    stranger = dict(env, RAY_AUTH_TOKEN="0" * 64)
    wait_until(lambda: reachable(address), 120)
    refused = subprocess.run([*command, "--resume", "auto"], env=stranger, capture_output=True, text=True, timeout=400)
    assert refused.returncode != 0
    assert "authentication is enabled" in refused.stderr

    relative = subprocess.run([*command, "output=runs"], env=env, capture_output=True, text=True, timeout=400)
    assert relative.returncode != 0
    assert "output: 'runs' is relative" in relative.stdout + relative.stderr

    done = subprocess.run(
        [*command, f"output={tmp_path}", "stages.0.steps=2", "--resume", "auto"],
        env=env,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = next(json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"run_dir"'))
    assert result["run_dir"] == str(tmp_path / "tiny")
    assert result["finished"] is True
    assert result["metrics"]["step"] == 2
    assert Path(result["checkpoint"], "COMMITTED").exists()
    logged = [json.loads(line) for line in (tmp_path / "tiny" / "metrics.jsonl").read_text().splitlines()]
    assert logged[-1]["learner/loss"] == result["metrics"]["learner/loss"]

    evaluate = [*command[: command.index("--") + 1], sys.executable, "rayjobs/evaluate.py", str(tmp_path / "tiny")]
    evaluate += ["--systems", "add-everything", "evaluation.num_worlds=1"]
    done = subprocess.run(evaluate, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    result = next(json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"run_dir"'))
    (row,) = result["rows"]
    assert row["system"] == "add-everything" and row["n"] >= 6
    assert row["benchmark"] == "factworld-evaluation.num_worlds=1"  # other worlds than the run's: a table of its own
    predicted = (tmp_path / "tiny" / "predictions" / row["benchmark"] / "add-everything.jsonl").read_text().splitlines()
    assert len(predicted) == row["n"]
    assert "add-everything" in Path(result["report"]).read_text()
