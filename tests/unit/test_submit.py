"""The submit helper without a cluster: what it would submit, and what it refuses."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from urllib.parse import parse_qs, urlsplit

import pytest

from memr1.errors import MemR1Error
from memr1.training.folders import owned

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def submit(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "rayjobs"))
    monkeypatch.chdir(ROOT)
    import submit

    return submit


def dry_run(submit: ModuleType, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert submit.main(["--dry-run", *arguments]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_one_command_has_one_id_and_another_command_another(submit, capsys):
    train = ("--", "rayjobs/train.py", "configs/train_local.yaml", "--resume", "auto")
    first, again = dry_run(submit, capsys, *train), dry_run(submit, capsys, *train)
    assert first["id"] == again["id"]
    assert first["entrypoint"] == "python rayjobs/train.py configs/train_local.yaml --resume auto"
    assert dry_run(submit, capsys, *train, "seed=2")["id"] != first["id"]
    assert dry_run(submit, capsys, "--id", "nightly", *train)["id"] == "nightly"


def test_only_allowed_variables_travel_and_never_a_secret(submit):
    here = {
        "NCCL_DEBUG": "INFO",
        "MEMR1_CACHE": "/c",
        "MEMR1_API_KEY": "k",
        "PATH": "/bin",
        "AWS_SECRET_ACCESS_KEY": "s",
    }
    assert submit.job_environment(here, []) == {"NCCL_DEBUG": "INFO", "MEMR1_CACHE": "/c"}
    assert submit.job_environment({}, ["A=1=2"]) == {"A": "1=2"}
    with pytest.raises(MemR1Error, match="AWS_SECRET_ACCESS_KEY: looks like a secret"):
        submit.job_environment(here, ["AWS_SECRET_ACCESS_KEY"])
    with pytest.raises(MemR1Error, match="--env HOME2: is not set here"):
        submit.job_environment(here, ["HOME2"])


def test_a_working_directory_too_large_is_refused_with_what_is_largest(submit, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "big.bin").write_bytes(b"x" * 3 * 2**20)
    (tmp_path / "small.py").write_bytes(b"x" * 1000)
    with pytest.raises(MemR1Error, match=r"has 3\.0 MiB and the limit is 2; largest: data \(3\.0 MiB\), small\.py"):
        submit.check_size(tmp_path, [], 2)
    (tmp_path / ".rayignore").write_text("data/\n")
    assert submit.check_size(tmp_path, [], 2) == 1000 + len("data/\n")


def test_this_checkout_ships_its_code_and_not_its_tests(submit):
    assert 0.2 * 2**20 < submit.check_size(ROOT, [], 50) < 5 * 2**20


def test_a_script_that_is_not_there_is_told_before_anything_is_sent(submit, capsys):
    assert submit.main(["--dry-run", "--", "rayjobs/trian.py"]) == 2
    assert "rayjobs/trian.py: no such file in the working directory" in capsys.readouterr().err


def test_no_cluster_at_the_address_is_told(submit, capsys):
    assert submit.main(["--address", "http://127.0.0.1:9", "--", "rayjobs/train.py", "x.yaml"]) == 2
    assert "http://127.0.0.1:9: no job server there" in capsys.readouterr().err


@pytest.fixture
def state_api() -> Iterator[Callable[[int, list[dict[str, object]]], str]]:
    """(status, nodes) -> address of a server that answers as Ray's state API does, with as many as are asked for."""
    with ExitStack() as stack:

        def serve(status: int, nodes: list[dict[str, object]]) -> str:
            class Handler(BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    url = urlsplit(self.path)
                    version = url.path == "/api/version"
                    said: dict[str, object] = {"ray_version": "2.60.0"}
                    if not version:
                        shown = nodes[: int(parse_qs(url.query)["limit"][0])]
                        counts = {"total": len(nodes), "num_after_truncation": len(nodes), "num_filtered": len(nodes)}
                        said = {"result": True, "data": {"result": {"result": shown, **counts}}}
                    self.send_response(200 if version else status)
                    self.send_header("Content-Type", "application/json" if version or status == 200 else "text/plain")
                    self.end_headers()
                    self.wfile.write(json.dumps(said).encode())

                def log_message(self, *arguments: object) -> None: ...

            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_address[1]}"

        yield serve


def test_the_gpus_of_every_node_count_and_a_cluster_that_does_not_say_is_not_an_error(submit, state_api):
    def node(gpus: float, state: str = "ALIVE") -> dict[str, object]:
        total = {"CPU": 8.0} | ({"GPU": gpus} if gpus else {})
        names = {"node_id": "a", "node_ip": "10.0.0.1", "node_name": "a", "is_head_node": False, "state_message": None}
        return {**names, "labels": {}, "state": state, "resources_total": total}

    assert submit.most_gpus(state_api(200, [*[node(0)] * 150, node(4), node(8, "DEAD")])) == 4
    assert submit.most_gpus(state_api(200, [node(0)])) == 0
    assert submit.most_gpus(state_api(500, [])) is None
    assert submit.most_gpus("http://127.0.0.1:9") is None


def test_a_damaged_runtime_environment_is_named(submit, tmp_path):
    path = tmp_path / "env.yaml"
    path.write_text("working_dir: /nowhere/at/all")
    with pytest.raises(MemR1Error, match="working_dir: name a folder that exists"):
        submit.load_runtime_env(path)
    path.write_text(f"working_dir: {tmp_path}\nenv_vars: [1]")
    with pytest.raises(MemR1Error, match="no runtime environment of Ray"):
        submit.load_runtime_env(path)


def test_attempts_of_one_submission_are_told_from_other_jobs(submit):
    assert [submit.attempt(i, "a") for i in ("a", "a.2", "a.12", "a.b", "ab", "a.2.3")] == [1, 2, 12, 0, 0, 0]


def test_two_programs_on_one_run_folder_are_refused_by_the_first_ones_name(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMR1_JOB", "nightly")
    with owned(tmp_path / "run"):
        said = rf"run/run: nightly \(process {os.getpid()} on .*\) trains here"
        with pytest.raises(MemR1Error, match=said), owned(tmp_path / "run"):
            pass
    with owned(tmp_path / "run"):
        pass


def test_the_job_that_builds_data_prints_its_report_and_refuses_a_folder_that_ray_deletes(
    submit, monkeypatch, capsys, tmp_path
):
    import build_data

    config = tmp_path / "c.yaml"
    config.write_text(
        "memory: {embedder: hash}\ndata: {factworld: {num_worlds: 1}}\nmodel: {name: tiny-random}\n"
        "stages: [{role: answerer, objective: grpo, steps: 1}]\n"
    )
    assert build_data.main([str(config), f"data.cache={tmp_path / 'tasks'}"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["cache"] == str(tmp_path / "tasks")
    assert set(result["report"]) == {"dialogues", "answerer, bank: oracle"}
    (tmp_path / "runtime_resources").mkdir()
    monkeypatch.chdir(tmp_path / "runtime_resources")
    assert build_data.main([str(config), "data.cache=tasks"]) == 2
    assert "data.cache: 'tasks' is relative" in capsys.readouterr().err


def test_an_evaluation_as_a_job_takes_every_option_of_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from typer.main import get_command

    from memr1.cli import app

    monkeypatch.syspath_prepend(str(ROOT / "rayjobs"))
    import evaluate

    with pytest.raises(SystemExit):
        evaluate.main(["--help"])
    told = capsys.readouterr().out
    command = get_command(app).commands["eval"]  # type: ignore[attr-defined]
    wanted = {o for p in command.params for o in p.opts if o.startswith("--")} - {"--set", "--list-systems", "--help"}
    assert {"--judge", "--audit", "--systems"} <= wanted
    assert all(option in told for option in wanted), "overrides are arguments there"
