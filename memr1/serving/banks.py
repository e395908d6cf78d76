"""The bank service: the one owner of a store, and where every request's scope is enforced. What it is asked without
changing anything is in `memr1.serving.reading`.

Methods take plain values and return plain values, so that the owner can live in another process; `InProcess` calls it
in threads of this one, `memr1.serving.on_ray` over Ray.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import anyio.to_thread

from memr1.errors import MemR1Error
from memr1.memory.bank import BankStats, MemoryBank
from memr1.memory.embed import Embedder
from memr1.memory.erasure import Erasure, Mentions, contents
from memr1.memory.oplog import LogRecord
from memr1.memory.scopes import Scope
from memr1.memory.state import BankRules
from memr1.memory.store import BankStore
from memr1.memory.types import Event, MemoryOp, Provenance
from memr1.serving.errors import ApiError, accepted, as_api_error, not_found
from memr1.serving.guards import suspicions
from memr1.serving.jobs import Job, JobTable
from memr1.serving.known import KnownBanks
from memr1.serving.quarantine import Held, Quarantine, Wanted
from memr1.serving.reading import BankReader
from memr1.serving.refs import RELEASE_KEY, Applied, BankRef
from memr1.serving.settings import ServingConfig

logger = logging.getLogger(__name__)


class Banks(Protocol):
    """The bank service from a request handler's side."""

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """`BankService.method(*args, **kwargs)`, once it is through even where the caller stops waiting."""


class InProcess:
    """See `Banks`: threads of this process."""

    def __init__(self, service: BankService, threads: int = 32) -> None:
        self._service = service
        self._limiter: anyio.CapacityLimiter | None = None
        self._threads = threads

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """See `Banks.call`."""
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(self._threads)
        work = partial(getattr(self._service, method), *args, **kwargs)
        # a task of its own: a cancelled request must not hide from its caller's retry what was committed
        return await asyncio.shield(asyncio.ensure_future(anyio.to_thread.run_sync(work, limiter=self._limiter)))


class BankService(BankReader):
    """Banks of all tenants. Thread-safe. Every method takes the principal's scope first and stays within it."""

    def __init__(self, settings: ServingConfig, embedder: Embedder) -> None:
        """Open the store of the settings. Rules of banks that are there already stay what they were."""
        self._guards = settings.guards
        store = BankStore.open(settings.db, embedder, owner="memr1 serve", max_open=settings.max_open_banks)
        super().__init__(store, KnownBanks(settings.max_banks, store.names()))
        self._rules = BankRules(max_entries=settings.max_entries)
        # of whoever makes or drops a bank, which can wait for the database to be written anew; reads do not wait for it
        self._making = threading.RLock()
        self._jobs = JobTable(self._store, settings.job_days)
        self._quarantine = Quarantine(self._store, settings.max_held)

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    def ready(self) -> str:
        """Name of the store; `ApiError` when it cannot be read."""
        try:
            self._store.names()
        except MemR1Error as error:
            raise as_api_error(error) from error
        return self._store.where

    def gauges(self) -> dict[str, int]:
        """What metrics show of the store."""
        opened = self._store.opened()
        return {
            "banks_open": len(opened),
            "index_lag_entries": sum(bank.index_lag for bank in opened),
            "held_writes": self._quarantine.count(),
        }

    # -- making and dropping ------------------------------------------------------------------------------------

    def create(self, principal: Scope, ref: BankRef, rules: BankRules | None = None) -> None:
        """Make an empty bank; 409 when it is there."""
        self._check(principal, ref.scope)
        with self._making:
            self._known.check_new(ref)
            self._create(ref, rules)

    def _create(self, ref: BankRef, rules: BankRules | None = None) -> MemoryBank:
        self._known.check_room(ref)
        try:
            bank = self._store.scoped(ref.scope).create(ref.name, rules=rules or self._rules)
        except MemR1Error as error:
            raise as_api_error(error) from error
        self._known.add(ref)
        return bank

    def drop(self, principal: Scope, ref: BankRef) -> None:
        """Remove a bank with everything in it and everything held for it, or nothing."""
        with self._making:
            self._bank(principal, ref)
            self._known.discard(ref)
            try:
                self._store.scoped(ref.scope).drop(ref.name, partial(self._quarantine.remove_of, ref))
            except MemR1Error as error:
                if ref.scope.bank_id(ref.name) in self._store.names():
                    self._known.add(ref)
                raise as_api_error(error) from error

    # -- writing ------------------------------------------------------------------------------------------------

    def apply(
        self,
        principal: Scope,
        ref: BankRef,
        ops: Sequence[MemoryOp],
        *,
        provenance: Provenance,
        time: str,
        event_time: str | None = None,
        on_reject: str = "abort",
        key: str | None = None,
        create: bool = False,
        facts: Sequence[str] = (),
        speakers: Sequence[str] = (),
    ) -> Applied:
        """One decision, on disk when this returns: made, or held when the guards find it suspicious. create: make the
        bank where there is none. facts: what the decision answers. speakers: whose names stand in front of texts.

        key: idempotency key. Under one that was used before, that decision's results; 409 when it was for another
        request, as told by the last of the provenance's turn ids.
        """
        bank = self._bank(principal, ref, missing_ok=create)
        wanted = Wanted(ref, tuple(ops), provenance, time, event_time, on_reject, key, tuple(facts))
        if bank is None:
            if held := self._held(None, wanted, speakers):
                return held
            tried = self._try(None, ops, provenance=provenance, time=time, on_reject=on_reject)
            if not any(r.ok for r in tried.results):
                return tried  # nothing to keep, so no bank to keep it in
            with self._making:
                bank = self._bank(principal, ref, missing_ok=True)
                if bank is None:
                    bank = self._create(ref)
        return self._decide(bank, wanted, speakers)

    def clear(
        self, principal: Scope, ref: BankRef, *, provenance: Provenance, time: str, key: str | None = None
    ) -> Applied:
        """Delete every entry in one decision; see `apply`."""
        bank = self._bank(principal, ref)
        with bank.paused():
            ops = tuple(MemoryOp(Event.DELETE, entry_id=entry.id) for entry in bank.entries())
            return self._decide(bank, Wanted(ref, ops, provenance, time, None, "abort", key, ()))

    def _decide(self, bank: MemoryBank, wanted: Wanted, speakers: Sequence[str] = ()) -> Applied:
        with bank.paused():
            if wanted.key is not None and (earlier := bank.decision(wanted.key)) is not None:
                return _replayed(earlier, wanted.provenance)
            if held := self._held(bank, wanted, speakers):
                return held
            try:
                results = bank.apply(
                    wanted.ops,
                    provenance=wanted.provenance,
                    time=wanted.time,
                    event_time=wanted.event_time,
                    on_reject=wanted.on_reject,
                    idempotency_key=wanted.key,
                )
            except MemR1Error as error:
                raise as_api_error(error) from error
            return Applied(bank.seq, tuple(results))

    def decided(self, principal: Scope, ref: BankRef, key: str, provenance: Provenance) -> Applied | None:
        """What was decided under an idempotency key; None when nothing was. 409 when it was for another request."""
        bank = self._bank(principal, ref, missing_ok=True)
        earlier = None if bank is None else bank.decision(key)
        if earlier is not None:
            return _replayed(earlier, provenance)
        held = self._quarantine.find(ref, key)
        return None if held is None else _as_held(held, provenance)

    def trial(
        self,
        principal: Scope,
        ref: BankRef,
        ops: Sequence[MemoryOp],
        *,
        provenance: Provenance,
        time: str,
        on_reject: str = "abort",
        facts: Sequence[str] = (),
        speakers: Sequence[str] = (),
    ) -> Applied:
        """What a decision would do, on a fork that is thrown away."""
        bank = self._bank(principal, ref, missing_ok=True)
        current = bank.get if bank is not None else lambda _: None
        found = suspicions(ops, facts, provenance, current, speakers) if self._guards else []
        tried = self._try(bank, ops, provenance=provenance, time=time, on_reject=on_reject)
        return replace(tried, suspicions=tuple(found))

    def _try(self, bank: MemoryBank | None, ops: Sequence[MemoryOp], **how: Any) -> Applied:
        fork = MemoryBank("trial", self._store.embedder, rules=self._rules) if bank is None else bank.fork()
        try:
            results = fork.apply(ops, **how)
        except MemR1Error as error:
            raise as_api_error(error) from error
        return Applied(fork.seq, tuple(results))

    def rollback(self, principal: Scope, ref: BankRef, seq: int, *, actor: str, time: str) -> tuple[list[str], int]:
        """Ids of the entries that got back what they said after decision `seq`, and the number of this decision."""
        bank = self._bank(principal, ref)
        try:
            return bank.rollback(seq, actor=actor, time=time), bank.seq
        except MemR1Error as error:
            raise as_api_error(error) from error

    def undo(self, principal: Scope, ref: BankRef, source: str, *, actor: str, time: str) -> tuple[list[str], int]:
        """Ids of the entries that lost what came from a source, and the number of this decision."""
        bank = self._bank(principal, ref)
        try:
            return bank.undo(source, actor=actor, time=time), bank.seq
        except MemR1Error as error:
            raise as_api_error(error) from error

    def erase(self, principal: Scope, ref: BankRef, entry_ids: Sequence[str], *, actor: str, time: str) -> Erasure:
        """Take the content of entries out of everything, for good."""
        bank = self._bank(principal, ref)
        for entry_id in entry_ids:
            if not bank.history(entry_id):
                raise not_found("the memory")
        said = Mentions(contents(version for entry_id in entry_ids for version in bank.history(entry_id)))
        try:
            erased = bank.erase(entry_ids, actor=actor, time=time)
        except MemR1Error as error:
            raise as_api_error(error) from error
        waiting = [
            f"held write {held.id}"
            for held in self._quarantine.of_bank(ref)
            if any(said(text) for text in held.wanted.facts) or any(said(o.text, o.metadata) for o in held.wanted.ops)
        ]
        return replace(erased, also_in=(*erased.also_in, *waiting))

    def bring_in(self, principal: Scope, ref: BankRef, exported: bytes) -> BankStats:
        """A new bank from what `export` gave; 409 when there is one of this name."""
        self._check(principal, ref.scope)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "import.jsonl"
            path.write_bytes(exported)
            try:
                bank = MemoryBank.load(path, self._store.embedder)
            except MemR1Error as error:
                said = str(error).replace(str(path), "import")
                raise ApiError(422, "invalid_import", said) from error
        with self._making:
            self._known.check_new(ref)
            self._known.check_room(ref)
            try:
                kept = self._store.scoped(ref.scope).adopt(bank, ref.name)
            except MemR1Error as error:
                raise as_api_error(error) from error
            self._known.add(ref)
        return kept.stats()

    # -- held writes ------------------------------------------------------------------------------------------------

    def _held(self, bank: MemoryBank | None, wanted: Wanted, speakers: Sequence[str]) -> Applied | None:
        """Hold a decision that the guards find suspicious; None when it may be made, or when the bank would refuse it
        whoever vouched for it."""
        if not self._guards:
            return None
        current = bank.get if bank is not None else lambda _: None
        found = suspicions(wanted.ops, wanted.facts, wanted.provenance, current, speakers)
        if not found:
            return None
        if wanted.key is None or self._quarantine.find(wanted.ref, wanted.key) is None:
            vouched = replace(wanted.provenance, trusted=True)
            tried = self._try(bank, wanted.ops, provenance=vouched, time=wanted.time, on_reject=wanted.on_reject)
            if not any(result.ok for result in tried.results):
                return None
        return _as_held(self._quarantine.put(Held.of(wanted, found)), wanted.provenance)

    def held(self, principal: Scope, within: Scope, offset: int, limit: int) -> tuple[list[Held], int]:
        """Decisions of a scope and of narrower ones that wait for an operator, oldest first, and how many there are."""
        self._check(principal, within)
        found = [held for held in self._quarantine.of_tenant(within.tenant) if within.covers(held.wanted.ref.scope)]
        return found[offset : offset + limit], len(found)

    def release(self, principal: Scope, held_id: str, *, actor: str, time: str) -> Applied:
        """Make a decision that was held, as a trusted one: whoever releases it answers for it. `ApiError` when the bank
        rejects it now; then it stays held."""
        held = self._held_write(principal, held_id)
        wanted = held.wanted
        key = wanted.key or f"{RELEASE_KEY}{held_id}"
        vouched = replace(wanted.provenance, trusted=True)
        how: dict[str, Any] = {"provenance": vouched, "time": time, "on_reject": wanted.on_reject}
        with self._making:
            bank = self._bank(principal, wanted.ref, missing_ok=True)
            earlier = None if bank is None else bank.decision(key)
            if earlier is None:
                tried = self.trial(principal, wanted.ref, wanted.ops, **how).results
                if not any(result.ok for result in tried):
                    accepted(tried)  # a rejected decision would use its key up
                bank = bank or self._create(wanted.ref)
        with bank.paused():
            happened = wanted.event_time or wanted.time
            try:
                bank.apply(wanted.ops, event_time=happened, actor=actor, idempotency_key=key, **how)
            except MemR1Error as error:
                raise as_api_error(error) from error
            made = bank.decision(key)
        self._quarantine.remove(held_id)
        logger.info("held write %s was released by %s", held_id, actor)
        return Applied(made.seq, made.results)

    def drop_held(self, principal: Scope, held_id: str, *, actor: str) -> None:
        """Give up a decision that was held."""
        self._held_write(principal, held_id)
        self._quarantine.remove(held_id)
        logger.info("held write %s was dropped by %s", held_id, actor)

    def _held_write(self, principal: Scope, held_id: str) -> Held:
        held = self._quarantine.get(held_id)
        if held is None or not principal.covers(held.wanted.ref.scope):
            raise not_found("the held write")
        return held

    # -- jobs ---------------------------------------------------------------------------------------------------

    def put_job(self, tenant: str | None, job: Job) -> Job:
        """Keep a job until somebody has done it; the earlier one when there is one of this id."""
        return self._jobs.put(tenant, job)

    def job(self, principal: Scope, job_id: str) -> Job:
        """A job of this principal; 404 when there is none."""
        job = self._jobs.get(principal.tenant, job_id)
        if job is None or not principal.covers(job.scope):
            raise not_found("the job")
        return job

    def take_job(self, lease_s: float) -> Job | None:
        """The oldest job that nobody does, or whose doer went silent; it is this caller's for `lease_s`."""
        return self._jobs.take(lease_s)

    def renew_job(self, job_id: str, lease_s: float) -> None:
        """Somebody is still at a job, for `lease_s` from now on; with 0 nobody is."""
        self._jobs.renew(job_id, lease_s)

    def finish_job(self, job: Job) -> None:
        """Note what came of a job."""
        self._jobs.finish(job)


def _as_held(held: Held, provenance: Provenance) -> Applied:
    _check_same(held.wanted.provenance, provenance)
    return Applied(0, (), held=held.id, suspicions=held.suspicions)


def _check_same(earlier: Provenance, provenance: Provenance) -> None:
    if earlier.turn_ids[-1:] != provenance.turn_ids[-1:]:
        raise ApiError(
            409, "idempotency_key_reused", "the Idempotency-Key was used for another request; give each its own"
        )


def _replayed(earlier: LogRecord, provenance: Provenance) -> Applied:
    _check_same(earlier.provenance, provenance)
    return Applied(earlier.seq, earlier.results, replayed=True)
