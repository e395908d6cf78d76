"""What the operations mean: the state of a bank, the preconditions and effects of each operation, the rejection codes.

`MemoryBank` calls this with its lock held; replaying a log goes through the same code. See `docs/memory.md`.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from memr1.errors import MemR1Error
from memr1.memory.jsonl import Fields
from memr1.memory.oplog import LogRecord
from memr1.memory.overlay import Overlay
from memr1.memory.types import Event, MemoryEntry, MemoryOp, OpResult, Provenance

REASONS: dict[str, str] = {
    "missing_id": "UPDATE or DELETE without an entry id",
    "unknown_id": "the bank never gave out this id",
    "deleted_id": "the entry was deleted before",
    "version_conflict": "the entry has another version than the operation expects",
    "untrusted_source": "an untrusted source may not change or delete what a trusted one said",
    "empty_text": "ADD or UPDATE without content",
    "invalid_text": "content with a lone surrogate or a NUL",
    "too_long": "content longer than the bank allows",
    "duplicate_content": "another live entry has the same content, up to case and white space",
    "unknown_kind": "ADD of a kind that the bank does not hold",
    "kind_mismatch": "UPDATE whose kind is not the kind of the entry",
    "bank_full": "the bank holds as many live entries, or as many characters, as it may",
    "aborted": "nothing wrong with this operation, but another one of its decision was rejected",
}
"""Every reason for which an operation is rejected. The codes are stable: logs, metrics and clients rely on them."""


@dataclass(frozen=True)
class BankRules:
    """What a bank accepts."""

    max_chars: int = 4096
    """Longest content of one entry, in characters; longer is rejected as `too_long`."""
    max_entries: int | None = None
    """Most live entries; ADD beyond is rejected as `bank_full`. None means no limit."""
    max_total_chars: int | None = None
    """Most characters in all live entries; ADD or UPDATE beyond is rejected as `bank_full`. None means no limit."""
    kinds: tuple[str, ...] = ("text",)
    """Kinds of payload that may be added."""

    def __post_init__(self) -> None:
        numbers = [
            ("max_chars", self.max_chars),
            ("max_entries", self.max_entries if self.max_entries is not None else 1),
            ("max_total_chars", self.max_total_chars if self.max_total_chars is not None else 1),
        ]
        for name, value in numbers:
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise MemR1Error(f"rules.{name}: expected a whole number of at least 1, got {value!r}")
        if isinstance(self.kinds, str) or not all(isinstance(kind, str) for kind in self.kinds):
            raise MemR1Error(f"rules.kinds: expected several texts, got {self.kinds!r}")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` gives the rules back."""
        return {**vars(self), "kinds": list(self.kinds)}

    @classmethod
    def from_json(cls, fields: Fields) -> BankRules:
        """Read what `to_json` wrote; `MemR1Error` names a field that is wrong."""
        rules = cls(
            max_chars=fields.take("max_chars", int),
            max_entries=fields.take("max_entries", int, None),
            max_total_chars=fields.take("max_total_chars", int, None) if "max_total_chars" in fields else None,
            kinds=fields.texts("kinds"),
        )
        fields.end()
        return rules


def reason_code(reason: str) -> str:
    """The code of `REASONS` that a result's reason starts with."""
    return reason.split(":", 1)[0]


def content_key(text: str) -> str:
    """What makes two contents the same: Unicode composition, case and white space do not count."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def is_unicode(text: str) -> bool:
    """False for text with lone surrogates, which JSON escapes can carry in but no index, tokenizer or file takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


class BankState:
    """Entries with all their versions, the live contents, and the counts. Mutated only through `commit` and `count`.

    `fork` shares the tables; what either writes from then on is its own (`memr1.memory.overlay`).
    """

    def __init__(self) -> None:
        self.versions: Overlay[str, tuple[MemoryEntry, ...]] = Overlay()
        """Per id in order of ADD: every version, newest last; the newest of a deleted entry is its tombstone."""
        self.live: Overlay[str, str] = Overlay()
        """Content key to id, of live entries only."""
        self.applied: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.decisions: Counter[str] = Counter()
        self.decided: Overlay[str, LogRecord] = Overlay()
        """Idempotency key to the decision that was made under it."""
        self.origins: Overlay[tuple[str, int], int] = Overlay()
        """(entry, version that a roll back or an undo wrote) to the version whose content it has; 0 for none."""
        self.chars = 0
        """Characters in all live entries."""

    def fork(self) -> BankState:
        """A state that is equal now and independent from now on."""
        other = BankState()
        other.versions, other.live = self.versions.fork(), self.live.fork()
        other.applied, other.rejected, other.decisions = (
            Counter(self.applied),
            Counter(self.rejected),
            Counter(self.decisions),
        )
        other.decided, other.origins, other.chars = self.decided.fork(), self.origins.fork(), self.chars
        return other

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BankState):
            return NotImplemented
        return (
            self.versions == other.versions
            and list(self.versions) == list(other.versions)
            and self.live == other.live
            and self.applied == other.applied
            and self.rejected == other.rejected
            and self.decisions == other.decisions
            and self.decided == other.decided
            and self.origins == other.origins
            and self.chars == other.chars
        )

    __hash__ = None  # type: ignore[assignment]  # mutable

    def entries(self) -> Iterator[MemoryEntry]:
        """Live entries in order of ADD."""
        return (chain[-1] for chain in self.versions.values() if chain[-1].status == "live")

    def newest(self, entry_id: str) -> MemoryEntry | None:
        """The newest version of an entry, its tombstone included; None for an id never given out."""
        chain = self.versions.get(entry_id)
        return chain[-1] if chain else None

    def hide_erased(self) -> None:
        """End entries that a log shows without their content, because it was cut before the record of their erasure."""
        for entry_id, chain in list(self.versions.items()):
            if chain[-1].status == "live" and not chain[-1].text:
                self.versions[entry_id] = (*chain[:-1], replace(chain[-1], status="erased"))

    def commit(self, draft: Draft) -> None:
        """Make a draft's changes the state."""
        self.chars = draft.chars
        for entry_id, added in draft.added_versions.items():
            self.versions[entry_id] = self.versions.get(entry_id, ()) + tuple(added)
        for key, owner in draft.live_changes.items():
            if owner is None:
                self.live.pop(key, None)
            else:
                self.live[key] = owner

    def count(self, record: LogRecord) -> None:
        """Count one decision that was committed and the outcome of each of its operations; remember its key and what it
        went back to."""
        results = record.results
        refused = bool(results) and not any(r.ok for r in results)
        self.decisions["rejected" if refused else "applied"] += 1
        for result in results:
            if result.ok:
                self.applied[result.op.event.value] += 1
                if result.op.event is Event.UPDATE and not result.changed:
                    self.applied["UPDATE_UNCHANGED"] += 1
            else:
                self.rejected[reason_code(result.reason or "")] += 1
        if record.idempotency_key is not None:
            self.decided[record.idempotency_key] = record
        for entry_id, version in record.reverts:
            self.origins[entry_id, len(self.versions[entry_id])] = version


class Draft:
    """One decision in the making: each operation sees those before it; nothing touches the state until `commit`."""

    def __init__(
        self,
        state: BankState,
        rules: BankRules | None,
        *,
        provenance: Provenance,
        time: str | None,
        event_time: str | None,
    ) -> None:
        """`rules` None: for replay, where what was once accepted stays accepted."""
        self.added_versions: dict[str, list[MemoryEntry]] = {}
        self.live_changes: dict[str, str | None] = {}
        self._state, self._rules = state, rules
        self._provenance, self._time = provenance, time
        self._event_time = event_time if event_time is not None else time
        self.chars = state.chars
        self._ids = len(state.versions)
        self._alive = len(state.live)

    def run(self, op: MemoryOp) -> OpResult:
        """Check one operation and, when it holds, draft its effect."""
        if op.event is Event.NOOP:
            return OpResult(op, ok=True)
        if op.event is Event.ADD:
            return self._add(op)
        target, refusal = self._target(op)
        if target is None:
            return refusal
        return self._update(op, target) if op.event is Event.UPDATE else self._delete(op, target)

    def rerun(self, result: OpResult) -> OpResult:
        """Draft again what a log says was applied. Of an operation that lost its content, the outcome is believed."""
        op = result.op
        if not op.erased or op.event not in (Event.ADD, Event.UPDATE):
            return self.run(op)
        if op.event is Event.ADD:
            return self._new(op)
        target, refusal = self._target(op)
        if target is None:
            return refusal
        return self._change(op, target, metadata={}) if result.changed else OpResult(op, ok=True, entry_id=target.id)

    def erase(self, entry_ids: Sequence[str]) -> None:
        """End entries whose content is gone from the log; `MemR1Error` for one that is not there."""
        for entry_id in entry_ids:
            newest = self._state.newest(entry_id)
            if newest is None:
                raise MemR1Error(f"{entry_id}: was never in this bank")
            if newest.status == "live":
                self._leave(newest.text)
            gone = replace(
                newest,
                text="",
                metadata={},
                status="erased",
                updated_at=self._time,
                version=newest.version + 1,
                provenance=self._provenance,
            )
            self.added_versions[entry_id] = [gone]

    def discard(self) -> None:
        """Forget what was drafted."""
        self.added_versions, self.live_changes, self.chars = {}, {}, self._state.chars

    def revert(self, wanted: Sequence[tuple[str, int]]) -> None:
        """Give entries the content of earlier versions back, as new versions; version 0, or a tombstone, deletes.

        They keep the provenance of the content. `MemR1Error`, and the draft is of no use, for an entry or version that
        is not there, when another live entry has taken the content meanwhile, or when the bank would be too full.
        """
        plan: list[tuple[MemoryEntry, MemoryEntry | None]] = []
        for entry_id, version in wanted:
            chain = self._state.versions.get(entry_id, ())
            if not chain or not 0 <= version <= len(chain):
                raise MemR1Error(f"{entry_id}: there is no version {version} to go back to")
            target = chain[version - 1] if version else None
            plan.append((chain[-1], target if target is not None and target.status == "live" else None))
        for newest, _ in plan:  # all contents are given up before any is taken
            if newest.status == "live":
                self._leave(newest.text)
        for newest, target in plan:
            if target is not None:
                if owner := self._owner(target.text):
                    raise MemR1Error(f"{newest.id}: cannot go back to {target.text!r}, which {owner} says now")
                self._take(target.text, newest.id)
            content = target if target is not None else newest
            again = replace(
                content,
                version=newest.version + 1,
                status="live" if target is not None else "deleted",
                updated_at=self._time,
                provenance=target.provenance if target is not None else self._provenance,
            )
            self.added_versions[newest.id] = [again]
        alive = self._alive + sum((t is not None) - (n.status == "live") for n, t in plan)
        if self._rules is not None and self._rules.max_entries is not None and alive > self._rules.max_entries:
            raise MemR1Error(f"the bank would hold {alive} live entries, and {self._rules.max_entries} are its limit")
        if full := self._too_many_chars():
            raise MemR1Error(full)

    def changes(self) -> list[tuple[MemoryEntry | None, MemoryEntry]]:
        """(newest version before, newest after) of each entry that changed."""
        return [(self._state.newest(entry_id), added[-1]) for entry_id, added in self.added_versions.items()]

    def _add(self, op: MemoryOp) -> OpResult:
        rules = self._rules
        if refusal := self._bad_text(op):
            return refusal
        if rules is not None and op.kind not in rules.kinds:
            return _refuse(op, "unknown_kind", f"{op.kind!r} is none of {', '.join(rules.kinds)}")
        if owner := self._owner(op.text):
            return _refuse(op, "duplicate_content", f"{owner} has this content")
        if rules is not None and rules.max_entries is not None and self._alive >= rules.max_entries:
            return _refuse(op, "bank_full", f"the bank holds {self._alive} live entries, its limit")
        if full := self._too_many_chars(len(op.text)):
            return _refuse(op, "bank_full", full)
        return self._new(op)

    def _new(self, op: MemoryOp) -> OpResult:
        self._ids += 1
        entry = MemoryEntry(
            id=f"m{self._ids}",
            text=op.text,
            created_at=self._time,
            updated_at=self._time,
            event_time=self._event_time,
            kind=op.kind,
            provenance=self._provenance,
            metadata=op.metadata,
        )
        self._alive += 1
        self._take(op.text, entry.id)
        return self._push(op, entry)

    def _update(self, op: MemoryOp, target: MemoryEntry) -> OpResult:
        if refusal := self._bad_text(op):
            return refusal
        if op.kind != target.kind:
            return _refuse(op, "kind_mismatch", f"{target.id} is of kind {target.kind!r}, not {op.kind!r}")
        owner = self._owner(op.text)
        if owner not in (None, target.id):
            return _refuse(op, "duplicate_content", f"{owner} has this content")
        metadata = {**target.metadata, **op.metadata}
        if op.text == target.text and metadata == target.metadata:
            return OpResult(op, ok=True, entry_id=target.id)
        if full := self._too_many_chars(len(op.text) - len(target.text)):
            return _refuse(op, "bank_full", full)
        return self._change(op, target, metadata)

    def _change(self, op: MemoryOp, target: MemoryEntry, metadata: dict[str, Any]) -> OpResult:
        self._leave(target.text)
        self._take(op.text, target.id)
        provenance = self._provenance
        if op.text == target.text:  # who sets metadata does not vouch for what somebody else said
            provenance = replace(provenance, trusted=provenance.trusted and target.provenance.trusted)
        entry = replace(
            target,
            text=op.text,
            updated_at=self._time,
            event_time=self._event_time,
            version=target.version + 1,
            provenance=provenance,
            metadata=metadata,
        )
        return self._push(op, entry)

    def _delete(self, op: MemoryOp, target: MemoryEntry) -> OpResult:
        self._alive -= 1
        self._leave(target.text)
        tombstone = replace(
            target,
            updated_at=self._time,
            version=target.version + 1,
            status="deleted",
            provenance=self._provenance,
        )
        return self._push(op, tombstone)

    def _target(self, op: MemoryOp) -> tuple[MemoryEntry | None, OpResult]:
        if not op.entry_id:
            return None, _refuse(op, "missing_id", f"{op.event} needs the id of an entry")
        drafted = self.added_versions.get(op.entry_id)
        target = drafted[-1] if drafted else self._state.newest(op.entry_id)
        if target is None:
            return None, _refuse(op, "unknown_id", f"{op.entry_id} was never in this bank")
        if target.status != "live":
            return None, _refuse(op, "deleted_id", f"{target.id} was {target.status} in version {target.version}")
        if op.expected_version is not None and op.expected_version != target.version:
            detail = f"{target.id} has version {target.version}, expected {op.expected_version}"
            return None, _refuse(op, "version_conflict", detail)
        if self._rules is not None and target.provenance.trusted and not self._provenance.trusted:
            return None, _refuse(op, "untrusted_source", f"a trusted source said {target.id}, and this one is not")
        return target, OpResult(op, ok=True, entry_id=target.id)

    def _bad_text(self, op: MemoryOp) -> OpResult | None:
        if not op.text.strip():
            return _refuse(op, "empty_text", f"{op.event} needs content")
        if not is_unicode(op.text):
            return _refuse(op, "invalid_text", "the content holds a lone surrogate")
        if self._rules is not None and "\0" in op.text:
            return _refuse(op, "invalid_text", "the content holds a NUL, which ends a text for many programs")
        if self._rules is not None and len(op.text) > self._rules.max_chars:
            return _refuse(op, "too_long", f"{len(op.text)} characters, at most {self._rules.max_chars} are allowed")
        return None

    def _too_many_chars(self, more: int = 0) -> str | None:
        most = self._rules.max_total_chars if self._rules is not None else None
        if most is None or self.chars + more <= most:
            return None
        return f"the bank would hold {self.chars + more} characters, and {most} are its limit"

    # the content of an erased entry is nobody's, and of no length

    def _leave(self, text: str) -> None:
        if text:
            self.live_changes[content_key(text)] = None
            self.chars -= len(text)

    def _take(self, text: str, owner: str) -> None:
        if text:
            self.live_changes[content_key(text)] = owner
            self.chars += len(text)

    def _owner(self, text: str) -> str | None:
        key = content_key(text)
        return self.live_changes[key] if key in self.live_changes else self._state.live.get(key)

    def _push(self, op: MemoryOp, entry: MemoryEntry) -> OpResult:
        self.added_versions.setdefault(entry.id, []).append(entry)
        return OpResult(op, ok=True, entry_id=entry.id, changed=True)


def _refuse(op: MemoryOp, code: str, detail: str) -> OpResult:
    return OpResult(op, ok=False, reason=code, detail=detail)
