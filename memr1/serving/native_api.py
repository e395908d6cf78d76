"""The native API under /v1: typed, scoped, and exact about what was done."""

from __future__ import annotations

import hashlib
import time as clock
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from memr1.memory.scopes import Scope
from memr1.memory.state import BankRules
from memr1.memory.types import Event, MemoryEntry, MemoryOp
from memr1.serving import schemas as s
from memr1.serving.adding import add
from memr1.serving.agents import Answered
from memr1.serving.errors import ApiError, accepted, not_found
from memr1.serving.jobs import DONE, Job
from memr1.serving.refs import Applied, BankRef
from memr1.serving.requests import (
    Administrator,
    Caller,
    IfMatch,
    InBank,
    InScope,
    Reader,
    Writer,
    now,
)

router = APIRouter(prefix="/v1", responses=s.ERRORS)

Offset = Annotated[int, Query(ge=0, le=2**53)]
Limit = Annotated[int, Query(ge=1, le=1000)]


# ---------------------------------------------------------------------------------------------------------- banks


@router.get("/me", tags=["service"], summary="Who this key is")
async def me(caller: Reader) -> s.Me:
    """Scope and rights of the key, and what is served."""
    p = caller.principal
    agents = caller.services.agents
    return s.Me(
        key_id=p.key_id,
        name=p.name,
        tenant=p.scope.tenant,
        user_id=p.scope.user_id,
        agent_id=p.scope.agent_id,
        run_id=p.scope.run_id,
        right=p.right,
        model=agents.label if agents else None,
    )


@router.get("/banks", tags=["banks"], summary="List banks of a scope")
async def list_banks(caller: Reader, named: InScope) -> s.BankList:
    """Banks of the scope and of narrower ones."""
    refs = await caller.bank("names", named.scope(caller))
    return s.BankList(banks=[s.BankName.of(ref) for ref in refs])


@router.post("/banks", tags=["banks"], summary="Make a bank", status_code=201)
async def create_bank(body: s.BankRequest, caller: Administrator, named: InScope) -> s.BankInfo:
    """An empty bank; 409 when it is there. Adding to a bank that is not there makes it, too."""
    ref = BankRef(named.scope(caller), body.name)
    rules = None if body.rules is None else BankRules(**body.rules.model_dump())
    await caller.bank("create", ref, rules)
    return await _info(caller, ref)


@router.get("/banks/{bank}", tags=["banks"], summary="Counts and limits of a bank")
async def get_bank(caller: Reader, named: InBank) -> s.BankInfo:
    """How much is in it, and what was done and rejected so far."""
    return await _info(caller, named.ref(caller))


@router.delete("/banks/{bank}", tags=["banks"], summary="Remove a bank with everything in it", status_code=204)
async def drop_bank(caller: Administrator, named: InBank) -> Response:
    """For good: entries, history, log and vectors."""
    await caller.bank("drop", named.ref(caller))
    return Response(status_code=204)


async def _info(caller: Caller, ref: BankRef) -> s.BankInfo:
    stats, rules = await caller.bank("stats", ref)
    counts = {name: getattr(stats, name) for name in ("seq", "live", "deleted", "erased", "events", "rejected")}
    kept = {name: getattr(rules, name) for name in s.Rules.model_fields}
    return s.BankInfo(**s.BankName.of(ref).model_dump(), **counts, rules=s.Rules(**kept))


# ---------------------------------------------------------------------------------------------------------- memories


@router.post(
    "/banks/{bank}/memories",
    tags=["memories"],
    summary="Add, through the manager or as it stands",
    responses={202: {"model": s.JobResponse}},
)
async def add_memories(body: s.AddRequest, request: Request, caller: Writer, named: InBank) -> s.AddResponse:
    """The manager decides about each message: ADD, UPDATE, DELETE or NOOP; the answer says what was done. The bank is
    made where there is none. With `wait: false` the answer is 202 and a job, which survives a restart."""
    ref, plain = named.ref(caller), body.model_dump(mode="json")
    provenance = caller.provenance(body.source, plain, trusted=body.trusted)
    if body.infer:
        caller.services.agent()
    if not body.wait and not body.dry_run:
        made = {"turn_ids": list(provenance.turn_ids), "trusted": provenance.trusted}
        work = {"body": plain, **made, "time": body.time or now()}
        job = await _accept(caller, ref, work, plain)
        request.app.state.jobs.poke()
        shown = await _shown(caller, job)
        return JSONResponse(  # type: ignore[return-value]  # 202 has a body of its own
            shown.model_dump(mode="json"), 202, headers={"Location": f"/v1/jobs/{job.id}"}
        )
    decided = await add(
        caller.services,
        caller.scope,
        ref,
        body.said,
        infer=body.infer,
        provenance=provenance,
        time=body.time or now(),
        event_time=body.event_time,
        metadata=body.metadata,
        key=caller.idempotency_key,
        dry_run=body.dry_run,
    )
    decisions = [s.Decision.of(d) for d in decided]
    return s.AddResponse(bank=s.BankName.of(ref), decisions=decisions, dry_run=body.dry_run)


async def _accept(caller: Caller, ref: BankRef, work: dict[str, Any], plain: Any) -> Job:
    mark = caller.mark(plain)
    if caller.idempotency_key is None:
        job_id = hashlib.sha256(f"{caller.request_id}\n{clock.time_ns()}".encode()).hexdigest()[:32]
    else:
        whose = f"{ref.scope.bank_id(ref.name)}\n{caller.idempotency_key}"
        job_id = hashlib.sha256(whose.encode()).hexdigest()[:32]
    job = Job(job_id, caller.scope, ref.name, ref.scope, work=work, digest=mark, made=clock.time())
    kept: Job = await caller.services.banks.call("put_job", ref.scope.tenant, job)
    return kept


@router.get("/jobs/{job_id}", tags=["memories"], summary="What became of accepted work")
async def get_job(job_id: str, caller: Reader) -> s.JobResponse:
    """Its state, and once it is done, the decisions that it made."""
    return await _shown(caller, await caller.bank("job", job_id))


async def _shown(caller: Caller, job: Job) -> s.JobResponse:
    ref = BankRef(job.bank_scope, job.bank)
    decisions = None
    if job.state == DONE:
        decisions = []
        for seq in job.seqs:
            records, _ = await caller.bank("log", ref, seq - 1, 1)
            decisions += [s.Decision.of_applied(Applied(r.seq, r.results)) for r in records]
    return s.JobResponse(
        id=job.id,
        state=job.state,
        bank=s.BankName.of(ref),
        decisions=decisions,
        held=list(job.held),
        error=job.error,
    )


@router.get("/banks/{bank}/memories", tags=["memories"], summary="List memories")
async def list_memories(
    caller: Reader,
    named: InBank,
    offset: Offset = 0,
    limit: Limit = 100,
    deleted: bool = False,
    as_of: Annotated[s.Time | None, Query()] = None,
) -> s.Page:
    """In order of ADD; with `deleted`, tombstones too; with `as_of`, what was live then instead."""
    entries, total = await caller.bank("entries", named.ref(caller), offset, limit, deleted, as_of)
    return s.Page(memories=[s.Memory.of(e) for e in entries], total=total, offset=offset)


@router.post("/banks/{bank}/search", tags=["memories"], summary="Search a bank")
async def search(body: s.SearchRequest, caller: Reader, named: InBank) -> s.SearchResponse:
    """By meaning, by words, or both; filters as in docs/memory.md; `as_of`: what the bank held then."""
    found = await caller.bank(
        "search", [named.ref(caller)], body.query, body.k, filters=body.filters, by=body.by, as_of=body.as_of
    )
    return s.SearchResponse(results=[s.Found.of_hit(ref, hit) for ref, hit in found])


@router.get("/banks/{bank}/memories/{memory_id}", tags=["memories"], summary="Get a memory")
async def get_memory(memory_id: str, caller: Reader, named: InBank, response: Response) -> s.Memory:
    """Its newest version; `ETag` is what `If-Match` takes."""
    return _with_etag(response, await caller.bank("get", named.ref(caller), memory_id))


@router.patch("/banks/{bank}/memories/{memory_id}", tags=["memories"], summary="Change a memory")
async def update_memory(
    memory_id: str, body: s.UpdateRequest, caller: Writer, named: InBank, if_match: IfMatch, response: Response
) -> s.Memory:
    """A new version. With `If-Match`, only if it still has that version; 412 otherwise."""
    ref = named.ref(caller)
    text, expected = body.text, if_match
    if text is None:
        entry: MemoryEntry = await caller.bank("get", ref, memory_id)
        text, expected = entry.text, entry.version if expected is None else expected
    op = MemoryOp(Event.UPDATE, text, memory_id, expected_version=expected, metadata=body.metadata)
    await change(caller, ref, op, {"if_match": if_match, **body.model_dump(mode="json")}, body.event_time)
    return _with_etag(response, await caller.bank("get", ref, memory_id))


@router.delete("/banks/{bank}/memories/{memory_id}", tags=["memories"], summary="Delete a memory")
async def delete_memory(memory_id: str, caller: Writer, named: InBank, if_match: IfMatch) -> s.Decision:
    """A tombstone keeps its history, and `rollback` brings it back; `erase` takes it away for good."""
    op = MemoryOp(Event.DELETE, entry_id=memory_id, expected_version=if_match)
    applied = await change(caller, named.ref(caller), op, {"if_match": if_match})
    return s.Decision.of_applied(applied)


async def change(caller: Caller, ref: BankRef, op: MemoryOp, body: Any, event_time: str | None = None) -> Applied:
    """One operation as a decision of its own; `ApiError` when the bank rejects it."""
    applied: Applied = await caller.bank(
        "apply",
        ref,
        [op],
        provenance=caller.provenance(None, body),
        time=now(),
        event_time=event_time,
        key=caller.idempotency_key,
    )
    return _carried_out(caller, applied)


async def clear(caller: Caller, ref: BankRef) -> Applied:
    """A DELETE of every entry as one decision; `ApiError` as in `change`."""
    how = {"provenance": caller.provenance(None, {}), "time": now(), "key": caller.idempotency_key}
    return _carried_out(caller, await caller.bank("clear", ref, **how))


def _carried_out(caller: Caller, applied: Applied) -> Applied:
    if not applied.replayed:
        caller.services.metrics.count(applied)
    if applied.held is not None:
        raise ApiError(
            409,
            "held",
            f"nothing was changed: it is held as {applied.held} ({', '.join(applied.suspicions)}) until an admin "
            "releases or drops it",
            details={"held": applied.held, "suspicions": list(applied.suspicions)},
        )
    accepted(applied.results)
    return applied


@router.post("/banks/{bank}/clear", tags=["memories"], summary="Delete every memory of a bank")
async def clear_bank(caller: Writer, named: InBank) -> s.Decision:
    """One decision with a tombstone for each; history and log stay, and `rollback` brings them back."""
    return s.Decision.of_applied(await clear(caller, named.ref(caller)))


def _with_etag(response: Response, entry: MemoryEntry) -> s.Memory:
    response.headers["ETag"] = f'"{entry.version}"'
    memory: s.Memory = s.Memory.of(entry)
    return memory


@router.get("/banks/{bank}/memories/{memory_id}/history", tags=["memories"], summary="Every version of a memory")
async def history(memory_id: str, caller: Reader, named: InBank) -> s.HistoryResponse:
    """Oldest first, the tombstone included."""
    versions = await caller.bank("history", named.ref(caller), memory_id)
    return s.HistoryResponse(versions=[s.Memory.of(v) for v in versions])


# ---------------------------------------------------------------------------------------------------------- the log


@router.get("/banks/{bank}/log", tags=["log"], summary="Decisions of a bank")
async def log(caller: Reader, named: InBank, after: Offset = 0, limit: Limit = 100) -> s.LogResponse:
    """Every decision with every operation, rejected ones included, after a sequence number."""
    records, seq = await caller.bank("log", named.ref(caller), after, limit)
    return s.LogResponse(records=[s.Record.of(r) for r in records], seq=seq)


@router.post("/banks/{bank}/rollback", tags=["log"], summary="Go back to a decision")
async def rollback(body: s.RollbackRequest, caller: Writer, named: InBank) -> s.Reverted:
    """Every entry gets back what it said then. A decision of its own: it can be rolled back."""
    caller.must_be_trusted()
    changed, seq = await caller.bank("rollback", named.ref(caller), body.seq, actor=caller.principal.name, time=now())
    return s.Reverted(changed=changed, seq=seq)


@router.post("/banks/{bank}/undo", tags=["log"], summary="Undo what came from one source")
async def undo(body: s.UndoRequest, caller: Writer, named: InBank) -> s.Reverted:
    """What others have changed since stays. Every write carries `request:<id>` and `key:<id>` as sources."""
    caller.must_be_trusted()
    changed, seq = await caller.bank("undo", named.ref(caller), body.source, actor=caller.principal.name, time=now())
    return s.Reverted(changed=changed, seq=seq)


@router.post("/banks/{bank}/erase", tags=["log"], summary="Erase memories for good")
async def erase(body: s.EraseRequest, caller: Administrator, named: InBank) -> s.Erased:
    """Takes their content out of entries, history, log, index and files. Cannot be undone."""
    found = await caller.bank("erase", named.ref(caller), body.ids, actor=caller.principal.name, time=now())
    return s.Erased(entries=list(found.entries), rewritten=list(found.rewritten), also_in=list(found.also_in))


@router.get(
    "/banks/{bank}/export",
    tags=["log"],
    summary="A bank as JSON lines",
    response_class=Response,
    responses={200: {"content": {"application/jsonl": {"schema": {"type": "string"}}}}},
)
async def export(caller: Reader, named: InBank) -> Response:
    """The whole log, hash by hash, as `memr1 bank export` writes it."""
    exported = await caller.bank("export", named.ref(caller))
    return Response(exported, media_type="application/jsonl")


@router.post(
    "/banks/{bank}/import",
    tags=["log"],
    summary="A bank from JSON lines",
    status_code=201,
    openapi_extra={"requestBody": {"required": True, "content": {"application/jsonl": {"schema": {"type": "string"}}}}},
)
async def bring_in(request: Request, caller: Administrator, named: InBank) -> s.BankInfo:
    """What `export` gave, as a new bank of this name; 409 when it is there, 422 when a line was cut or changed."""
    ref = named.ref(caller)
    await caller.bank("bring_in", ref, await request.body())
    return await _info(caller, ref)


# ------------------------------------------------------------------------------------------------------- quarantine


@router.get("/quarantine", tags=["quarantine"], summary="Writes that wait for an operator")
async def quarantine(caller: Administrator, named: InScope, offset: Offset = 0, limit: Limit = 100) -> s.HeldPage:
    """Of the scope and of narrower ones, oldest first: what the guards held, and why."""
    held, total = await caller.bank("held", named.scope(caller), offset, limit)
    return s.HeldPage(held=[s.HeldWrite.of(h) for h in held], total=total, offset=offset)


@router.post("/quarantine/{held_id}/release", tags=["quarantine"], summary="Make a decision that was held")
async def release(held_id: str, caller: Administrator) -> s.Decision:
    """As a trusted one. When the bank rejects it now, because it has changed since, it stays held."""
    applied = await caller.bank("release", held_id, actor=caller.principal.name, time=now())
    caller.services.metrics.count(applied)
    return s.Decision.of_applied(applied)


@router.delete("/quarantine/{held_id}", tags=["quarantine"], summary="Drop a decision that was held", status_code=204)
async def drop_held(held_id: str, caller: Administrator) -> Response:
    """For good."""
    await caller.bank("drop_held", held_id, actor=caller.principal.name)
    return Response(status_code=204)


# ---------------------------------------------------------------------------------------------------------- answers


@router.post("/answer", tags=["answer"], summary="Answer a question from memory")
async def answer(body: s.AnswerRequest, caller: Reader) -> s.AnswerResponse:
    """Retrieves, lets the answerer choose what to use, and answers. `selected` is what the answer rests on."""
    agents = caller.services.agent()
    scope = caller.within(body.user_id, body.agent_id, body.run_id)
    refs = await banks_of(caller, scope, body.bank)
    found = await agents.answer(
        caller.scope, refs, body.question, top_k=body.top_k, filters=body.filters, as_of=body.as_of
    )
    return _answer(body.question, found, agents.label)


async def banks_of(caller: Caller, scope: Scope, name: str | None) -> list[BankRef]:
    """The one bank that was named, else every bank of a scope; 404 when there is none."""
    refs: list[BankRef] = await caller.bank("names", scope, name)
    if not refs:
        raise not_found("the bank")
    if len(refs) > s.MAX_BATCH:
        raise ApiError(413, "too_many_banks", f"{len(refs)} banks are in this scope; name one, or a narrower scope")
    return refs


def _answer(question: str, found: Answered, model: str) -> s.AnswerResponse:
    return s.AnswerResponse(
        question=question,
        answer=found.text,
        error=found.error,
        selected=[s.Found.of_hit(ref, hit) for ref, hit in found.selected],
        retrieved=[s.Found.of_hit(ref, hit) for ref, hit in found.retrieved[: found.shown]],
        model=model,
        weight_version=found.weight_version,
        usage={"prompt_tokens": found.prompt_tokens, "completion_tokens": found.completion_tokens},
    )
