"""The native API: what is done is what is said, refusals are typed, repeated requests change nothing twice."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from memr1.errors import MemR1Error
from memr1.serving import adding, jobs_worker
from tests.unit.serving_cases import error_of, local_client, make_services, sensible, serving, stop_jobs

BANK = "/v1/banks/notes"
MARA = {"user_id": "mara"}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with serving(tmp_path) as client:
        yield client


def verbatim(client: TestClient, text: str, **more: Any) -> Any:
    return client.post(f"{BANK}/memories", params=MARA, json={"text": text, "infer": False, **more})


def texts(client: TestClient) -> list[str]:
    page = client.get(f"{BANK}/memories", params=MARA).json()
    return [m["text"] for m in page["memories"]]


def test_the_manager_decides_and_the_answer_says_what_was_done(client: TestClient) -> None:
    said = [{"role": "user", "content": "Mara lives in Oslo."}, {"role": "assistant", "content": "Noted."}]
    made = client.post(f"{BANK}/memories", params=MARA, json={"messages": said, "source": "chat-1"}).json()
    (decision,) = made["decisions"]
    assert [(o["event"], o["id"], o["text"], o["ok"]) for o in decision["operations"]] == [
        ("ADD", "m1", "Mara lives in Oslo.", True)
    ]
    assert made["bank"] == {"name": "notes", "user_id": "mara", "agent_id": None, "run_id": None}
    moved = client.post(f"{BANK}/memories", params=MARA, json={"text": "Mara lives in Rome."}).json()
    assert [(o["event"], o["id"]) for o in moved["decisions"][0]["operations"]] == [("UPDATE", "m1")]
    assert texts(client) == ["Mara lives in Rome."]
    kept = client.get(f"{BANK}/memories/m1", params=MARA).json()
    assert kept["version"] == 2
    assert kept["provenance"]["model"] == "scripted" and kept["provenance"]["weight_version"] == 3
    versions = client.get(f"{BANK}/memories/m1/history", params=MARA).json()["versions"]
    assert (versions[0]["text"], versions[0]["provenance"]["turn_ids"][0]) == ("Mara lives in Oslo.", "chat-1")


def test_an_answer_names_what_it_rests_on(client: TestClient) -> None:
    for text in ("Mara lives in Oslo.", "Ben plays the cello."):
        verbatim(client, text)
    asked = {"question": "Where does Mara live?", **MARA}
    answer = client.post("/v1/answer", json=asked).json()
    assert answer["answer"] == "Oslo"
    assert [m["text"] for m in answer["selected"]] == ["Mara lives in Oslo."]
    assert [m["text"] for m in answer["retrieved"]] == ["Mara lives in Oslo.", "Ben plays the cello."]
    assert answer["selected"][0]["bank"]["user_id"] == "mara"
    assert answer["weight_version"] == 5
    assert error_of(client.post("/v1/answer", json={**asked, "user_id": "nobody"}), 404)["code"] == "not_found"


def test_a_bank_is_listed_as_it_was_at_a_time(client: TestClient) -> None:
    for day, text in (("01", "Mara lives in Oslo."), ("02", "Ben plays the cello."), ("04", "Mara lives in Rome.")):
        said = {"text": text, "time": f"2024-03-{day}T10:00:00+00:00"}
        assert client.post(f"{BANK}/memories", params=MARA, json=said).status_code == 200
    then = {
        as_of: [m["text"] for m in client.get(f"{BANK}/memories", params={**MARA, "as_of": as_of}).json()["memories"]]
        for as_of in ("2024-02-28", "2024-03-01T10:00:00Z", "2024-03-03", "2024-03-05")
    }
    assert then == {
        "2024-02-28": [],
        "2024-03-01T10:00:00Z": ["Mara lives in Oslo."],
        "2024-03-03": ["Mara lives in Oslo.", "Ben plays the cello."],
        "2024-03-05": ["Mara lives in Rome.", "Ben plays the cello."],
    }
    refused = client.get(f"{BANK}/memories", params={**MARA, "as_of": "yesterday"})
    assert error_of(refused, 422)["param"] == "query.as_of"


def test_a_dry_run_says_what_would_be_done_and_does_nothing(client: TestClient) -> None:
    for infer in (True, False):
        asked = {"text": "Mara lives in Oslo.", "dry_run": True, "infer": infer}
        shown = client.post(f"{BANK}/memories", params=MARA, json=asked).json()
        assert shown["dry_run"] and shown["decisions"][0]["operations"][0]["event"] == "ADD"
        assert client.get(BANK, params=MARA).status_code == 404, "not even the bank was made"


def test_nobody_waits_for_a_bank_that_is_dropped(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("notes", "other"):
        client.post(f"/v1/banks/{name}/memories", params=MARA, json={"text": "Mara lives in Oslo.", "infer": False})
    wiping, go = threading.Event(), threading.Event()

    def wipe() -> None:  # the database is written anew, which takes long
        wiping.set()
        go.wait(30)

    monkeypatch.setattr(client.app.state.services.banks._service._store, "wipe", wipe)  # type: ignore[attr-defined]
    answers: dict[str, int] = {}

    def ask(method: str, name: str) -> None:
        answers[f"{method} {name}"] = client.request(method, f"/v1/banks/{name}", params=MARA).status_code

    asking = [threading.Thread(target=ask, args=call) for call in (("DELETE", "notes"), ("GET", "other"))]
    asking.append(threading.Thread(target=ask, args=("GET", "notes")))
    asking[0].start()
    assert wiping.wait(20)
    for thread in asking[1:]:
        thread.start()
    for thread in asking[1:]:
        thread.join(10)
    meanwhile = dict(answers)
    go.set()
    asking[0].join(20)
    assert meanwhile == {"GET other": 200, "GET notes": 404}
    assert answers["DELETE notes"] == 204


def test_a_bank_whose_pages_could_not_be_wiped_is_gone_all_the_same(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    verbatim(client, "Mara lives in Oslo.")

    def wipe() -> None:
        raise MemR1Error("pages that were given up may still hold it; call wipe()")

    monkeypatch.setattr(client.app.state.services.banks._service._store, "wipe", wipe)  # type: ignore[attr-defined]
    assert "call wipe()" in error_of(client.delete(BANK, params=MARA), 400)["message"]
    assert client.get(BANK, params=MARA).status_code == 404
    assert verbatim(client, "Mara lives in Rome.").status_code == 200
    assert texts(client) == ["Mara lives in Rome."]


@pytest.mark.parametrize("infer", [True, False])
def test_a_repeated_request_is_done_once_and_another_under_its_key_is_refused(client: TestClient, infer: bool) -> None:
    headers = {"Idempotency-Key": "k1"}
    body = {"messages": [{"content": "Mara lives in Oslo."}, {"content": "Ben plays."}], "infer": infer}
    first = client.post(f"{BANK}/memories", params=MARA, json=body, headers=headers).json()
    second = client.post(f"{BANK}/memories", params=MARA, json=body, headers=headers).json()
    assert [d["operations"] for d in second["decisions"]] == [d["operations"] for d in first["decisions"]]
    assert all(d["replayed"] for d in second["decisions"]) and not any(d["replayed"] for d in first["decisions"])
    assert texts(client) == ["Mara lives in Oslo.", "Ben plays."]
    other = client.post(f"{BANK}/memories", params=MARA, json={**body, "source": "x"}, headers=headers)
    assert error_of(other, 409)["code"] == "idempotency_key_reused"


def test_if_match_is_compare_and_set(client: TestClient) -> None:
    verbatim(client, "Mara lives in Oslo.")
    at = f"{BANK}/memories/m1"
    assert client.get(at, params=MARA).headers["etag"] == '"1"'
    good = client.patch(at, params=MARA, json={"text": "Mara lives in Bergen."}, headers={"If-Match": '"1"'})
    assert (good.status_code, good.json()["version"], good.headers["etag"]) == (200, 2, '"2"')
    late = client.patch(at, params=MARA, json={"text": "Mara lives in Rome."}, headers={"If-Match": '"1"'})
    assert error_of(late, 412)["code"] == "version_conflict"
    assert error_of(client.delete(at, params=MARA, headers={"If-Match": "1"}), 412)["code"] == "version_conflict"
    assert error_of(client.delete(at, params=MARA, headers={"If-Match": "soon"}), 400)["param"] == "If-Match"
    assert texts(client) == ["Mara lives in Bergen."]
    only = client.patch(at, params=MARA, json={"metadata": {"mood": "glad"}}).json()
    assert (only["text"], only["metadata"], only["version"]) == ("Mara lives in Bergen.", {"mood": "glad"}, 3)


def test_deleted_memories_come_back_and_erased_ones_do_not(client: TestClient) -> None:
    verbatim(client, "Mara lives in Oslo.")
    verbatim(client, "The code is 4711.")
    client.delete(f"{BANK}/memories/m1", params=MARA)
    assert error_of(client.get(f"{BANK}/memories/m1", params=MARA), 404)["code"] == "not_found"
    shown = client.get(f"{BANK}/memories", params={**MARA, "deleted": True}).json()
    assert [(m["id"], m["status"]) for m in shown["memories"]] == [("m1", "deleted"), ("m2", "live")]
    assert client.post(f"{BANK}/rollback", params=MARA, json={"seq": 2}).json() == {"changed": ["m1"], "seq": 4}
    erased = client.post(f"{BANK}/erase", params=MARA, json={"ids": ["m2"]}).json()
    assert erased == {"entries": ["m2"], "rewritten": [2], "also_in": []}
    assert texts(client) == ["Mara lives in Oslo."]
    said = client.get(f"{BANK}/log", params=MARA).text
    assert "4711" not in said and "Oslo" in said


def test_undo_takes_back_what_came_from_one_source(client: TestClient) -> None:
    verbatim(client, "Mara lives in Oslo.", source="chat-1")
    made = verbatim(client, "Mara has a cat.", source="chat-2")
    assert client.post(f"{BANK}/undo", params=MARA, json={"source": "chat-1"}).json()["changed"] == ["m1"]
    by_request = {"source": f"request:{made.headers['x-request-id']}"}
    assert client.post(f"{BANK}/undo", params=MARA, json=by_request).json()["changed"] == ["m2"]
    assert texts(client) == []


def test_an_export_can_be_imported_and_a_cut_one_cannot(client: TestClient) -> None:
    verbatim(client, "Mara lives in Oslo.")
    exported = client.get(f"{BANK}/export", params=MARA)
    assert exported.headers["content-type"].startswith("application/jsonl")
    made = client.post("/v1/banks/copy/import", params=MARA, content=exported.content)
    assert (made.status_code, made.json()["live"], made.json()["seq"]) == (201, 1, 1)
    again = client.post("/v1/banks/copy/import", params=MARA, content=exported.content)
    assert error_of(again, 409)["code"] == "bank_exists"
    for broken in (exported.content[:-30], exported.content.replace(b"Oslo", b"Rome"), b"", b"\xff\xfe", b"{}"):
        refused = error_of(client.post("/v1/banks/broken/import", params=MARA, content=broken), 422)
        assert refused["code"] == "invalid_import" and "/tmp" not in refused["message"]
    assert client.get("/v1/banks", params=MARA).json()["banks"] == [
        {"name": n, "user_id": "mara", "agent_id": None, "run_id": None} for n in ("copy", "notes")
    ]


def test_search_finds_by_meaning_words_and_filters(client: TestClient) -> None:
    verbatim(client, "Mara lives in Oslo.", time="2024-01-01", metadata={"kind": "home"})
    verbatim(client, "Ben plays the cello.", time="2024-06-01")

    def found(**body: Any) -> list[str]:
        got = client.post(f"{BANK}/search", params=MARA, json={"query": "Mara", **body}).json()
        return [m["id"] for m in got["results"]]

    assert found() == ["m1", "m2"]
    assert found(by="words") == ["m1"]
    assert found(as_of="2024-03-01") == ["m1"]
    assert found(filters={"metadata.kind": "home"}) == ["m1"]
    wrong = client.post(f"{BANK}/search", params=MARA, json={"query": "Mara", "filters": {"colour": 1}})
    assert error_of(wrong, 400)["code"] == "invalid_request"


def test_accepted_jobs_are_done_and_say_what_was_done(client: TestClient) -> None:
    body = {"text": "Mara lives in Oslo.", "wait": False}
    headers = {"Idempotency-Key": "j1"}
    accepted = client.post(f"{BANK}/memories", params=MARA, json=body, headers=headers)
    assert accepted.status_code == 202
    job = _done(client, accepted.headers["location"])
    assert [o["event"] for d in job["decisions"] for o in d["operations"]] == ["ADD"]
    again = client.post(f"{BANK}/memories", params=MARA, json=body, headers=headers).json()
    assert (again["id"], again["state"]) == (job["id"], "done")
    other = client.post(f"{BANK}/memories", params=MARA, json={**body, "text": "x"}, headers=headers)
    assert error_of(other, 409)["code"] == "idempotency_key_reused"
    bad = client.post(f"{BANK}/memories", params=MARA, json={**body, "infer": False})
    failed = _done(client, bad.headers["location"])
    assert (failed["state"], failed["error"]["code"]) == ("failed", "duplicate_content")
    assert texts(client) == ["Mara lives in Oslo."]
    assert error_of(client.get("/v1/jobs/none"), 404)["code"] == "not_found"


def _done(client: TestClient, location: str) -> Any:
    end = time.monotonic() + 20
    while (job := client.get(location).json())["state"] in ("queued", "running"):
        assert time.monotonic() < end, job
        time.sleep(0.02)
    return job


def test_an_accepted_job_survives_a_restart_and_is_done_once(tmp_path: Path) -> None:
    stuck = True

    def script(prompt: str, request: Any) -> str:
        return "nonsense" if stuck else sensible(prompt, request)

    with serving(tmp_path, script) as client:
        stop_jobs(client)
        body = {"text": "Mara lives in Oslo.", "wait": False}
        accepted = client.post(f"{BANK}/memories", params=MARA, json=body)
        assert accepted.json()["state"] == "queued"
    stuck = False
    with serving(tmp_path, script) as client:
        assert _done(client, accepted.headers["location"])["state"] == "done"
        assert texts(client) == ["Mara lives in Oslo."]


def test_a_job_whose_doer_was_killed_is_taken_up_at_once_and_one_that_is_worked_on_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_worker, "LEASE_S", 0.4)
    monkeypatch.setattr(jobs_worker, "RENEW_S", 0.05)
    asked: list[str] = []

    def slow(prompt: str, request: Any) -> str:
        asked.append(prompt)
        time.sleep(1.5)  # longer than the lease
        return sensible(prompt, request)

    with serving(tmp_path, slow) as client:
        body = {"text": "Mara lives in Oslo.", "wait": False}
        accepted = client.post(f"{BANK}/memories", params=MARA, json=body)
        service = client.app.state.services.banks._service  # type: ignore[attr-defined]
        while not asked:
            time.sleep(0.01)
        time.sleep(0.8)
        assert service.take_job(60) is None, "it is worked on"
        assert _done(client, accepted.headers["location"])["state"] == "done" and len(asked) == 1
        stop_jobs(client)
        left = client.post(f"{BANK}/memories", params=MARA, json={**body, "text": "Ben sails."})
        while service.take_job(600) is None:  # by somebody who is killed then
            time.sleep(0.01)
    with serving(tmp_path) as client:
        assert _done(client, left.headers["location"])["state"] == "done"
        assert texts(client) == ["Mara lives in Oslo.", "Ben sails."]


def test_a_job_that_is_not_done_when_the_service_stops_is_handed_back_and_finished_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()

    async def half(services: Any, principal: Any, ref: Any, said: Any, **how: Any) -> Any:
        await adding.add(services, principal, ref, said[:1], **how)
        begun.set()
        await asyncio.Event().wait()

    services = make_services(tmp_path, timeout_s=1)
    try:
        with monkeypatch.context() as patch, local_client(services) as client:
            patch.setattr(jobs_worker, "add", half)
            said = [{"content": "Mara lives in Oslo."}, {"content": "Ben sails."}]
            accepted = client.post(f"{BANK}/memories", params=MARA, json={"messages": said, "wait": False}).json()
            assert begun.wait(20)
        taken = services.banks._service.take_job(60)  # type: ignore[attr-defined]
        assert taken is not None and taken.id == accepted["id"], "nobody has to wait for its lease to run out"
    finally:
        services.close()
    with serving(tmp_path) as client:
        assert _done(client, f"/v1/jobs/{accepted['id']}")["state"] == "done"
        assert texts(client) == ["Mara lives in Oslo.", "Ben sails."]
        assert client.get(BANK, params=MARA).json()["seq"] == 2, "what was decided before is not decided again"


def test_rejections_have_the_status_that_fits(client: TestClient) -> None:
    verbatim(client, "Mara lives in Oslo.")
    for text, status, code in (
        ("mara  LIVES in Oslo.", 409, "duplicate_content"),
        ("x" * 5000, 413, "too_long"),
        ("a\0b", 422, "invalid_text"),
        ("   ", 422, "empty_text"),
    ):
        assert error_of(verbatim(client, text), status)["code"] == code
    at = f"{BANK}/memories/m9"
    assert error_of(client.patch(at, params=MARA, json={"text": "x"}), 404)["code"] == "not_found"
    client.post("/v1/banks", params=MARA, json={"name": "small", "rules": {"max_entries": 1}})
    for status in (200, 413):
        made = client.post("/v1/banks/small/memories", params=MARA, json={"text": f"{status}", "infer": False})
        assert made.status_code == status
    assert made.json()["error"]["code"] == "bank_full"


def test_what_a_manager_garbles_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    replies = iter(["I think you should remember that", "DELETE 1\nDELETE 2\nDELETE 3\nDELETE 4", "UPDATE 7"])
    with serving(tmp_path, lambda *_: next(replies)) as client:
        for n in range(4):
            verbatim(client, f"Fact number {n}.")
        before = texts(client)
        for expected in ("unreadable", "too_many_deletes"):
            refused = error_of(client.post(f"{BANK}/memories", params=MARA, json={"text": "More."}), 422)
            assert refused["code"] == "unreadable_decision"
            assert refused["details"][0]["error"].startswith(expected)
        invented = client.post(f"{BANK}/memories", params=MARA, json={"text": "More."}).json()
        assert [(o["ok"], o["reason"]) for o in invented["decisions"][0]["operations"]] == [(False, "unknown_id")]
        assert texts(client) == before


def test_a_decision_is_made_again_when_the_bank_changed_meanwhile(tmp_path: Path) -> None:
    clients: list[TestClient] = []
    decisions = []

    def script(prompt: str, request: Any) -> str:
        decisions.append(prompt)
        if len(decisions) == 1:  # somebody else is quicker
            clients[0].patch(f"{BANK}/memories/m1", params=MARA, json={"text": "Mara lives in Bergen."})
        return "UPDATE 1"

    with serving(tmp_path, script) as client:
        clients.append(client)
        verbatim(client, "Mara lives in Oslo.")
        headers = {"Idempotency-Key": "k"}
        for replayed in (False, True):
            made = client.post(
                f"{BANK}/memories", params=MARA, json={"text": "Mara lives in Rome."}, headers=headers
            ).json()
            (decision,) = made["decisions"]
            assert decision["operations"][0]["ok"] and decision["replayed"] is replayed
        assert len(decisions) == 2 and "Bergen" in decisions[1]
        assert texts(client) == ["Mara lives in Rome."]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_json"),
        (b"[]", 422, "invalid_field"),
        (b'{"text": 7}', 422, "invalid_field"),
        (b'{"text": "x", "messages": []}', 422, "invalid_field"),
        (b'{"text": "x", "infre": true}', 422, "invalid_field"),
        (b'{"text": "\\ud800", "infer": false}', 422, None),
        (b'{"text": "x", "time": "tomorrow"}', 422, "invalid_field"),
        (b'{"text": "x", "infer": false, "metadata": {"a": NaN}}', None, None),
        (b"\xff", None, None),
    ],
)
def test_malformed_bodies_get_a_typed_error(client: TestClient, body: bytes, status: int | None, code: str) -> None:
    response = client.post(f"{BANK}/memories", params=MARA, content=body, headers={"Content-Type": "application/json"})
    assert 400 <= response.status_code < 500
    error = error_of(response, status or response.status_code)
    assert code is None or error["code"] == code
    assert client.get(BANK, params=MARA).status_code == 404, "nothing was made"


def test_unknown_routes_and_methods_answer_in_json(client: TestClient) -> None:
    assert error_of(client.get("/v1/nothing"), 404)["code"] == "not_found"
    assert error_of(client.put("/v1/banks"), 405)["code"] == "method_not_allowed"
    assert client.get("/v1/banks/").status_code == 200, "a slash at the end is no other route"


def test_a_service_without_a_model_keeps_and_searches(tmp_path: Path) -> None:
    with serving(tmp_path, None) as client:
        assert verbatim(client, "Mara lives in Oslo.").status_code == 200
        assert error_of(client.post(f"{BANK}/memories", params=MARA, json={"text": "x"}), 501)["code"] == "no_model"
        refused = client.post("/v1/answer", json={"question": "Where?", **MARA})
        assert error_of(refused, 501)["code"] == "no_model"
