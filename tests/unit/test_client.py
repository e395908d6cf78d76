"""`from memr1 import Memory`: the same calls mean the same in this process and of a service."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memr1 import AsyncMemory, Memory
from memr1.client import MemoryRefused
from memr1.errors import MemR1Error
from memr1.memory.embed import load_embedder
from memr1.memory.scopes import Scope
from memr1.memory.store import BankStore
from tests.unit.serving_cases import listening, make_services


@pytest.fixture(params=["embedded", "service"])
def memory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Memory]:
    if request.param == "embedded":
        with Memory(str(tmp_path / "memory.db"), embedder="hash") as memory:
            yield memory
        return
    with listening(make_services(tmp_path, None)) as url, Memory(url) as memory:
        yield memory


def test_the_calls_do_what_they_say(memory: Memory) -> None:
    mara = {"user_id": "mara"}
    for text in ("Mara lives in Oslo.", "Ben plays the cello."):
        memory.add(text, infer=False, source="chat-1", **mara)
    assert [m["id"] for m in memory.search("Where does Mara live?", **mara)] == ["m1", "m2"]
    assert memory.update("m1", "Mara lives in Rome.", version=1, **mara)["version"] == 2
    with pytest.raises(MemoryRefused) as refused:
        memory.update("m1", "Mara lives in Bergen.", version=1, **mara)
    assert (refused.value.status, refused.value.code) == (412, "version_conflict") and refused.value.request_id
    assert memory.get("m1", **mara)["text"] == "Mara lives in Rome."
    assert [v["text"] for v in memory.history("m1", **mara)] == ["Mara lives in Oslo.", "Mara lives in Rome."]
    memory.delete("m2", **mara)
    assert [m["id"] for m in memory.get_all(**mara)] == ["m1"]
    assert memory.rollback(2, **mara) == ["m1", "m2"]
    assert memory.undo("chat-1", **mara) == ["m1", "m2"]
    with pytest.raises(MemoryRefused) as missing:
        memory.get("m1", user_id="ben")
    assert missing.value.status == 404
    for call in (memory.add, memory.answer):
        with pytest.raises(MemoryRefused) as refused:
            call("Where?", **mara)
        assert refused.value.code == "no_model"


@pytest.mark.parametrize("name", ["..", ".", ""])
def test_a_name_that_a_url_would_resolve_reaches_nothing(memory: Memory, name: str) -> None:
    memory.add("Mara lives in Oslo.", infer=False, user_id="mara")
    for call in (memory.delete, memory.get, memory.history):
        with pytest.raises(MemR1Error, match="memory_id: .* is no name"):
            call(name, user_id="mara")
    if name:  # an empty one means the default
        with pytest.raises(MemR1Error, match="bank: .* is no name"):
            memory.get_all(bank=name, user_id="mara")
    assert [m["id"] for m in memory.get_all(user_id="mara")] == ["m1"]


def test_a_repeated_add_is_done_once(memory: Memory) -> None:
    said: Any = [{"role": "user", "content": "Mara lives in Oslo."}]
    for replayed in (False, True):
        made = memory.add(said, infer=False, user_id="mara", idempotency_key="k")
        assert made["decisions"][0]["replayed"] is replayed
    assert len(memory.get_all(user_id="mara")) == 1


def test_what_was_added_in_this_process_is_on_disk(tmp_path: Path) -> None:
    with Memory(str(tmp_path / "m.db"), embedder="hash", bank="notes") as memory:
        memory.add("Mara lives in Oslo.", infer=False, user_id="mara")
    with BankStore.open(tmp_path / "m.db", load_embedder("hash")) as store:
        bank = store.scoped(Scope(user_id="mara", tenant="local")).bank("notes")
        assert [e.text for e in bank.entries()] == ["Mara lives in Oslo."]


def test_the_manager_and_the_answerer_work_through_it(tmp_path: Path) -> None:
    async def ask(url: str) -> None:
        async with AsyncMemory(url) as memory:
            await memory.add("Mara lives in Oslo.", user_id="mara")
            moved = await memory.add("Mara lives in Rome.", user_id="mara")
            assert [o["event"] for o in moved["decisions"][0]["operations"]] == ["UPDATE"]
            answer = await memory.answer("Where does Mara live?", user_id="mara")
            assert (answer["answer"], answer["selected"][0]["id"]) == ("Rome", "m1")

    with listening(make_services(tmp_path)) as url:
        asyncio.run(ask(url))


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(MemR1Error, match="in this process"):
        Memory("http://127.0.0.1:1", source="smollm2-135m")
    with Memory("http://127.0.0.1:1") as nobody, pytest.raises(MemR1Error, match="is the service up"):
        nobody.get("m1")


def test_importing_memr1_is_cheap() -> None:
    program = "import sys, memr1; print(sorted({m.split('.')[0] for m in sys.modules} & {'httpx', 'torch', 'numpy'}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
