"""The OpenAPI page: what it shows as requests is accepted, what it shows as replies is what comes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from starlette.testclient import TestClient

from memr1.memory.scopes import Scope
from memr1.serving.refs import BankRef
from tests.unit.serving_cases import serving

DOCS = Path(__file__).parents[2] / "docs" / "serving.md"
MARA = {"user_id": "mara"}
JSON = "application/json"
Operation = tuple[str, str, dict[str, Any]]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(tmp_path_factory.mktemp("page")) as client:
        yield client


@pytest.fixture(scope="module")
def page(client: TestClient) -> dict[str, Any]:
    shown: dict[str, Any] = client.get("/openapi.json").json()
    return shown


def operations(page: dict[str, Any]) -> list[Operation]:
    return [(m.upper(), p, o) for p, methods in page["paths"].items() for m, o in methods.items()]


def example_of(schema: dict[str, Any], page: dict[str, Any]) -> Any:
    """An object from the examples of its fields; those that may be left out and have none are left out."""
    if "$ref" in schema:
        schema = page["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    if "examples" in schema:
        return schema["examples"][0]
    assert "properties" in schema, f"no example: {schema}"
    wanted = {n: p for n, p in schema["properties"].items() if "examples" in p or n in schema.get("required", ())}
    return {name: example_of(part, page) for name, part in wanted.items()}


def body_of(operation: dict[str, Any], page: dict[str, Any]) -> Any:
    """The example of a request's body; None for one without a body in JSON."""
    content = operation.get("requestBody", {}).get("content", {})
    return example_of(content[JSON]["schema"], page) if JSON in content else None


def ask(client: TestClient, method: str, path: str, body: Any) -> Any:
    """What a service answers in which three things are known of Mara, in two banks."""
    said = {"messages": [{"content": text} for text in ("Ben plays the cello.", "Ada paints.", "Eve sails.")]}
    for bank in ("notes", "memories"):
        client.delete(f"/v1/banks/{bank}", params=MARA)  # what was asked before may have changed it
        if path != "/v1/banks":  # whose example makes the bank
            at, known = f"/v1/banks/{bank}/memories", {**said, "infer": False, "source": "chat-17"}
            assert client.post(at, params=MARA, json=known).status_code == 200
    memory = "m1" if "{bank}" in path else BankRef(Scope(user_id="mara")).memory_id("m1")
    named = {"bank": "notes", "memory_id": memory, "kind": "user", "name": "mara", "model": "memr1"}
    params = MARA if "{bank}" in path or method in ("GET", "DELETE") else None
    if path == "/v1/embeddings":
        body = {**body, "model": "hash-256"}  # the embedder of this service
    return client.request(method, path.format(**named), params=params, json=body)


def test_every_operation_has_a_summary(page: dict[str, Any]) -> None:
    assert len(operations(page)) >= 40
    assert [f"{method} {path}" for method, path, o in operations(page) if not o.get("summary")] == []


def test_every_request_that_is_shown_is_accepted(page: dict[str, Any], client: TestClient) -> None:
    asked = [(method, path, body) for method, path, o in operations(page) if (body := body_of(o, page)) is not None]
    assert len(asked) >= 16
    for method, path, body in asked:
        reply = ask(client, method, path, body)
        assert reply.status_code in (200, 201), f"{method} {path} {body}: {reply.text}"


def test_every_reply_that_is_shown_is_what_comes(page: dict[str, Any], client: TestClient) -> None:
    shown = 0
    for method, path, operation in operations(page):
        if operation["tags"][0] in ("mem0", "openai"):
            reply = ask(client, method, path, body_of(operation, page))
            example = operation["responses"]["200"]["content"][JSON]["example"]
            assert different(example, reply.json()) == [], f"{method} {path}"
            shown += 1
    assert shown == 23


def different(one: Any, other: Any, at: str = "") -> list[str]:
    """Where an example has other fields or types than what came, of lists as their first elements tell. The page shows
    no null, so what came as null may be missing in the example."""
    if type(one) is not type(other):
        return [f"{at}: {one!r} and {other!r}"]
    if isinstance(one, dict):
        missing = [f"{at}.{name}" for name in one.keys() ^ other.keys() if other.get(name, "") is not None]
        both = [name for name in one.keys() & other.keys() if other[name] is not None]
        return missing + [found for name in both for found in different(one[name], other[name], f"{at}.{name}")]
    if isinstance(one, list) and one and other:
        return different(one[0], other[0], f"{at}.0")
    return []


def test_every_example_fits_its_own_schema(page: dict[str, Any]) -> None:
    def examples(node: Any) -> Iterator[tuple[dict[str, Any], Any]]:
        if isinstance(node, dict):
            if isinstance(node.get("examples"), list):
                yield from ((node, value) for value in node["examples"])
            node = list(node.values())
        if isinstance(node, list):
            for part in node:
                yield from examples(part)

    found = list(examples(page))
    assert len(found) >= 40
    for schema, value in found:
        where = schema.get("schema", schema)  # of a parameter
        jsonschema.Draft202012Validator({**where, "components": page["components"]}).validate(value)


def test_the_guide_names_every_route_of_other_clients_and_no_other(page: dict[str, Any]) -> None:
    rows = [line for line in DOCS.read_text().splitlines() if line.startswith(("| mem0's", "| OpenAI"))]
    assert len(rows) == 6
    named = set()
    for row in rows:
        for cell in row.split("|")[2].split(";"):
            words = re.findall(r"`([^`]+)`", cell)
            methods = [word for words_ in words for word in words_.split() if word.isupper()]
            paths = [word for words_ in words for word in words_.split() if word.startswith("/")]
            named |= {(method, path) for method in methods for path in paths}
    served = {
        (method, path.replace("memory_id", "id"))
        for method, path, o in operations(page)
        if o["tags"][0] in ("mem0", "openai")
    }
    assert named == served
