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
import time as clock
from collections.abc import Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from memr1.errors import MemR1Error

T = TypeVar("T")
Messages = str | Sequence[dict[str, Any]]

DEFAULT_BANK = "memories"
TIMEOUT_S = 120.0
POLL_S = 0.2
"""How often it is asked what became of a job."""


class MemoryRefused(MemR1Error):
    """A refusal of the service: `status` of HTTP, `code` for programs, `request_id` for its log."""

    def __init__(self, status: int, code: str, message: str, request_id: str, details: Any = None) -> None:
        super().__init__(message)
        self.status, self.code, self.request_id, self.details = status, code, request_id, details


class AsyncMemory:
    """See the module; every call is awaited. Use it as `async with`, or `await memory.close()`. With a database in this
    process it belongs to one event loop, that of its first call: make, use and close it there."""

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
        self._life: AbstractAsyncContextManager[Any] | None = None
        self._app: Any = None
        headers = {"X-API-Key": api_key} if api_key else {}
        if where.startswith(("http://", "https://")):
            if source is not None or embedder is not None:
                raise MemR1Error("source and embedder are for memory in this process; a service has its own")
            self._http = httpx.AsyncClient(base_url=where, headers=headers, timeout=TIMEOUT_S)
            return
        from memr1.serving.app import make_app, start
        from memr1.serving.settings import ServingConfig

        self._services = start(ServingConfig(source=source, db=where, embedder=embedder))
        self._app = make_app(self._services)
        transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
        self._http = httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None)

    async def __aenter__(self) -> AsyncMemory:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Finish, and give up the store where it is this process's."""
        try:
            await self._http.aclose()
            if self._life is not None:
                await self._life.__aexit__(None, None, None)
        finally:
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
        wait: bool = True,
        bank: str | None = None,
        idempotency_key: str | None = None,
    ) -> dict[str, Any]:
        """Let the manager decide about messages (a text, or dicts with `role` and `content`), or with `infer=False` add
        them as they stand. Returns `decisions`, each with its `operations`. `MemoryRefused` when nothing is kept.

        trusted: False for what somebody only passes on, such as a page: it changes nothing that others said.
        wait: False returns a job as soon as it is on disk; `wait_for` its `id`.
        """
        said: dict[str, Any] = {"text": messages} if isinstance(messages, str) else {"messages": list(messages)}
        body = {**said, "infer": infer, "trusted": trusted, "dry_run": dry_run, "source": source, "time": time}
        body["wait"] = wait
        if metadata:
            body["metadata"] = metadata
        whose, headers = _scope(user_id, agent_id, run_id), _under(idempotency_key)
        return await self._ask("POST", f"{self._at(bank)}/memories", params=whose, json=body, headers=headers)

    async def job(self, job_id: str) -> dict[str, Any]:
        """What became of a job: its `state`, and once it is `done`, its `decisions`; `error` where it is `failed`."""
        return await self._ask("GET", f"/v1/jobs/{_in_path('job_id', job_id)}")

    async def wait_for(self, job_id: str, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
        """The job once it is `done` or `failed`. `MemR1Error` when it is neither in time; it is done all the same."""
        end = clock.monotonic() + timeout_s
        while (job := await self.job(job_id))["state"] not in ("done", "failed"):
            if clock.monotonic() > end:
                raise MemR1Error(f"job {job_id} is {job['state']} after {timeout_s:g} s; ask for it again")
            await asyncio.sleep(POLL_S)
        return job

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
        filters: dict[str, Any] | None = None,
        as_of: str | None = None,
    ) -> dict[str, Any]:
        """`answer`, and the memories it rests on under `selected`. filters, as_of: which memories it may rest on."""
        which = {"bank": bank or self.bank, "top_k": top_k, "filters": filters, "as_of": as_of}
        body = {"question": question, **which, **_scope(user_id, agent_id, run_id)}
        return await self._ask("POST", "/v1/answer", json=body)

    async def get(self, memory_id: str, *, bank: str | None = None, **whose: str) -> dict[str, Any]:
        """One memory; `whose`: user_id, agent_id, run_id."""
        return await self._ask("GET", self._memory(memory_id, bank), params=_scope(**whose))

    async def get_all(
        self, *, bank: str | None = None, offset: int = 0, limit: int = 1000, **whose: str
    ) -> list[dict[str, Any]]:
        """Memories in the order in which they were added, from the one after `offset` others; at most 1000."""
        params = {**_scope(**whose), "offset": str(offset), "limit": str(limit)}
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
        idempotency_key: str | None = None,
        **whose: str,
    ) -> dict[str, Any]:
        """A new version. version: change only this one; `MemoryRefused` 412 when somebody else was quicker."""
        body = {"text": text, "metadata": metadata or {}}
        headers = _under(idempotency_key)
        if version is not None:
            headers["If-Match"] = f'"{version}"'
        at = self._memory(memory_id, bank)
        return await self._ask("PATCH", at, params=_scope(**whose), json=body, headers=headers)

    async def delete(
        self, memory_id: str, *, bank: str | None = None, idempotency_key: str | None = None, **whose: str
    ) -> dict[str, Any]:
        """Delete a memory; `rollback` brings it back."""
        at, headers = self._memory(memory_id, bank), _under(idempotency_key)
        return await self._ask("DELETE", at, params=_scope(**whose), headers=headers)

    async def delete_all(
        self, *, bank: str | None = None, idempotency_key: str | None = None, **whose: str
    ) -> dict[str, Any]:
        """Delete every memory of the bank in one decision, which is returned; `rollback` brings them back."""
        at, headers = f"{self._at(bank)}/clear", _under(idempotency_key)
        return await self._ask("POST", at, params=_scope(**whose), headers=headers)

    async def history(self, memory_id: str, *, bank: str | None = None, **whose: str) -> list[dict[str, Any]]:
        """Every version, oldest first."""
        at = f"{self._memory(memory_id, bank)}/history"
        versions: list[dict[str, Any]] = (await self._ask("GET", at, params=_scope(**whose)))["versions"]
        return versions

    async def log(
        self, *, bank: str | None = None, after: int = 0, limit: int = 1000, **whose: str
    ) -> list[dict[str, Any]]:
        """Decisions of a bank after number `after`, oldest first, rejected operations included; at most 1000."""
        params = {**_scope(**whose), "after": str(after), "limit": str(limit)}
        records: list[dict[str, Any]] = (await self._ask("GET", f"{self._at(bank)}/log", params=params))["records"]
        return records

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

    async def banks(self, **whose: str) -> list[dict[str, Any]]:
        """Banks of a scope and of narrower ones, each with its `name` and whose it is."""
        found: list[dict[str, Any]] = (await self._ask("GET", "/v1/banks", params=_scope(**whose)))["banks"]
        return found

    async def export_bank(self, *, bank: str | None = None, **whose: str) -> bytes:
        """A bank with its whole log, as JSON lines; what `memr1 bank export` writes."""
        return (await self._send("GET", f"{self._at(bank)}/export", params=_scope(**whose))).content

    async def import_bank(self, exported: bytes, *, bank: str | None = None, **whose: str) -> dict[str, Any]:
        """A new bank from what `export_bank` gave; its counts. `MemoryRefused` 409 when there is one of this name."""
        return await self._ask("POST", f"{self._at(bank)}/import", params=_scope(**whose), content=exported)

    async def quarantine(self, *, offset: int = 0, limit: int = 1000, **whose: str) -> list[dict[str, Any]]:
        """Writes of a scope and of narrower ones that were held, oldest first, with their `suspicions`; at most 1000.

        An operator `release`s or `drop_held`s them by their `id`; all three need the right `admin` of a service.
        """
        params = {**_scope(**whose), "offset": str(offset), "limit": str(limit)}
        held: list[dict[str, Any]] = (await self._ask("GET", "/v1/quarantine", params=params))["held"]
        return held

    async def release(self, held_id: str) -> dict[str, Any]:
        """Make a decision that was held, and answer for it. `MemoryRefused` when the bank rejects it; it stays held."""
        return await self._ask("POST", f"{_held(held_id)}/release")

    async def drop_held(self, held_id: str) -> None:
        """Give up a decision that was held, for good."""
        await self._send("DELETE", _held(held_id))

    def _at(self, bank: str | None) -> str:
        return f"/v1/banks/{_in_path('bank', bank or self.bank)}"

    def _memory(self, memory_id: str, bank: str | None) -> str:
        return f"{self._at(bank)}/memories/{_in_path('memory_id', memory_id)}"

    async def _ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        return dict((await self._send(method, path, **options)).json())

    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        if self._app is not None and self._life is None:  # whoever does jobs begins with the first call
            self._life = self._app.router.lifespan_context(self._app)
            await self._life.__aenter__()
        try:
            response = await self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise MemR1Error(f"{self._http.base_url}: {error or type(error).__name__}; is the service up?") from error
        if response.is_success:
            return response
        try:
            refusal = response.json().get("error", {})
        except ValueError:
            refusal = {}
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


def _held(held_id: str) -> str:
    return f"/v1/quarantine/{_in_path('held_id', held_id)}"


def _under(idempotency_key: str | None) -> dict[str, str]:
    return {"Idempotency-Key": idempotency_key} if idempotency_key else {}


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

    def job(self, job_id: str) -> dict[str, Any]:
        """See `AsyncMemory.job`."""
        return self._run(self._memory.job(job_id))

    def wait_for(self, job_id: str, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
        """See `AsyncMemory.wait_for`."""
        return self._run(self._memory.wait_for(job_id, timeout_s))

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

    def delete_all(self, **options: Any) -> dict[str, Any]:
        """See `AsyncMemory.delete_all`."""
        return self._run(self._memory.delete_all(**options))

    def history(self, memory_id: str, **options: Any) -> list[dict[str, Any]]:
        """See `AsyncMemory.history`."""
        return self._run(self._memory.history(memory_id, **options))

    def log(self, **options: Any) -> list[dict[str, Any]]:
        """See `AsyncMemory.log`."""
        return self._run(self._memory.log(**options))

    def rollback(self, seq: int, **options: Any) -> list[str]:
        """See `AsyncMemory.rollback`."""
        return self._run(self._memory.rollback(seq, **options))

    def undo(self, source: str, **options: Any) -> list[str]:
        """See `AsyncMemory.undo`."""
        return self._run(self._memory.undo(source, **options))

    def banks(self, **whose: str) -> list[dict[str, Any]]:
        """See `AsyncMemory.banks`."""
        return self._run(self._memory.banks(**whose))

    def export_bank(self, **options: Any) -> bytes:
        """See `AsyncMemory.export_bank`."""
        return self._run(self._memory.export_bank(**options))

    def import_bank(self, exported: bytes, **options: Any) -> dict[str, Any]:
        """See `AsyncMemory.import_bank`."""
        return self._run(self._memory.import_bank(exported, **options))

    def quarantine(self, **options: Any) -> list[dict[str, Any]]:
        """See `AsyncMemory.quarantine`."""
        return self._run(self._memory.quarantine(**options))

    def release(self, held_id: str) -> dict[str, Any]:
        """See `AsyncMemory.release`."""
        return self._run(self._memory.release(held_id))

    def drop_held(self, held_id: str) -> None:
        """See `AsyncMemory.drop_held`."""
        self._run(self._memory.drop_held(held_id))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


async def _made(where: str, options: dict[str, Any]) -> AsyncMemory:
    return AsyncMemory(where, **options)
