"""mem0's routes: the shapes that its programs read. Its real client is tried in tests/e2e/test_mem0_client.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.unit.serving_cases import serving


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with serving(tmp_path) as client:
        yield client


def said(text: str, **whose: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **whose}


def test_the_open_source_routes_add_read_change_and_delete(client: TestClient) -> None:
    added = client.post("/memories", json=said("Mara lives in Oslo.", user_id="mara")).json()
    (event,) = added["results"]
    assert (event["event"], event["memory"]) == ("ADD", "Mara lives in Oslo.")
    at = f"/memories/{event['id']}"
    shown = client.get(at).json()
    assert (shown["memory"], shown["user_id"], shown["agent_id"]) == ("Mara lives in Oslo.", "mara", None)
    assert client.post("/memories", json=said("Mara lives in Rome.", user_id="mara")).json()["results"][0] == {
        "id": event["id"],
        "memory": "Mara lives in Rome.",
        "event": "UPDATE",
    }
    assert client.post("/memories", json=said("Mara lives in Rome.", user_id="mara")).json()["results"] == [
        {"memory": "", "event": "NONE"}
    ]
    client.put(at, json={"text": "Mara lives in Bergen."})
    history = client.get(f"{at}/history").json()
    assert [(h["event"], h["old_memory"], h["new_memory"]) for h in history] == [
        ("ADD", None, "Mara lives in Oslo."),
        ("UPDATE", "Mara lives in Oslo.", "Mara lives in Rome."),
        ("UPDATE", "Mara lives in Rome.", "Mara lives in Bergen."),
    ]
    found = client.post("/search", json={"query": "Where is Mara?", "user_id": "mara"}).json()["results"]
    assert [f["id"] for f in found] == [event["id"]] and found[0]["score"] > 0
    assert client.delete(at).status_code == 200
    assert client.get(at).json()["detail"].startswith("the memory is not there")
    assert client.get("/memories", params={"user_id": "mara"}).json() == {"results": []}


def test_what_changes_a_memory_is_counted_once_whatever_the_route(client: TestClient) -> None:
    def ask(method: str, path: str, body: Any = None) -> Any:
        return [client.request(method, path, json=body, headers={"Idempotency-Key": method}) for _ in range(2)][
            1
        ].json()

    (added,) = ask("POST", "/memories", said("Mara lives in Oslo.", user_id="mara", infer=False))["results"]
    at = f"/memories/{added['id']}"
    ask("PUT", at, {"metadata": {"topic": "home"}})
    client.put(at, json={"text": "Mara lives in Rome."})
    ask("DELETE", at)
    shown = client.get("/metrics").text
    for event, count in (("ADD", 1), ("UPDATE", 2), ("DELETE", 1)):
        assert f'memr1_operations_total{{event="{event}"}} {count}.0' in shown


def test_a_user_has_the_memories_of_every_agent_and_run(client: TestClient) -> None:
    client.post("/memories", json=said("Mara lives in Oslo.", user_id="mara"))
    client.post("/memories", json=said("Mara books trains.", user_id="mara", agent_id="travel"))
    client.post("/memories", json=said("Ben plays the cello.", user_id="ben", agent_id="travel"))

    def listed(**whose: str) -> list[str]:
        return sorted(m["memory"] for m in client.get("/memories", params=whose).json()["results"])

    assert listed(user_id="mara") == ["Mara books trains.", "Mara lives in Oslo."]
    assert listed(agent_id="travel") == ["Ben plays the cello.", "Mara books trains."]
    assert listed(user_id="mara", agent_id="travel") == ["Mara books trains."]
    assert [e["name"] for e in client.get("/v1/entities/").json()["results"]] == ["travel", "ben", "mara"]
    assert client.delete("/v1/memories/", params={"user_id": "mara"}).json()["deleted"] == 2
    assert listed(user_id="mara") == [] and len(listed(user_id="ben")) == 1


def test_filters_are_applied_or_refused_and_never_ignored(client: TestClient) -> None:
    for text, metadata in (("Mara lives in Oslo.", {"topic": "home"}), ("Mara has a cat.", {"topic": "pet"})):
        body = said(text, user_id="mara", infer=False, metadata=metadata)
        assert client.post("/v3/memories/add/", json=body).status_code == 200

    def found(filters: Any) -> Any:
        return client.post("/v3/memories/search/", json={"query": "Mara", "filters": filters})

    both = {"AND": [{"user_id": "mara"}, {"metadata": {"topic": "pet"}}]}
    assert [m["memory"] for m in found(both).json()["results"]] == ["Mara has a cat."]
    # a name twice in AND is two conditions
    past, later = {"created_at": {"gte": "2020-01-01"}}, {"created_at": {"gte": "2100-01-01"}}
    for bounds, count in (([past], 2), ([past, later], 0), ([later, past], 0)):
        assert len(found({"AND": [{"user_id": "mara"}, *bounds]}).json()["results"]) == count
    topics = [{"metadata": {"topic": topic}} for topic in ("pet", "home")]
    assert found({"AND": [{"user_id": "mara"}, *topics]}).json()["results"] == []
    page = client.post(
        "/v3/memories/", json={"filters": {"user_id": "mara"}}, params={"page": 2, "page_size": 1}
    ).json()
    assert (page["count"], page["next"]) == (2, None) and page["previous"] is not None
    assert [m["memory"] for m in page["results"]] == ["Mara has a cat."]
    for wrong in ({"OR": [{"user_id": "mara"}]}, {"categories": ["x"]}, {"user_id": 7}, {"user_id": ""}):
        refused = found(wrong)
        assert refused.status_code == 422 and set(refused.json()) == {"detail", "code", "request_id"}
    assert client.request("DELETE", "/memories").status_code == 422, "nobody deletes everybody's by leaving a name out"
