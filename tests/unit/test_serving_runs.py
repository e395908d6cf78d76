"""Training runs over HTTP: what a run wrote is what is shown, to whom it concerns and nobody else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from memr1.errors import MemR1Error
from memr1.serving.keys import KeyFile
from memr1.serving.settings import ServingConfig
from memr1.training.runlog import read_metrics
from tests.unit.serving_cases import bearer, error_of, serving
from tests.unit.synthetic_run import START, write_run

ROUTES = ("", "/first", "/first/metrics?name=reward/mean", "/first/rollouts/13")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    assert write_run(folder / "first") == 52
    (folder / "empty").mkdir()
    (folder / "loose.jsonl").write_text("{}")
    return folder


@pytest.fixture
def client(tmp_path: Path, runs: Path) -> Iterator[TestClient]:
    with serving(tmp_path, None, runs=str(runs)) as client:
        yield client


def test_folders_with_metrics_are_runs(client: TestClient) -> None:
    (run,) = client.get("/v1/runs").json()["runs"]
    assert (run["name"], run["model"], run["steps"], run["stage"]) == ("first", "smollm2-135m", 52, "manager-grpo")
    assert run["updated"] == START + 12 * 52
    info = client.get("/v1/runs/first").json()
    assert info["stages"] == [
        {"stage": "answerer-sft", "first": 1, "last": 12},
        {"stage": "answerer-grpo", "first": 13, "last": 36},
        {"stage": "manager-grpo", "first": 37, "last": 52},
    ]
    assert info["rollouts"] == [13, 52] and info["info"]["seed"] == 0
    assert "reward/mean" in info["metrics"] and not {"step", "time", "stage"} & set(info["metrics"])


def test_a_curve_has_a_value_for_every_step(client: TestClient, runs: Path) -> None:
    curves = client.get("/v1/runs/first/metrics", params={"name": ["reward/mean", "learner/loss"]}).json()
    lines = read_metrics(runs / "first")
    assert curves["steps"] == list(range(1, 53))
    assert curves["values"] == {n: [line.get(n) for line in lines] for n in ("reward/mean", "learner/loss")}
    assert curves["values"]["reward/mean"][:12] == [None] * 12 and curves["values"]["learner/loss"][12] is None
    error = error_of(client.get("/v1/runs/first/metrics", params={"name": "no/such"}), 404)
    assert "no/such" in error["message"]


def test_rollouts_come_in_pages_and_keep_their_place_when_filtered(client: TestClient) -> None:
    page = client.get("/v1/runs/first/rollouts/13").json()
    assert page["total"] == 2 and [r["advantage"] for r in page["rollouts"]] == [0.7, -0.7]
    assert page["rollouts"][0]["steps"][0]["completion_text"] == "0\n**Answer:** Rome"
    second = client.get("/v1/runs/first/rollouts/13", params={"offset": 1, "limit": 1}).json()
    assert second["rollouts"] == page["rollouts"][1:]
    bad = client.get("/v1/runs/first/rollouts/13", params={"filter": "reward<0.5"}).json()
    assert [r["index"] for r in bad["rollouts"]] == [1] and bad["total"] == 1
    assert (
        "compare with a number"
        in error_of(client.get("/v1/runs/first/rollouts/13", params={"filter": "reward<much"}), 400)["message"]
    )


@pytest.mark.parametrize("path", ["gone", "empty", "loose.jsonl", "..", "%2e%2e", "..%2Ffirst", "first%2F..%2Ffirst"])
def test_what_is_no_run_is_not_there(client: TestClient, path: str) -> None:
    assert client.get(f"/v1/runs/{path}/metrics", params={"name": "reward/mean"}).status_code == 404
    assert client.get("/v1/runs/first/rollouts/14").status_code == 404


def test_a_step_that_is_being_written_is_shown_up_to_its_last_whole_line(client: TestClient, runs: Path) -> None:
    path = runs / "first" / "metrics.jsonl"
    whole = path.read_bytes()
    try:
        path.write_bytes(whole + b'{"step": 53, "stage": "mana')
        assert client.get("/v1/runs").json()["runs"][0]["steps"] == 52
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize(
    "line",
    [
        "no json at all",
        '{"reward/mean": 1}',
        "[]",
        '{"step": "x", "reward/mean": 1}',
        '{"step": 1, "stage": "a", "reward/mean": NaN}',
    ],
)
def test_a_damaged_run_hides_no_other_and_tells_nobody_where_it_is(
    client: TestClient, runs: Path, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = runs / "damaged"
    damaged.mkdir()
    try:
        (damaged / "metrics.jsonl").write_text(f"{line}\n{line}\n")
        listed = client.get("/v1/runs")
        assert listed.status_code == 200 and "first" in [run["name"] for run in listed.json()["runs"]]
        for route in ("", "/metrics?name=reward/mean"):
            error = error_of(client.get(f"/v1/runs/damaged{route}"), 500)
            assert error["code"] == "damaged_run" and str(runs) not in error["message"]
        assert str(damaged) in caplog.text
    finally:
        shutil.rmtree(damaged)


def test_only_admins_of_the_tenant_that_owns_them_see_runs(tmp_path: Path, runs: Path) -> None:
    file = KeyFile(tmp_path / "keys.json", create=True)
    owner, _ = file.create("owner", tenant="lab", right="admin")
    strangers = {
        "another tenant": file.create("other", tenant="shop", right="admin")[0],
        "one user of the tenant": file.create("user", tenant="lab", user_id="mara", right="admin")[0],
    }
    writer, _ = file.create("writer", tenant="lab", right="write")
    with serving(tmp_path, None, file, runs=str(runs), runs_tenant="lab") as client:
        for route in ROUTES:
            assert client.get(f"/v1/runs{route}", headers=bearer(owner)).status_code == 200
            assert client.get(f"/v1/runs{route}").status_code == 401
            assert error_of(client.get(f"/v1/runs{route}", headers=bearer(writer)), 403)["code"] == "forbidden"
            for whose, key in strangers.items():
                told = error_of(client.get(f"/v1/runs{route}", headers=bearer(key)), 404)
                assert told["code"] == "no_runs", whose


def test_a_service_without_runs_says_so_in_the_words_that_strangers_hear(tmp_path: Path) -> None:
    with serving(tmp_path, None) as client:
        for route in ROUTES:
            assert error_of(client.get(f"/v1/runs{route}"), 404)["code"] == "no_runs"
    with pytest.raises(MemR1Error, match=r"serving\.runs: .*gone: no such folder"):
        ServingConfig(runs=str(tmp_path / "gone"))


def test_every_rollout_of_a_run_fits_the_schema(client: TestClient, runs: Path) -> None:
    for step in (13, 52):
        lines = (runs / "first" / "rollouts" / f"step_{step:06d}.jsonl").read_text().splitlines()
        shown = client.get(f"/v1/runs/first/rollouts/{step}").json()["rollouts"]
        assert [{k: v for k, v in r.items() if k != "index"} for r in shown] == [json.loads(line) for line in lines]
