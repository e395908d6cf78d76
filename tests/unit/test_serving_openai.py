"""OpenAI's routes, asked with the real `openai` package over a socket."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from memr1.memory.embed import load_embedder
from tests.unit.serving_cases import listening, make_services

openai = pytest.importorskip("openai", reason="the openai package is not installed (it is in the extra dev)")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with listening(make_services(tmp_path_factory.mktemp("openai"))) as url:
        for text in ("Mara lives in Oslo.", "Ben plays the cello."):
            body = {"text": text, "infer": False}
            assert (
                httpx.post(f"{url}/v1/banks/notes/memories", params={"user_id": "mara"}, json=body).status_code == 200
            )
        yield url


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=20) as client:
        yield client


QUESTION = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Where does Mara live?"}]


def test_a_chat_answers_from_memory_and_says_from_which(client: Any) -> None:
    reply = client.chat.completions.create(model="memr1", messages=QUESTION, user="mara")
    assert reply.choices[0].message.content == "Oslo"
    assert reply.choices[0].finish_reason == "stop" and reply.usage.total_tokens > reply.usage.completion_tokens > 0
    assert [m["text"] for m in reply.memory["selected"]] == ["Mara lives in Oslo."]
    assert len(reply.memory["retrieved"]) == 2 and reply.memory["operations"] == []
    unknown = client.chat.completions.create(model="memr1", messages=QUESTION, user="nobody")
    assert (unknown.choices[0].message.content, unknown.memory["retrieved"]) == ("unknown", [])


def test_a_stream_gives_the_same_answer_in_parts_and_usage_if_wanted(client: Any) -> None:
    chunks = list(
        client.chat.completions.create(
            model="memr1", messages=QUESTION, user="mara", stream=True, stream_options={"include_usage": True}
        )
    )
    parts = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
    assert "".join(parts) == "Oslo" and len(parts) == 4, "a byte is a token of the tiny model"
    assert chunks[0].choices[0].delta.role == "assistant"
    last = chunks[-2]
    assert last.choices[0].finish_reason == "stop"
    assert [m["text"] for m in last.memory["selected"]] == ["Mara lives in Oslo."]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0


def test_a_message_is_remembered_when_that_is_asked_for(client: Any) -> None:
    said = [{"role": "user", "content": [{"type": "text", "text": "Mara moved to Rome."}]}]
    memory = {"memory": {"user_id": "mara", "bank": "notes", "write": True}}
    reply = client.chat.completions.create(model="memr1", messages=said, extra_body=memory)
    assert [(o["event"], o["id"]) for o in reply.memory["operations"]] == [("UPDATE", "m1")]
    reply = client.chat.completions.create(model="memr1", messages=QUESTION, user="mara")
    assert reply.choices[0].message.content == "Rome"
    back = {"text": "Mara lives in Oslo."}
    at = f"{str(client.base_url).rstrip('/')}/banks/notes/memories/m1"
    assert httpx.patch(at, params={"user_id": "mara"}, json=back).status_code == 200


def test_embeddings_are_those_of_the_banks(client: Any) -> None:
    texts = ["Mara lives in Oslo.", "Ben plays the cello."]
    expected = load_embedder("hash").embed(texts)
    for form in ({}, {"encoding_format": "float"}):  # the package asks for base64 by itself
        got = client.embeddings.create(model="hash-256", input=texts, **form)
        assert [[round(x, 6) for x in d.embedding] for d in got.data] == [
            [round(float(x), 6) for x in v] for v in expected
        ]


def test_models_are_listed(client: Any) -> None:
    assert [m.id for m in client.models.list()] == ["memr1", "hash-256"]
    assert client.models.retrieve("memr1").owned_by == "memr1"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt")


def test_errors_are_what_the_package_knows(client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt", messages=QUESTION)
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    with pytest.raises(openai.UnprocessableEntityError) as empty:
        client.chat.completions.create(model="memr1", messages=[{"role": "user", "content": " "}])
    assert empty.value.type == "invalid_request_error"
    with pytest.raises(openai.UnprocessableEntityError):
        client.chat.completions.create(model="memr1", messages=QUESTION, extra_body={"memory": {"usr": "mara"}})
