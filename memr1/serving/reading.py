"""What can be asked of banks: nothing here changes one, and every call may be made again."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memr1.envs.deciding import related_entries
from memr1.errors import MemR1Error
from memr1.memory.bank import BankStats
from memr1.memory.filters import compile_filters
from memr1.memory.oplog import LogRecord
from memr1.memory.scopes import Scope
from memr1.memory.state import BankRules
from memr1.memory.store import BankStore
from memr1.memory.types import Hit, MemoryEntry
from memr1.serving.errors import as_api_error, not_found
from memr1.serving.known import KnownBanks
from memr1.serving.refs import BankRef


class BankReader:
    """Banks of all tenants. Thread-safe. What names a bank takes the principal's scope first and stays within it."""

    def __init__(self, store: BankStore, known: KnownBanks) -> None:
        self._store, self._known = store, known

    def names(self, principal: Scope, within: Scope, name: str | None = None) -> list[BankRef]:
        """Banks of a scope and of narrower ones, sorted; with a name, only the one of exactly this scope, if there."""
        self._check(principal, within)
        if name is not None:
            return [ref] if (ref := BankRef(within, name)) in self._known else []
        return self._known.within(within)

    def stats(self, principal: Scope, ref: BankRef) -> tuple[BankStats, BankRules]:
        """Counts and limits of a bank."""
        bank = self._bank(principal, ref)
        return bank.stats(), bank.rules

    def get(self, principal: Scope, ref: BankRef, entry_id: str) -> MemoryEntry:
        """The live entry of an id; 404 when there is none."""
        entry = self._bank(principal, ref).get(entry_id)
        if entry is None:
            raise not_found("the memory")
        return entry

    def entries(
        self,
        principal: Scope,
        ref: BankRef,
        offset: int,
        limit: int,
        deleted: bool = False,
        as_of: str | None = None,
    ) -> tuple[list[MemoryEntry], int]:
        """A page of entries in order of ADD, and how many there are. deleted: tombstones, too. as_of: those that were
        live then instead, as they were worded."""
        bank = self._bank(principal, ref)
        if as_of is not None:
            found = bank.entries_at(as_of)
        else:
            found = bank.newest_versions() if deleted else bank.entries()
        return found[offset : offset + limit], len(found)

    def listed(
        self, principal: Scope, refs: Sequence[BankRef], filters: Mapping[str, Any] | None, offset: int, limit: int
    ) -> tuple[list[tuple[BankRef, MemoryEntry]], int]:
        """A page of the entries of several banks that pass a filter, and how many do."""
        try:
            matches = None if filters is None else compile_filters(filters)
        except MemR1Error as error:
            raise as_api_error(error) from error
        found = [
            (ref, entry)
            for ref in refs
            for entry in self._bank(principal, ref).entries()
            if matches is None or matches(entry)
        ]
        return found[offset : offset + limit], len(found)

    def history(self, principal: Scope, ref: BankRef, entry_id: str) -> list[MemoryEntry]:
        """Every version of an entry, oldest first; 404 when there never was one."""
        versions = self._bank(principal, ref).history(entry_id)
        if not versions:
            raise not_found("the memory")
        return versions

    def log(self, principal: Scope, ref: BankRef, after: int, limit: int) -> tuple[list[LogRecord], int]:
        """Decisions after a sequence number, and the newest number."""
        log = self._bank(principal, ref).log
        return [r for r in log if after < r.seq <= after + limit], log.seq

    def search(
        self,
        principal: Scope,
        refs: Sequence[BankRef],
        query: str,
        k: int,
        *,
        filters: Mapping[str, Any] | None = None,
        by: str = "vector",
        as_of: str | None = None,
    ) -> list[tuple[BankRef, Hit]]:
        """The k nearest entries of several banks together, best first. 404 when one of them is not there."""
        found: list[tuple[BankRef, Hit]] = []
        for ref in refs:
            bank = self._bank(principal, ref)
            try:
                hits = bank.search(query, k, filters=filters, by=by, as_of=as_of)
            except MemR1Error as error:
                raise as_api_error(error) from error
            found += [(ref, hit) for hit in hits]
        return sorted(found, key=lambda pair: -pair[1].score)[:k]

    def related(self, principal: Scope, ref: BankRef, facts: Sequence[str], k: int) -> tuple[list[MemoryEntry], int]:
        """What a manager is shown for new facts, and the number of decisions before; nothing of a bank that is not
        there yet."""
        bank = self._bank(principal, ref, missing_ok=True)
        if bank is None:
            return [], 0
        with bank.paused():
            return related_entries(bank, facts, k), bank.seq

    def export(self, principal: Scope, ref: BankRef) -> bytes:
        """A bank as JSON lines, as `memr1 bank export` writes them."""
        bank = self._bank(principal, ref)
        with tempfile.TemporaryDirectory() as folder:
            bank.dump(Path(folder) / "bank.jsonl")
            return (Path(folder) / "bank.jsonl").read_bytes()

    def embed(self, texts: Sequence[str]) -> tuple[str, list[list[float]]]:
        """Name of the embedder, and a vector for each text. Nothing is kept."""
        embedder = self._store.embedder
        return embedder.name, [embedder.embed_query(text).tolist() for text in texts]

    def _check(self, principal: Scope, scope: Scope) -> None:
        if not principal.covers(scope):
            raise not_found("the bank")

    def _bank(self, principal: Scope, ref: BankRef, missing_ok: bool = False) -> Any:
        """The bank; 404 for one that is not there or not the principal's, None for the first if that is all right."""
        self._check(principal, ref.scope)
        if ref not in self._known:
            if missing_ok:
                return None
            raise not_found("the bank")
        try:
            return self._store.scoped(ref.scope).bank(ref.name)
        except MemR1Error as error:
            raise as_api_error(error) from error
