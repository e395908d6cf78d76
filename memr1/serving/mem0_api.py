"""mem0's routes, for programs that speak to mem0 already: its open-source server's, and those of its `MemoryClient`.

Same banks, same scopes, same rules as the native API; the shapes are mem0's. A memory's id names its bank, too, and
means nothing to another tenant. What these routes do not know (`app_id`, categories, reranking) is ignored, as mem0's
own servers do with what they do not know; filters that cannot be applied are refused, since ignoring one would show
too much.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from memr1.memory.types import Event, Hit, MemoryEntry, MemoryOp, OpResult
from memr1.serving import examples as ex
from memr1.serving.adding import add
from memr1.serving.agents import Decided, Said
from memr1.serving.errors import STATUSES, ApiError, not_found
from memr1.serving.native_api import banks_of, change, clear
from memr1.serving.refs import BankRef
from memr1.serving.requests import Caller, InScope, Named, Reader, Writer, now
from memr1.serving.schemas import MAX_BATCH, Loose, Metadata, Name, Text, Time


class Mem0Error(BaseModel):
    """Body of an error."""

    detail: str
    code: str
    request_id: str


router = APIRouter(tags=["mem0"], responses={status: {"model": Mem0Error} for status in STATUSES})

_EVENTS = {Event.ADD: "ADD", Event.UPDATE: "UPDATE", Event.DELETE: "DELETE", Event.NOOP: "NONE"}
_ENTITIES = {"user": "user_id", "agent": "agent_id", "run": "run_id"}


class Mem0Message(Loose):
    """A message as mem0 takes it."""

    role: str = Field("user", examples=["user"])
    content: str = Field(examples=["Mara lives in Oslo."])
    name: Name | None = None


class Mem0Add(Loose):
    """What to remember."""

    messages: Annotated[list[Mem0Message], Field(min_length=1, max_length=MAX_BATCH)] | Text = Field(
        examples=[[{"role": "user", "content": "Mara lives in Oslo."}], "Mara lives in Oslo."]
    )
    user_id: Name | None = Field(None, examples=["mara"])
    agent_id: Name | None = None
    run_id: Name | None = None
    filters: dict[str, Any] | None = None
    metadata: Metadata | None = None
    infer: bool = True
    timestamp: int | None = Field(None, ge=0, le=253402300799, description="Seconds since 1970.")


class Mem0Search(Loose):
    """What to look for."""

    query: Text = Field(examples=["Where does Mara live?"])
    user_id: Name | None = None
    agent_id: Name | None = None
    run_id: Name | None = None
    filters: dict[str, Any] | None = Field(None, examples=[{"user_id": "mara"}])
    top_k: int = Field(10, ge=1, le=1000)
    limit: int | None = Field(None, ge=1, le=1000)
    threshold: float | None = Field(None, description="Lowest score.")


class Mem0List(Loose):
    """Whose memories."""

    filters: dict[str, Any] | None = Field(None, examples=[{"user_id": "mara"}])


class Mem0Update(Loose):
    """What changes."""

    text: Text | None = Field(None, examples=["Mara lives in Bergen."])
    data: Text | None = None
    memory: Text | None = None
    metadata: Metadata | None = None
    timestamp: Time | int | None = None


def _split(filters: Mapping[str, Any] | None) -> tuple[dict[str, str], dict[str, Any]]:
    """Whose memories a filter of mem0 means, and what else it asks of them. 422 for what cannot be applied."""
    scope: dict[str, str] = {}
    rest: list[dict[str, Any]] = []
    todo = list((filters or {}).items())
    while todo:
        name, value = todo.pop()
        if name == "AND" and isinstance(value, list) and all(isinstance(v, dict) for v in value):
            todo += [pair for part in value for pair in part.items()]
        elif name in _ENTITIES.values():
            if value == "*":
                continue
            if not isinstance(value, str) or not value or scope.get(name, value) != value:
                raise ApiError(422, "invalid_field", f"filters.{name}: one name is expected", param="filters")
            scope[name] = value
        elif name == "metadata" and isinstance(value, dict):
            rest += [{f"metadata.{key}": wanted} for key, wanted in value.items()]
        elif name in ("created_at", "updated_at"):
            rest.append({name: value})
        else:
            raise ApiError(
                422,
                "unsupported_filter",
                f"filters.{name}: use user_id, agent_id, run_id, metadata, created_at, updated_at and AND",
                param="filters",
            )
    return scope, {"and": rest} if rest else {}


def _named(body: Mem0Add | Mem0Search, scope: Mapping[str, str]) -> Named:
    given = {n: getattr(body, n) for n in _ENTITIES.values() if getattr(body, n) is not None}
    for name, value in scope.items():
        if given.setdefault(name, value) != value:
            raise ApiError(422, "invalid_field", f"{name} is named twice and differently", param=name)
    return Named(given.get("user_id"), given.get("agent_id"), given.get("run_id"))


def _memory(ref: BankRef, entry: MemoryEntry, **more: Any) -> dict[str, Any]:
    """An entry as mem0 shows it."""
    scope = ref.scope
    return {
        "id": ref.memory_id(entry.id),
        "memory": entry.text,
        "user_id": scope.user_id,
        "agent_id": scope.agent_id,
        "run_id": scope.run_id,
        "metadata": entry.metadata or None,
        "created_at": entry.created_at,
        "updated_at": entry.updated_at,
        **more,
    }


def _found(ref: BankRef, hit: Hit) -> dict[str, Any]:
    return _memory(ref, hit.entry, score=hit.score)


# ---------------------------------------------------------------------------------------------------------- adding


@router.post("/memories", summary="mem0 server: add", responses=ex.MEM0_ADDED)
@router.post("/v3/memories/add", summary="mem0 client: add", responses=ex.MEM0_ADDED)
async def add_memories(body: Mem0Add, caller: Writer) -> dict[str, Any]:
    """The manager decides; `infer: false` adds what is said as it stands."""
    scope, rest = _split(body.filters)
    if rest:
        raise ApiError(422, "unsupported_filter", "filters only say whose memory it is here", param="filters")
    ref = BankRef(_named(body, scope).scope(caller))
    if isinstance(body.messages, str):
        said = [Said(body.messages)]
    else:
        said = [Said(m.content, m.name) for m in body.messages if m.role == "user" and m.content.strip()]
    decided = await add(
        caller.services,
        caller.scope,
        ref,
        said,
        infer=body.infer,
        provenance=caller.provenance(None, body.model_dump(mode="json")),
        time=now(),
        event_time=None if body.timestamp is None else _iso(body.timestamp),
        metadata=None if body.infer else body.metadata,
        key=caller.idempotency_key,
    )
    made = [_event(ref, r) for d in decided for r in _results(d)]
    waiting = [(fact, d.applied.held) for d in decided if d.applied is not None and d.applied.held for fact in d.facts]
    return {"results": [*made, *({"memory": fact, "event": "NONE", "held": held} for fact, held in waiting)]}


def _results(decided: Decided) -> tuple[OpResult, ...]:
    return decided.applied.results if decided.applied is not None else ()


def _event(ref: BankRef, result: OpResult) -> dict[str, Any]:
    event: dict[str, Any] = {"memory": result.op.text, "event": _EVENTS[result.op.event] if result.changed else "NONE"}
    if result.entry_id is not None:
        event["id"] = ref.memory_id(result.entry_id)
    if not result.ok:
        event["rejected"] = result.reason
    return event


def _iso(seconds: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).isoformat()


# ---------------------------------------------------------------------------------------------------------- reading


@router.post("/search", summary="mem0 server: search", responses=ex.MEM0_FOUND)
@router.post("/v3/memories/search", summary="mem0 client: search", responses=ex.MEM0_FOUND)
async def search(body: Mem0Search, caller: Reader) -> dict[str, Any]:
    """The nearest memories of a scope and of narrower ones; none where there are none."""
    scope, rest = _split(body.filters)
    refs = await _refs(caller, _named(body, scope))
    k = body.limit or body.top_k
    found = await caller.bank("search", refs, body.query, k, filters=rest or None) if refs else []
    least = -1.0 if body.threshold is None else body.threshold
    return {"results": [_found(ref, hit) for ref, hit in found if hit.score >= least]}


@router.get("/memories", summary="mem0 server: list", responses=ex.MEM0_LIST)
async def list_memories(caller: Reader, named: InScope) -> dict[str, Any]:
    """Every memory of a scope and of narrower ones, in order of ADD; at most 1000."""
    memories, _ = await _page(caller, named, None, 0, 1000)
    return {"results": memories}


@router.post("/v3/memories", summary="mem0 client: list", responses=ex.MEM0_PAGE)
async def page_memories(
    body: Mem0List,
    caller: Reader,
    page: Annotated[int, Query(ge=1, le=10**9)] = 1,
    page_size: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> dict[str, Any]:
    """A page of them, and how many there are."""
    scope, rest = _split(body.filters)
    named = Named(scope.get("user_id"), scope.get("agent_id"), scope.get("run_id"))
    memories, total = await _page(caller, named, rest, (page - 1) * page_size, page_size)

    def link(number: int) -> str:
        return f"/v3/memories/?page={number}&page_size={page_size}"

    return {
        "count": total,
        "next": link(page + 1) if page * page_size < total else None,
        "previous": link(page - 1) if page > 1 else None,
        "results": memories,
    }


async def _page(
    caller: Caller, named: Named, filters: Mapping[str, Any] | None, offset: int, limit: int
) -> tuple[list[dict[str, Any]], int]:
    refs = await _refs(caller, named)
    found = await caller.bank("listed", refs, filters or None, offset, limit) if refs else ([], 0)
    return [_memory(ref, entry) for ref, entry in found[0]], found[1]


async def _refs(caller: Caller, named: Named) -> list[BankRef]:
    """Banks of a scope; none is no error here, as a user of whom nothing is known is none."""
    scope = named.scope(caller)
    try:
        return await banks_of(caller, scope, None)
    except ApiError as error:
        if error.status == 404:
            return []
        raise


@router.get("/memories/{memory_id}", summary="mem0 server: get", responses=ex.MEM0_MEMORY)
@router.get("/v1/memories/{memory_id}", summary="mem0 client: get", responses=ex.MEM0_MEMORY)
async def get_memory(memory_id: str, caller: Reader) -> dict[str, Any]:
    """One memory."""
    ref, entry_id = BankRef.of_memory_id(memory_id, caller.scope.tenant)
    return _memory(ref, await caller.bank("get", ref, entry_id))


@router.get("/memories/{memory_id}/history", summary="mem0 server: history", responses=ex.MEM0_HISTORY)
@router.get("/v1/memories/{memory_id}/history", summary="mem0 client: history", responses=ex.MEM0_HISTORY)
async def history(memory_id: str, caller: Reader) -> list[dict[str, Any]]:
    """Its versions, oldest first."""
    ref, entry_id = BankRef.of_memory_id(memory_id, caller.scope.tenant)
    versions: list[MemoryEntry] = await caller.bank("history", ref, entry_id)
    shown = []
    for before, version in zip([None, *versions[:-1]], versions, strict=True):
        event = "ADD" if before is None else "UPDATE" if version.status == "live" else "DELETE"
        shown.append(
            {
                "id": f"{memory_id}@{version.version}",
                "memory_id": memory_id,
                "old_memory": before.text if before is not None else None,
                "new_memory": version.text if version.status == "live" else None,
                "event": event,
                "created_at": version.created_at,
                "updated_at": version.updated_at,
                "is_deleted": version.status != "live",
            }
        )
    return shown


# ---------------------------------------------------------------------------------------------------------- changing


@router.put("/memories/{memory_id}", summary="mem0 server: update", responses=ex.MEM0_UPDATED)
@router.put("/v1/memories/{memory_id}", summary="mem0 client: update", responses=ex.MEM0_UPDATED)
async def update_memory(memory_id: str, body: Mem0Update, caller: Writer) -> dict[str, Any]:
    """A new version of it."""
    ref, entry_id = BankRef.of_memory_id(memory_id, caller.scope.tenant)
    text = body.text or body.data or body.memory
    expected = None
    if text is None:
        if not body.metadata:
            raise ApiError(422, "invalid_field", "text or metadata is needed", param="text")
        entry: MemoryEntry = await caller.bank("get", ref, entry_id)
        text, expected = entry.text, entry.version
    op = MemoryOp(Event.UPDATE, text, entry_id, expected_version=expected, metadata=body.metadata or {})
    when = _iso(body.timestamp) if isinstance(body.timestamp, int) else body.timestamp
    await change(caller, ref, op, body.model_dump(mode="json"), when)
    return {**_memory(ref, await caller.bank("get", ref, entry_id)), "message": "Memory updated successfully"}


@router.delete("/memories/{memory_id}", summary="mem0 server: delete", responses=ex.MEM0_DELETED)
@router.delete("/v1/memories/{memory_id}", summary="mem0 client: delete", responses=ex.MEM0_DELETED)
async def delete_memory(memory_id: str, caller: Writer) -> dict[str, Any]:
    """A tombstone keeps its history."""
    ref, entry_id = BankRef.of_memory_id(memory_id, caller.scope.tenant)
    await change(caller, ref, MemoryOp(Event.DELETE, entry_id=entry_id), {})
    return {"message": "Memory deleted successfully!"}


@router.delete("/memories", summary="mem0 server: delete all of a scope", responses=ex.MEM0_ALL_DELETED)
@router.delete("/v1/memories", summary="mem0 client: delete all of a scope", responses=ex.MEM0_ALL_DELETED)
async def delete_memories(caller: Writer, named: InScope) -> dict[str, Any]:
    """All memories of a scope and of narrower ones; one that names nobody is refused."""
    if (named.user_id, named.agent_id, named.run_id) == (None, None, None):
        raise ApiError(422, "invalid_field", "name a user_id, an agent_id or a run_id", param="user_id")
    deleted = 0
    for ref in await _refs(caller, named):
        deleted += len((await clear(caller, ref)).results)
    return {"message": "Memories deleted successfully!", "deleted": deleted}


# ---------------------------------------------------------------------------------------------------------- the rest


@router.get("/v1/ping", summary="mem0 client: who am I", responses=ex.MEM0_PING)
async def ping(caller: Reader) -> dict[str, Any]:
    """What `MemoryClient` asks when it is made."""
    tenant = caller.scope.tenant
    return {"status": "ok", "org_id": tenant, "project_id": tenant, "user_email": None}


@router.get("/v1/entities", summary="mem0 client: users, agents and runs", responses=ex.MEM0_ENTITIES)
async def entities(caller: Reader) -> dict[str, Any]:
    """Everybody of whom something is kept."""
    refs = await caller.bank("names", caller.scope)
    found = sorted(
        {(kind, value) for ref in refs for kind, n in _ENTITIES.items() if (value := getattr(ref.scope, n)) is not None}
    )
    return {
        "count": len(found),
        "next": None,
        "previous": None,
        "results": [{"id": value, "name": value, "type": kind} for kind, value in found],
    }


@router.delete(
    "/v2/entities/{kind}/{name}",
    summary="mem0 client: delete a user, agent or run",
    responses=ex.MEM0_ALL_DELETED,
)
async def delete_entity(kind: str, name: str, caller: Writer) -> dict[str, Any]:
    """All memories of it."""
    if kind not in _ENTITIES:
        raise not_found("the entity")
    whose = {_ENTITIES[kind]: name}
    return await delete_memories(caller, Named(whose.get("user_id"), whose.get("agent_id"), whose.get("run_id")))
