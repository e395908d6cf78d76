"""MemoryBank: applies decisions whole or not at all, logs every one, searches what is live, forks without copying.

Used by environments (one bank per rollout, forked from a snapshot), evaluation and serving. What each operation means
is in `state.py`; what is promised is in `docs/memory.md`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from memr1.errors import MemR1Error
from memr1.memory.bm25 import BM25Retriever
from memr1.memory.checks import check_actor, check_key, check_op, check_provenance, check_time
from memr1.memory.embed import CachedEmbedder, Embedder
from memr1.memory.erasure import Erasure, Mentions, contents, places, redacted
from memr1.memory.filters import Predicate, compile_filters, parse_moment
from memr1.memory.fusion import fuse
from memr1.memory.index import ExactIndex, IndexLost, VectorIndex, best
from memr1.memory.oplog import LogRecord, OpLog
from memr1.memory.state import BankRules, BankState, Draft, is_unicode
from memr1.memory.types import Hit, MemoryEntry, MemoryOp, OpResult, Provenance

logger = logging.getLogger(__name__)

BANK_FORMAT = "memr1-bank"
FUSED = 50
"""Ranks of each method that a hybrid search fuses, at least."""
_UNKNOWN = Provenance()


class Journal(Protocol):
    """Where a bank writes a decision before anybody sees it."""

    def __call__(self, record: LogRecord, changes: Sequence[tuple[MemoryEntry | None, MemoryEntry]]) -> None:
        """Make the record durable, with the newest version before and after of each entry it changed.

        When this raises, the bank stays as it was.
        """

    def erase(
        self, record: LogRecord, rewritten: Sequence[LogRecord], entries: Sequence[MemoryEntry], texts: frozenset[str]
    ) -> None:
        """Make the record durable, let these records and entries replace those of their numbers and ids, and drop the
        vectors of the texts. When this raises, the bank stays as it was."""

    def wipe(self) -> None:
        """Leave no copy of what was erased in places that were given up. `MemR1Error` when that cannot be done now."""


@dataclass(frozen=True)
class Snapshot:
    """A bank at one moment. Shares everything with the bank, changes with nothing, and can be pickled."""

    bank_id: str
    rules: BankRules
    state: BankState
    log: OpLog

    @property
    def seq(self) -> int:
        """Sequence number of the last decision in it."""
        return self.log.seq


@dataclass(frozen=True)
class BankStats:
    """Counts over the whole log of a bank, and its size."""

    seq: int
    """Decisions in the log."""
    live: int
    """Entries that a search can find."""
    deleted: int
    """Tombstones."""
    erased: int
    """Entries whose content is gone for good."""
    decisions_rejected: int
    """Decisions of which no operation was applied."""
    events: dict[str, int]
    """Operations that were applied, by event (ADD, UPDATE, DELETE, NOOP)."""
    unchanged: int
    """Those UPDATEs among them that said what already stood."""
    rejected: dict[str, int]
    """Operations that were rejected, by reason code; 0 of a code is left out."""


class MemoryBank:
    """One memory. Thread-safe: every method sees whole decisions only. It has no clock: times are the caller's."""

    def __init__(
        self,
        bank_id: str,
        embedder: Embedder,
        index: str | VectorIndex = "exact",
        rules: BankRules | None = None,
        journal: Journal | None = None,
    ) -> None:
        """An empty bank.

        embedder: is wrapped in a `CachedEmbedder` unless it is one; forks share it.
        index: `exact`, `chroma` (in memory), or an index, such as `ChromaIndex(bank_id, path=…)`.
        journal: called with every decision before it takes effect; `memr1.memory.store` passes one. Forks have none.
        """
        if not isinstance(bank_id, str) or not bank_id or not is_unicode(bank_id):
            raise MemR1Error(f"bank_id: expected a text that is not empty, got {bank_id!r}")
        self.bank_id = bank_id
        self.rules = rules if rules is not None else BankRules()
        self.embedder = embedder if isinstance(embedder, CachedEmbedder) else CachedEmbedder(embedder)
        self.journal = journal
        """Where decisions are written before they take effect; None for a bank that lives in memory."""
        self._lock = threading.RLock()
        self._state = BankState()
        self._log = OpLog()
        self._index = _make_index(index, bank_id)
        self._lost: VectorIndex | None = None
        """The bank's own index, while it cannot be used and an exact one stands in."""
        self._to_add: dict[str, str] = {}
        """Index key to text, for live versions that the index has not seen."""
        self._to_remove: set[str] = set()
        self._words: tuple[tuple[MemoryEntry, ...], BM25Retriever] | None = None
        """Live entries and BM25 over them: made when first asked for, and again after a change."""
        self._mark_all()

    def apply(
        self,
        ops: Sequence[MemoryOp],
        *,
        provenance: Provenance = _UNKNOWN,
        time: str | None = None,
        event_time: str | None = None,
        on_reject: str = "abort",
        actor: str | None = None,
        idempotency_key: str | None = None,
    ) -> list[OpResult]:
        """Apply one decision and log it; one result for each operation, in order.

        on_reject: with `abort`, one rejected operation rejects all; with `skip`, the others are applied. Each operation
            sees the effect of those before it.
        time: when this is decided, event_time: when it happened (default `time`); ISO 8601.
        actor: who decides; default the provenance's role.
        idempotency_key: names this decision. When it was made before, its results are returned and nothing happens, so
            a caller that got no answer can ask again.
        `MemR1Error`, with nothing applied and nothing logged, when an argument has the wrong type, when the key was
        used for other operations, or when a bank of a store cannot write.
        """
        if on_reject not in ("abort", "skip"):
            raise MemR1Error(f"on_reject: expected 'abort' or 'skip', got {on_reject!r}")
        checked = [check_op(op, f"ops[{i}]") for i, op in enumerate(ops)]
        provenance = check_provenance(provenance)
        check_time(time, "time")
        check_time(event_time, "event_time")
        check_actor(actor)
        check_key(idempotency_key)
        with self._lock:
            if idempotency_key is not None and idempotency_key in self._state.decided:
                earlier = self._state.decided[idempotency_key]
                if not _same_decision(earlier.ops, checked):
                    raise MemR1Error(
                        f"idempotency_key: {idempotency_key!r} was used for other operations in decision "
                        f"{earlier.seq}; give every decision a key of its own"
                    )
                return list(earlier.results)
            draft = Draft(self._state, self.rules, provenance=provenance, time=time, event_time=event_time)
            results = []
            for op in checked:
                results.append(draft.run(op))
                if on_reject == "abort" and not results[-1].ok:
                    results = _abort(checked, results[-1], at=len(results))
                    draft.discard()
                    break
            record = LogRecord(
                seq=self._log.seq + 1,
                results=tuple(results),
                provenance=provenance,
                time=time,
                event_time=event_time,
                actor=actor if actor is not None else provenance.role,
                on_reject=on_reject,
                idempotency_key=idempotency_key,
            )
            self._decide(record, draft)
            return results

    def rollback(
        self, seq: int, *, provenance: Provenance = _UNKNOWN, time: str | None = None, actor: str | None = None
    ) -> list[str]:
        """Give every entry the content it had after decision `seq`; returns the ids of those that changed.

        This is a decision of its own, logged like any other: nothing leaves the log, versions go on counting, and what
        was rolled back can be had again with another roll back.
        """
        if not isinstance(seq, int) or isinstance(seq, bool):
            raise MemR1Error(f"seq: expected the number of a decision, got {seq!r}")
        with self._lock:
            then = MemoryBank.replay(self._log.prefix(seq), self.embedder)._state
            wanted = []
            for entry_id, chain in self._state.versions.items():
                version = len(then.versions.get(entry_id, ()))
                if chain[-1].status == "erased":
                    continue
                if version < len(chain) and not _same_content(chain[-1], chain[version - 1] if version else None):
                    wanted.append((entry_id, version))
            return self._revert(wanted, provenance, time, actor)

    def undo(
        self, turn_id: str, *, provenance: Provenance = _UNKNOWN, time: str | None = None, actor: str | None = None
    ) -> list[str]:
        """Undo what came from one source: every entry whose newest content a decision with this turn wrote gets back
        what it said before, or is deleted when it said nothing. Returns the ids of those that changed.

        A decision of its own, like `rollback`. Entries that others have changed since stay as they are. `MemR1Error`
        when another entry says meanwhile what an entry would go back to.
        """
        with self._lock:
            wanted = []
            for entry_id, chain in self._state.versions.items():
                if chain[-1].status == "erased":
                    continue
                version = self._origin(entry_id, len(chain))
                while version and turn_id in chain[version - 1].provenance.turn_ids:
                    version = self._origin(entry_id, version - 1)
                if version < len(chain) and not _same_content(chain[-1], chain[version - 1] if version else None):
                    wanted.append((entry_id, version))
            return self._revert(wanted, provenance, time, actor)

    def _origin(self, entry_id: str, version: int) -> int:
        """Past what reverts wrote: what came before a content that was had again is what came before it at first."""
        while (entry_id, version) in self._state.origins:
            version = self._state.origins[entry_id, version]
        return version

    def _revert(
        self, wanted: Sequence[tuple[str, int]], provenance: Provenance, time: str | None, actor: str | None
    ) -> list[str]:
        provenance = check_provenance(provenance)
        check_time(time, "time")
        check_actor(actor)
        if not wanted:
            return []
        draft = Draft(self._state, self.rules, provenance=provenance, time=time, event_time=None)
        draft.revert(wanted)
        record = LogRecord(
            seq=self._log.seq + 1,
            results=(),
            provenance=provenance,
            time=time,
            actor=actor if actor is not None else provenance.role,
            reverts=tuple(wanted),
        )
        self._decide(record, draft)
        return [entry_id for entry_id, _ in wanted]

    def erase(
        self,
        entry_ids: Sequence[str],
        *,
        provenance: Provenance = _UNKNOWN,
        time: str | None = None,
        actor: str | None = None,
    ) -> Erasure:
        """Take the content of entries out of everything: all their versions, the log, the index, kept vectors.

        That they were there, when, and from which turn stays on record. This cannot be undone or rolled back. The
        result says where else in the bank one of the texts stands. A store writes its whole database anew, which takes
        its time. Forks, snapshots and files that were made before are copies and keep what they hold.
        `MemR1Error` for an id never given out, or when old pages cannot be wiped now: ask again then.
        """
        provenance = check_provenance(provenance)
        check_time(time, "time")
        check_actor(actor)
        if isinstance(entry_ids, str):
            raise MemR1Error(f"entry_ids: expected several ids, got {entry_ids!r}; write [{entry_ids!r}]")
        with self._lock:
            for entry_id in entry_ids:
                if entry_id not in self._state.versions:
                    raise MemR1Error(f"{entry_id}: was never in bank {self.bank_id!r}; nothing was erased")
            wanted = tuple(
                i for i in dict.fromkeys(entry_ids) if any(e.text or e.metadata for e in self._state.versions[i])
            )
            rewritten: list[LogRecord] = []
            also_in: tuple[str, ...] = ()
            if wanted:
                texts = contents(e for i in wanted for e in self._state.versions[i])
                mentions = Mentions(texts)
                log, rewritten = redacted(self._log, wanted, mentions)
                record = LogRecord(
                    seq=log.seq + 1,
                    results=(),
                    provenance=provenance,
                    time=time,
                    actor=actor if actor is not None else provenance.role,
                    erases=wanted,
                )
                log.append(record)
                after = MemoryBank.replay(log, self.embedder)._state
                if self.journal is not None:
                    self.journal.erase(record, rewritten, [after.versions[i][-1] for i in wanted], texts)
                self._erase_from_index([e for i in wanted for e in self._state.versions[i]])
                self._log, self._state, self._words = log, after, None
                self._mark_all()
                self.sync()
                also_in = places(log, self.newest_versions(), mentions)
            self.embedder.forget()
            if self.journal is not None:
                # also when nothing is left to erase: an erasure whose wiping failed is finished by asking again
                try:
                    self.journal.wipe()
                except MemR1Error as error:
                    where = f" (also said in {', '.join(also_in)}, which stays)" if also_in else ""
                    raise MemR1Error(f"{error}{where}") from error
            return Erasure(wanted, tuple(r.seq for r in rewritten), also_in)

    def _erase_from_index(self, versions: Sequence[MemoryEntry]) -> None:
        keys = [self._key(e) for e in versions if e.text]
        for index in (self._index, self._lost):
            if index is not None:
                try:
                    index.erase(keys)
                except IndexLost as error:  # whatever it still holds goes when it is made again
                    self._stand_in(error)

    def purge(
        self,
        deleted_before: str,
        *,
        provenance: Provenance = _UNKNOWN,
        time: str | None = None,
        actor: str | None = None,
    ) -> Erasure:
        """Erase the entries that were deleted before a time (ISO 8601): the end of their retention. Tombstones without
        a time stay: nobody knows how old they are."""
        check_time(deleted_before, "deleted_before")
        moment = parse_moment(deleted_before)
        with self._lock:
            old = [
                entry_id
                for entry_id, chain in self._state.versions.items()
                if chain[-1].status == "deleted"
                and chain[-1].updated_at is not None
                and parse_moment(chain[-1].updated_at) < moment
            ]
            if not old:
                return Erasure((), ())  # an erasure rewrites the whole database of a store
            return self.erase(old, provenance=provenance, time=time, actor=actor)

    def _decide(self, record: LogRecord, draft: Draft) -> None:
        if self.journal is not None:
            self.journal(record, draft.changes())  # on disk before anybody can see it
        self._log.append(record)
        self._settle(record, draft)

    def get(self, entry_id: str) -> MemoryEntry | None:
        """The live entry of an id; None when there is none (never was, or deleted)."""
        with self._lock:
            entry = self._state.newest(entry_id)
            return entry if entry is not None and entry.status == "live" else None

    def entries(self) -> list[MemoryEntry]:
        """Live entries in order of ADD."""
        with self._lock:
            return list(self._state.entries())

    def newest_versions(self) -> list[MemoryEntry]:
        """The newest version of every entry ever added, tombstones included, in order of ADD."""
        with self._lock:
            return [chain[-1] for chain in self._state.versions.values()]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No other thread reads or changes the bank meanwhile."""
        with self._lock:
            yield

    def history(self, entry_id: str) -> list[MemoryEntry]:
        """Every version of an entry, oldest first, its tombstone included; empty for an id never given out."""
        with self._lock:
            return list(self._state.versions.get(entry_id, ()))

    def sources(self, entry_id: str) -> tuple[str, ...]:
        """Turn ids behind all versions of an entry, first mention first (an UPDATE usually keeps part of the old)."""
        return tuple(dict.fromkeys(turn for entry in self.history(entry_id) for turn in entry.provenance.turn_ids))

    def __len__(self) -> int:
        with self._lock:
            return len(self._state.live)  # live contents are unique, so there are as many as live entries

    @property
    def seq(self) -> int:
        """Number of decisions so far, rejected ones included."""
        with self._lock:
            return self._log.seq

    def decision(self, idempotency_key: str) -> LogRecord | None:
        """The decision that was made under a key; None when there was none."""
        with self._lock:
            return self._state.decided.get(idempotency_key)

    @property
    def log(self) -> OpLog:
        """The log so far; what the bank does later is not in it."""
        with self._lock:
            return self._log.fork()

    def stats(self) -> BankStats:
        """Counts of events, rejections and entries."""
        with self._lock:
            applied = dict(self._state.applied)
            unchanged = applied.pop("UPDATE_UNCHANGED", 0)
            live = len(self._state.live)
            erased = sum(chain[-1].status == "erased" for chain in self._state.versions.values())
            return BankStats(
                seq=self._log.seq,
                live=live,
                deleted=len(self._state.versions) - live - erased,
                erased=erased,
                decisions_rejected=self._state.decisions["rejected"],
                events=applied,
                unchanged=unchanged,
                rejected=dict(self._state.rejected),
            )

    def search(
        self,
        query: str,
        k: int,
        *,
        filters: Mapping[str, Any] | None = None,
        by: str = "vector",
        as_of: str | None = None,
    ) -> list[Hit]:
        """The k live entries that fit a query best, best first, ties in order of ADD.

        by: `vector` is cosine similarity, `words` BM25 (entries that share no word are no hits), `hybrid` both, fused
            by reciprocal rank; the score of a hit is the method's own.
        filters: see `memr1.memory.filters`. Fewer than k hits only when fewer entries are there.
        as_of: ISO 8601 time; searches what the bank held then, by the times that its decisions were given. A version
            without a time counts as there from the beginning.
        """
        if not isinstance(query, str) or not query.strip() or not is_unicode(query):
            raise MemR1Error(f"query: expected a text that is not empty, got {query!r}")
        if not isinstance(k, int) or k < 1:
            raise MemR1Error(f"k: expected an integer of at least 1, got {k!r}")
        if by not in ("vector", "words", "hybrid"):
            raise MemR1Error(f"by: expected 'vector', 'words' or 'hybrid', got {by!r}")
        matches = compile_filters(filters) if filters is not None else None
        with self._lock:
            if as_of is not None:
                return self._search_then(query, k, matches, by, as_of)
            if by == "vector":
                return self._nearest(query, k, matches)
            deep = max(k, FUSED)
            worded = self._worded(query, deep if by == "hybrid" else k, matches)
            if by == "words":
                return worded
            return _fused([self._nearest(query, deep, matches), worded], k)

    def _nearest(self, query: str, k: int, matches: Predicate | None) -> list[Hit]:
        if not self._state.live:
            return []
        try:
            return self._ask_index(query, k, matches)
        except IndexLost as error:
            self._stand_in(error)
            return self._ask_index(query, k, matches)

    def _stand_in(self, error: IndexLost) -> None:
        logger.warning("bank %r searches without its index until rebuild_index(): %s", self.bank_id, error)
        if self._lost is None:
            self._lost = self._index
        self._index = ExactIndex()
        self._mark_all()

    def _ask_index(self, query: str, k: int, matches: Predicate | None) -> list[Hit]:
        self.sync()
        allowed = None if matches is None else {self._key(e) for e in self._state.entries() if matches(e)}
        vector = self.embedder.embed_query(query)
        while True:
            found = self._index.query(vector, k, allowed)
            entries = [self._resolve(key) for key, _ in found]
            stale = [key for (key, _), entry in zip(found, entries, strict=True) if entry is None]
            if not stale:
                return [Hit(e, score) for e, (_, score) in zip(entries, found, strict=True) if e is not None]
            self._index.remove(stale)

    def _worded(self, query: str, k: int, matches: Predicate | None) -> list[Hit]:
        if self._words is None:
            entries = tuple(self._state.entries())
            self._words = (entries, BM25Retriever([e.text for e in entries]))
        entries, retriever = self._words
        return _by_words(query, k, entries, retriever, matches)

    def _search_then(self, query: str, k: int, matches: Predicate | None, by: str, as_of: str) -> list[Hit]:
        entries = [e for e in self.entries_at(as_of) if matches is None or matches(e)]
        if not entries:
            return []
        by_key = {self._key(e): e for e in entries}
        vectors = self.embedder.embed([e.text for e in entries])
        deep = k if by == "vector" else max(k, FUSED)
        nearest = [
            Hit(by_key[key], score)
            for key, score in best(list(by_key), vectors, self.embedder.embed_query(query), deep)
        ]
        if by == "vector":
            return nearest
        worded = _by_words(query, deep, entries, BM25Retriever([e.text for e in entries]), None)
        return worded[:k] if by == "words" else _fused([nearest, worded], k)

    def entries_at(self, as_of: str) -> list[MemoryEntry]:
        """Live entries as the bank held them at a time, in order of ADD; see `search`."""
        check_time(as_of, "as_of")
        moment = parse_moment(as_of)
        then = []
        with self._lock:
            for chain in self._state.versions.values():
                if chain[-1].status == "erased":
                    continue
                known = [e for e in chain if e.updated_at is None or parse_moment(e.updated_at) <= moment]
                if known and known[-1].status == "live":
                    then.append(known[-1])
        return then

    def sync(self) -> None:
        """Embed what the index has not seen, in one batch. `search` does it; do it before forking to share the work."""
        with self._lock:
            try:
                self._feed()
            except IndexLost as error:
                self._stand_in(error)
                self._feed()

    def _feed(self) -> None:
        vectors = self.embedder.embed(list(self._to_add.values())) if self._to_add else None
        self._index.remove(self._to_remove)
        if vectors is not None:
            self._index.add(list(self._to_add), vectors)
        self._to_add, self._to_remove = {}, set()

    @property
    def index_lag(self) -> int:
        """Entries that the next search has to tell its index of first."""
        with self._lock:
            return len(self._to_add) + len(self._to_remove)

    def rebuild_index(self) -> None:
        """Empty the index and feed it again from the entries. One that was lost is asked again; `IndexLost` when it
        still cannot be used, and searches go on without it."""
        with self._lock:
            if self._lost is not None:
                stand_in, self._index = self._index, self._lost
                try:
                    self._mark_all()
                    self._feed()
                    self._index.remove(self._index.ids())
                except IndexLost:
                    self._index = stand_in
                    self._mark_all()
                    raise
                self._lost = None
            self._index.remove(self._index.ids())
            self._mark_all()
            self._feed()

    def fork(self, bank_id: str | None = None) -> MemoryBank:
        """A bank that is equal now and independent from now on; copies no entry and embeds nothing."""
        with self._lock:
            other = MemoryBank(bank_id if bank_id is not None else self.bank_id, self.embedder, rules=self.rules)
            try:
                index = self._index.fork()
            except IndexLost as error:
                self._stand_in(error)
                index = self._index.fork()
            other._state, other._log, other._index = self._state.fork(), self._log.fork(), index
            other._to_add, other._to_remove = dict(self._to_add), set(self._to_remove)
            return other

    def snapshot(self) -> Snapshot:
        """The bank as it is now."""
        with self._lock:
            return Snapshot(self.bank_id, self.rules, self._state.fork(), self._log.fork())

    def restore(self, snapshot: Snapshot) -> None:
        """Become what the snapshot says: entries, log, counts and rules. What came after it is gone here; keep a
        snapshot or a fork to return to it. `MemR1Error` for a bank of a store, whose log only grows."""
        if self.journal is not None:
            raise MemR1Error(
                f"bank {self.bank_id!r} belongs to a store, whose log only grows; restore the snapshot as a bank of "
                "its own with MemoryBank.from_snapshot"
            )
        with self._lock:
            self.rules = snapshot.rules
            self._state, self._log = snapshot.state.fork(), snapshot.log.fork()
            self._words = None
            self._mark_all()

    @classmethod
    def from_snapshot(
        cls, snapshot: Snapshot, embedder: Embedder, index: str | VectorIndex = "exact", bank_id: str | None = None
    ) -> MemoryBank:
        """A new bank that stands where the snapshot does."""
        bank = cls(bank_id if bank_id is not None else snapshot.bank_id, embedder, index, snapshot.rules)
        bank.restore(snapshot)
        return bank

    @classmethod
    def replay(
        cls,
        log: OpLog,
        embedder: Embedder,
        *,
        bank_id: str = "replay",
        index: str | VectorIndex = "exact",
        rules: BankRules | None = None,
        journal: Journal | None = None,
    ) -> MemoryBank:
        """The bank that a log leads to. What the log says was accepted or rejected stays so, whatever `rules` say now;
        `MemR1Error` names the record when it contradicts those before it."""
        bank = cls(bank_id, embedder, index, rules, journal)
        for record in log:
            draft = Draft(
                bank._state, None, provenance=record.provenance, time=record.time, event_time=record.event_time
            )
            for i, result in enumerate(record.results):
                if result.ok and draft.rerun(result) != result:
                    raise MemR1Error(
                        f"record {record.seq}, operation {i + 1}: {_describe(result.op)} is logged as applied, which "
                        "the records before it rule out; the log is not one that a bank wrote"
                    )
            try:
                draft.revert(record.reverts)
                draft.erase(record.erases)
            except MemR1Error as error:
                raise MemR1Error(f"record {record.seq}: {error}; the log is not one that a bank wrote") from error
            bank._log.append(record)
            bank._settle(record, draft)
        bank._state.hide_erased()
        bank._mark_all()  # an index that was kept on disk needs only the differences
        return bank

    def verify(self) -> None:
        """`MemR1Error` when the state is not what the log leads to, or the index not what the state says."""
        with self._lock:
            if MemoryBank.replay(self._log, self.embedder)._state != self._state:
                raise MemR1Error(f"bank {self.bank_id!r}: the state is not the replay of the log")
            if self._lost is not None:
                raise MemR1Error(f"bank {self.bank_id!r}: its index is lost, and searches do without; rebuild_index()")
            expected = {self._key(e) for e in self._state.entries()} - set(self._to_add)
            indexed = self._index.ids() - self._to_remove
            if indexed != expected:
                raise MemR1Error(
                    f"bank {self.bank_id!r}: the index lacks {len(expected - indexed)} entries and has "
                    f"{len(indexed - expected)} that are not live; call rebuild_index()"
                )

    def dump(self, path: str | os.PathLike[str]) -> None:
        """Write the bank as JSON lines, whole or not at all: a header and the log. Vectors are not in it."""
        with self._lock:
            log, rules = self._log.fork(), self.rules
        header = {
            "format": BANK_FORMAT,
            "bank_id": self.bank_id,
            "embedder": self.embedder.name,
            "rules": rules.to_json(),
        }
        log.dump(path, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str], embedder: Embedder, index: str | VectorIndex = "exact") -> MemoryBank:
        """The bank of a dumped file; `MemR1Error` names file, line and field of anything wrong with it.

        embedder: need not be the one named in the file: vectors are computed anew.
        """
        header, log = OpLog.read(path, expect=BANK_FORMAT)
        bank_id = header.take("bank_id", str)
        header.take("embedder", str)
        rules = BankRules.from_json(header.child("rules"))
        header.end()
        try:
            return cls.replay(log, embedder, bank_id=bank_id, index=index, rules=rules)
        except MemR1Error as error:
            raise MemR1Error(f"{path}: {error}") from error

    def _settle(self, record: LogRecord, draft: Draft) -> None:
        """Make the effects of a logged decision the state, and remember what the index has to learn."""
        if draft.added_versions:
            self._words = None
            changes = draft.changes()
            self._state.commit(draft)
            for before, after in changes:
                if before is not None and before.status == "live":
                    self._forget(self._key(before))
                if after.status == "live":
                    self._to_add[self._key(after)] = after.text
        self._state.count(record)

    def _forget(self, key: str) -> None:
        if self._to_add.pop(key, None) is None:
            self._to_remove.add(key)

    def _mark_all(self) -> None:
        """Compare the index with the entries and mark every difference."""
        wanted = {self._key(e): e.text for e in self._state.entries()}
        indexed = self._index.ids()
        self._to_add = {key: text for key, text in wanted.items() if key not in indexed}
        self._to_remove = indexed - set(wanted)

    def _key(self, entry: MemoryEntry) -> str:
        return index_key(entry, self.embedder.name)

    def _resolve(self, key: str) -> MemoryEntry | None:
        """The live entry of an index key; None when the key is of another version or text (a stale hit)."""
        entry = self._state.newest(key.partition("@")[0])
        return entry if entry is not None and entry.status == "live" and self._key(entry) == key else None


def _by_words(
    query: str, k: int, entries: Sequence[MemoryEntry], retriever: BM25Retriever, matches: Predicate | None
) -> list[Hit]:
    if not entries:
        return []
    ranked = retriever.query(query, k if matches is None else len(entries))
    hits = [Hit(entries[i], score) for i, score in ranked if matches is None or matches(entries[i])]
    return hits[:k]


def _fused(rankings: Sequence[Sequence[Hit]], k: int) -> list[Hit]:
    entries = {hit.entry.id: hit.entry for ranking in rankings for hit in ranking}
    return [Hit(entries[name], score) for name, score in fuse([[h.entry.id for h in r] for r in rankings], k)]


def _same_content(a: MemoryEntry, b: MemoryEntry | None) -> bool:
    """Whether two versions say the same; None and tombstones say nothing."""
    if b is None or b.status != "live" or a.status != "live":
        return a.status != "live" and (b is None or b.status != "live")
    return (a.text, a.metadata, a.kind, a.event_time) == (b.text, b.metadata, b.kind, b.event_time)


def _same_decision(earlier: Sequence[MemoryOp], ops: Sequence[MemoryOp]) -> bool:
    """Whether operations repeat a decision; what was erased from it cannot be compared."""
    return len(earlier) == len(ops) and all(
        (a.event, a.entry_id) == (b.event, b.entry_id) if a.erased else a == b
        for a, b in zip(earlier, ops, strict=True)
    )


def index_key(entry: MemoryEntry, embedder: str) -> str:
    """Name of one version of an entry in an index. The digest of text and embedder tells `m5@1` from the `m5@1` of
    another past or another model, which a restored bank or an index kept on disk may hold."""
    digest = hashlib.blake2b(f"{embedder}\n{entry.text}".encode(), digest_size=8).hexdigest()
    return f"{entry.id}@{entry.version}#{digest}"


def _make_index(index: str | VectorIndex, bank_id: str) -> VectorIndex:
    if index == "exact":
        return ExactIndex()
    if index == "chroma":
        import uuid

        from memr1.memory.chroma_index import ChromaIndex

        # all in-memory clients of a process share one database, and two banks may have one id
        return ChromaIndex(f"{bank_id}:{uuid.uuid4().hex}")
    if isinstance(index, str):
        raise MemR1Error(f"index: {index!r} is not known; use 'exact', 'chroma' or a VectorIndex")
    return index


def _abort(ops: Sequence[MemoryOp], failed: OpResult, at: int) -> list[OpResult]:
    """Results of a decision that fell with its operation number `at`, counted from 1."""
    reason = f"aborted: operation {at} of {len(ops)} ({_describe(failed.op)}) was rejected as {failed.reason}"
    return [
        failed if i == at else OpResult(op, ok=False, reason=reason, detail=failed.detail)
        for i, op in enumerate(ops, start=1)
    ]


def _describe(op: MemoryOp) -> str:
    return f"{op.event} {op.entry_id}" if op.entry_id else str(op.event)
