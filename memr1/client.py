"""`from memr1 import Memory`: memory for a program, in this process or of a service, with mem0's calls.

    memory = Memory("memory.db", source="runs/train_local")           # in this process
    memory = Memory("http://127.0.0.1:8000", api_key="memr1_…")       # of a service
    memory.add("Mara lives in Oslo.", user_id="mara")
    memory.answer("Where does Mara live?", user_id="mara")["answer"]

Either way the calls go through the same HTTP application, so that they mean the same.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from memr1.errors import MemR1Error

T = TypeVar("T")
Messages = str | Sequence[dict[str, Any]]

DEFAULT_BANK = "memories"
TIMEOUT_S = 120.0


class MemoryRefused(MemR1Error):
    """A refusal of the service: `status` of HTTP, `code` for programs, `request_id` for its log."""

    def __init__(self, status: int, code: str, message: str, request_id: str, details: Any = None) -> None:
        super().__init__(message)
        self.status, self.code, self.request_id, self.details = status, code, request_id, details


class AsyncMemory:
    """See the module; every call is awaited. Use it as `async with`, or `await memory.close()`."""

    def __init__(
        self,
        where: str = "memory.db",
        *,
        api_key: str | None = None,
        source: str | None = None,
        embedder: str | None = None,
        bank: str = DEFAULT_BANK,
    ) -> None:
        """where: URL of a service, or a database to open in this process (as `memr1 serve --db`).

        api_key: of a service. source, embedder: in this process; without a source there is no manager and no answerer,
        and `add` needs `infer=False`. bank: the bank that calls are about unless they name another.
        """
        self.bank = bank
        self._services: Any = None
        headers = {"X-API-Key": api_key} if api_key else {}
        if where.startswith(("http://", "https://")):
            if source is not None or embedder is not None:
                raise MemR1Error("source and embedder are for memory in this process; a service has its own")
            self._http = httpx.AsyncClient(base_url=where, headers=headers, timeout=TIMEOUT_S)
            return
        from memr1.serving.app import make_app, start
        from memr1.serving.settings import ServingConfig

        self._services = start(ServingConfig(source=source, db=where, embedder=embedder))
        app = make_app(self._services)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self._http = httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None)

    async def __aenter__(self) -> AsyncMemory:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Finish, and give up the store where it is this process's."""
        await self._http.aclose()
        if self._services is not None:
            await asyncio.to_thread(self._services.close)

    async def add(
        self,
        messages: Messages,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        infer: bool = True,
        metadata: dict[str, Any] | None = None,
        source: str | None = None,
        trusted: bool = True,
        time: str | None = None,
        dry_run: bool = False,
        bank: str | None = None,
        idempotency_key: str | None = None,
    ) -> dict[str, Any]:
        """Let the manager decide about messages (a text, or dicts with `role` and `content`), or with `infer=False` add
        them as they stand. Returns `decisions`, each with its `operations`. `MemoryRefused` when nothing is kept.

        trusted: False for what somebody only passes on, such as a page: it changes nothing that others said.
        """
        said: dict[str, Any] = {"text": messages} if isinstance(messages, str) else {"messages": list(messages)}
        body = {**said, "infer": infer, "trusted": trusted, "dry_run": dry_run, "source": source, "time": time}
        if metadata:
            body["metadata"] = metadata
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        whose = _scope(user_id, agent_id, run_id)
        return await self._ask("POST", f"{self._at(bank)}/memories", params=whose, json=body, headers=headers)

    async def search(
        self,
        query: str,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        limit: int = 5,
        filters: dict[str, Any] | None = None,
        by: str = "vector",
        as_of: str | None = None,
        bank: str | None = None,
    ) -> list[dict[str, Any]]:
        """Memories that fit best, best first, each with its `score`."""
        body = {"query": query, "k": limit, "filters": filters, "by": by, "as_of": as_of}
        whose = _scope(user_id, agent_id, run_id)
        found: list[dict[str, Any]] = (await self._ask("POST", f"{self._at(bank)}/search", params=whose, json=body))[
            "results"
        ]
        return found

    async def answer(
        self,
        question: str,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        bank: str | None = None,
        top_k: int | None = None,
    ) -> dict[str, Any]:
        """`answer`, and the memories it rests on under `selected`."""
        whose = _scope(user_id, agent_id, run_id)
        body = {"question": question, "bank": bank or self.bank, "top_k": top_k, **whose}
        return await self._ask("POST", "/v1/answer", json=body)

    async def get(self, memory_id: str, *, bank: str | None = None, **whose: str) -> dict[str, Any]:
        """One memory; `whose`: user_id, agent_id, run_id."""
        return await self._ask("GET", self._memory(memory_id, bank), params=_scope(**whose))

    async def get_all(self, *, bank: str | None = None, limit: int = 1000, **whose: str) -> list[dict[str, Any]]:
        """Memories in the order in which they were added."""
        params = {**_scope(**whose), "limit": str(limit)}
        found: list[dict[str, Any]] = (await self._ask("GET", f"{self._at(bank)}/memories", params=params))["memories"]
        return found

    async def update(
        self,
        memory_id: str,
        text: str | None = None,
        *,
        metadata: dict[str, Any] | None = None,
        version: int | None = None,
        bank: str | None = None,
        **whose: str,
    ) -> dict[str, Any]:
        """A new version. version: change only this one; `MemoryRefused` 412 when somebody else was quicker."""
        body = {"text": text, "metadata": metadata or {}}
        headers = {"If-Match": f'"{version}"'} if version is not None else {}
        at = self._memory(memory_id, bank)
        return await self._ask("PATCH", at, params=_scope(**whose), json=body, headers=headers)

    async def delete(self, memory_id: str, *, bank: str | None = None, **whose: str) -> dict[str, Any]:
        """Delete a memory; `rollback` brings it back."""
        return await self._ask("DELETE", self._memory(memory_id, bank), params=_scope(**whose))

    async def history(self, memory_id: str, *, bank: str | None = None, **whose: str) -> list[dict[str, Any]]:
        """Every version, oldest first."""
        at = f"{self._memory(memory_id, bank)}/history"
        versions: list[dict[str, Any]] = (await self._ask("GET", at, params=_scope(**whose)))["versions"]
        return versions

    async def rollback(self, seq: int, *, bank: str | None = None, **whose: str) -> list[str]:
        """Go back to what was there after decision `seq`; ids of the memories that changed."""
        changed: list[str] = (
            await self._ask("POST", f"{self._at(bank)}/rollback", params=_scope(**whose), json={"seq": seq})
        )["changed"]
        return changed

    async def undo(self, source: str, *, bank: str | None = None, **whose: str) -> list[str]:
        """Undo what came from a source; ids of the memories that changed."""
        changed: list[str] = (
            await self._ask("POST", f"{self._at(bank)}/undo", params=_scope(**whose), json={"source": source})
        )["changed"]
        return changed

    def _at(self, bank: str | None) -> str:
        return f"/v1/banks/{_in_path('bank', bank or self.bank)}"

    def _memory(self, memory_id: str, bank: str | None) -> str:
        return f"{self._at(bank)}/memories/{_in_path('memory_id', memory_id)}"

    async def _ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            response = await self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise MemR1Error(f"{self._http.base_url}: {error or type(error).__name__}; is the service up?") from error
        try:
            body = response.json()
        except ValueError:
            body = {}
        if response.is_success:
            return dict(body)
        refusal = body.get("error", {})
        raise MemoryRefused(
            response.status_code,
            refusal.get("code", "unknown"),
            refusal.get("message", f"{method} {path}: {response.status_code}"),
            refusal.get("request_id", ""),
            refusal.get("details"),
        )


def _in_path(field: str, value: str) -> str:
    """A name as one part of a path. Empty ones and dots, which URLs resolve, would be another path: deleting the memory
    `..` would drop its bank."""
    if value in ("", ".", ".."):
        raise MemR1Error(f"{field}: {value!r} is no name")
    return quote(value, safe="")


def _scope(user_id: str | None = None, agent_id: str | None = None, run_id: str | None = None) -> dict[str, str]:
    given = {"user_id": user_id, "agent_id": agent_id, "run_id": run_id}
    return {name: value for name, value in given.items() if value is not None}


class Memory:
    """See the module; calls return when they are done. They are those of `AsyncMemory`. Thread-safe; close it."""

    def __init__(self, where: str = "memory.db", **options: Any) -> None:
        """See `AsyncMemory`."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="memr1-memory", daemon=True)
        self._thread.start()
        try:
            self._memory = self._run(_made(where, options))
        except BaseException:
            self._stop()
            raise

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """See `AsyncMemory.close`."""
        if self._thread.is_alive():
            self._run(self._memory.close())
            self._stop()

    def add(self, messages: Messages, **options: Any) -> dict[str, Any]:
        """See `AsyncMemory.add`."""
        return self._run(self._memory.add(messages, **options))

    def search(self, query: str, **options: Any) -> list[dict[str, Any]]:
        """See `AsyncMemory.search`."""
        return self._run(self._memory.search(query, **options))

    def answer(self, question: str, **options: Any) -> dict[str, Any]:
        """See `AsyncMemory.answer`."""
        return self._run(self._memory.answer(question, **options))

    def get(self, memory_id: str, **options: Any) -> dict[str, Any]:
        """See `AsyncMemory.get`."""
        return self._run(self._memory.get(memory_id, **options))

    def get_all(self, **options: Any) -> list[dict[str, Any]]:
        """See `AsyncMemory.get_all`."""
        return self._run(self._memory.get_all(**options))

    def update(self, memory_id: str, text: str | None = None, **options: Any) -> dict[str, Any]:
        """See `AsyncMemory.update`."""
        return self._run(self._memory.update(memory_id, text, **options))

    def delete(self, memory_id: str, **options: Any) -> dict[str, Any]:
        """See `AsyncMemory.delete`."""
        return self._run(self._memory.delete(memory_id, **options))

    def history(self, memory_id: str, **options: Any) -> list[dict[str, Any]]:
        """See `AsyncMemory.history`."""
        return self._run(self._memory.history(memory_id, **options))

    def rollback(self, seq: int, **options: Any) -> list[str]:
        """See `AsyncMemory.rollback`."""
        return self._run(self._memory.rollback(seq, **options))

    def undo(self, source: str, **options: Any) -> list[str]:
        """See `AsyncMemory.undo`."""
        return self._run(self._memory.undo(source, **options))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


async def _made(where: str, options: dict[str, Any]) -> AsyncMemory:
    return AsyncMemory(where, **options)
