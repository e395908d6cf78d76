"""The append-only log of decisions: the record from which a bank's state follows, and its JSON-lines form.

Written by `MemoryBank.apply`. Forks share what came before them, so a fork of a long log costs nothing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from memr1.errors import MemR1Error
from memr1.memory.jsonl import Fields, canonical, read_objects, write_lines
from memr1.memory.types import Event, MemoryEntry, MemoryOp, OpResult, Provenance

LOG_FORMAT = "memr1-oplog"
VERSION = 1


@dataclass(frozen=True)
class LogRecord:
    """One decision: all its operations, each with its outcome. A rejected decision is a record too."""

    seq: int
    """Place in the log, from 1."""
    results: tuple[OpResult, ...]
    provenance: Provenance = field(default_factory=Provenance)
    time: str | None = None
    """When it was decided (ISO 8601), as the caller said."""
    event_time: str | None = None
    actor: str | None = None
    """Who decided; by default the provenance's role."""
    on_reject: str = "abort"
    """How a rejected operation was to be treated: `abort` the decision or `skip` the operation."""
    idempotency_key: str | None = None
    """The caller's name for this decision; a second one of the same name is not applied."""
    reverts: tuple[tuple[str, int], ...] = ()
    """Of a roll back or an undo: (entry, the version whose content it got back, 0 for none: it is deleted)."""
    erases: tuple[str, ...] = ()
    """Of an erasure: the entries whose content is gone from this record's past, too."""

    @property
    def ops(self) -> tuple[MemoryOp, ...]:
        """The operations as decided."""
        return tuple(r.op for r in self.results)

    @property
    def applied(self) -> bool:
        """False when every operation was rejected."""
        return not self.results or any(r.ok for r in self.results)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` gives the record back exactly."""
        return {
            "seq": self.seq,
            "time": self.time,
            "event_time": self.event_time,
            "actor": self.actor,
            "on_reject": self.on_reject,
            # left out where there is none: logs from before there were keys stay what they are, to the byte
            **({} if self.idempotency_key is None else {"idempotency_key": self.idempotency_key}),
            **({} if not self.reverts else {"reverts": [list(r) for r in self.reverts]}),
            **({} if not self.erases else {"erases": list(self.erases)}),
            "provenance": provenance_to_json(self.provenance),
            "results": [{**vars(r), "op": _op_to_json(r.op)} for r in self.results],
        }

    @classmethod
    def from_json(cls, fields: Fields) -> LogRecord:
        """Read one record; `MemR1Error` names the field that is missing, unknown or of the wrong type."""
        record = cls(
            seq=fields.take("seq", int),
            results=tuple(_result(item) for item in fields.children("results")),
            provenance=provenance_from_json(fields.child("provenance")),
            time=fields.take("time", str, None),
            event_time=fields.take("event_time", str, None),
            actor=fields.take("actor", str, None),
            on_reject=fields.take("on_reject", str),
            idempotency_key=fields.take("idempotency_key", str) if "idempotency_key" in fields else None,
            reverts=_reverts(fields) if "reverts" in fields else (),
            erases=fields.texts("erases") if "erases" in fields else (),
        )
        fields.end()
        return record


def _reverts(fields: Fields) -> tuple[tuple[str, int], ...]:
    pairs = []
    for pair in fields.take("reverts", list):
        if not isinstance(pair, list) or [type(v) for v in pair] != [str, int]:
            raise fields.fail("reverts", f"expected pairs of an entry id and a version, got {pair!r}")
        pairs.append((pair[0], pair[1]))
    return tuple(pairs)


def _op_to_json(op: MemoryOp) -> dict[str, Any]:
    body = {**vars(op), "event": op.event.value}
    if not op.erased:
        del body["erased"]
    return body


def provenance_to_json(provenance: Provenance) -> dict[str, Any]:
    """Plain JSON values of a provenance. `trusted` is left out where it is true, as in older logs."""
    body = {**vars(provenance), "turn_ids": list(provenance.turn_ids)}
    if provenance.trusted:
        del body["trusted"]
    return body


def provenance_from_json(fields: Fields) -> Provenance:
    """Read what `provenance_to_json` wrote."""
    provenance = Provenance(
        turn_ids=fields.texts("turn_ids"),
        speaker=fields.take("speaker", str, None),
        role=fields.take("role", str, None),
        model=fields.take("model", str, None),
        adapter=fields.take("adapter", str, None),
        weight_version=fields.take("weight_version", int, None),
        trusted=fields.take("trusted", bool) if "trusted" in fields else True,
    )
    fields.end()
    return provenance


def entry_to_json(entry: MemoryEntry) -> dict[str, Any]:
    """Plain JSON values of an entry."""
    return {**vars(entry), "provenance": provenance_to_json(entry.provenance)}


def _result(fields: Fields) -> OpResult:
    result = OpResult(
        op=_op(fields.child("op")),
        ok=fields.take("ok", bool),
        reason=fields.take("reason", str, None),
        entry_id=fields.take("entry_id", str, None),
        changed=fields.take("changed", bool),
        detail=fields.take("detail", str, None),
    )
    fields.end()
    return result


def _op(fields: Fields) -> MemoryOp:
    event = fields.take("event", str)
    if event not in Event.__members__:
        raise fields.fail("event", f"{event!r} is none of {', '.join(Event.__members__)}")
    op = MemoryOp(
        event=Event(event),
        text=fields.take("text", str),
        entry_id=fields.take("entry_id", str, None),
        expected_version=fields.take("expected_version", int, None),
        kind=fields.take("kind", str),
        metadata=fields.take("metadata", dict),
        erased=fields.take("erased", bool) if "erased" in fields else False,
    )
    if op.erased and (op.text or op.metadata):
        raise fields.fail("erased", "an erased operation has no content; the file was changed by hand")
    fields.end()
    return op


@dataclass(frozen=True)
class _Sealed:
    """A stretch of records that never changes again; logs that forked from one another share it."""

    before: _Sealed | None
    records: tuple[LogRecord, ...]
    length: int

    def __reduce__(self) -> tuple[Any, ...]:
        # a log that was forked after every turn is a long chain; pickled link by link it would overflow the stack
        return _join, (tuple(_walk(self)),)


def _join(records: tuple[LogRecord, ...]) -> _Sealed:
    return _Sealed(None, records, len(records))


def _walk(sealed: _Sealed | None) -> Iterator[LogRecord]:
    links = []
    while sealed is not None:
        links.append(sealed)
        sealed = sealed.before
    for link in reversed(links):
        yield from link.records


class OpLog:
    """Records 1, 2, 3, …: read, appended to, never changed."""

    def __init__(self) -> None:
        self._sealed: _Sealed | None = None
        self._tail: list[LogRecord] = []

    def __len__(self) -> int:
        return (self._sealed.length if self._sealed else 0) + len(self._tail)

    def __iter__(self) -> Iterator[LogRecord]:
        yield from _walk(self._sealed)
        yield from tuple(self._tail)

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, OpLog) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # mutable

    @property
    def seq(self) -> int:
        """Sequence number of the newest record; 0 when there is none."""
        return len(self)

    def append(self, record: LogRecord) -> None:
        """Add the next record; `MemR1Error` when its number is not the next one."""
        if record.seq != len(self) + 1:
            raise MemR1Error(f"the log stands at {len(self)}; record {record.seq} cannot follow")
        self._tail.append(record)

    def fork(self) -> OpLog:
        """A log with the same past and a future of its own. Copies no record."""
        if self._tail:
            self._sealed = _Sealed(self._sealed, tuple(self._tail), len(self))
            self._tail = []
        other = OpLog()
        other._sealed = self._sealed
        return other

    def prefix(self, seq: int) -> OpLog:
        """The log as it was after record `seq`; replay it to see the bank of that moment."""
        if not 0 <= seq <= len(self):
            raise MemR1Error(f"the log has records 1 to {len(self)}; there is no state after {seq}")
        other = OpLog()
        other._tail = [record for record in self if record.seq <= seq]
        return other

    def dump(self, path: str | os.PathLike[str], header: dict[str, Any] | None = None) -> None:
        """Write JSON lines: a header, then one record a line with a hash over it and all before it. Whole or nothing.

        header: further JSON values for the header line (the bank writes its id and rules there).
        """
        lines, link = [], ""
        for record in self:
            body = canonical(record.to_json())
            link = _chain(link, body)
            lines.append(canonical({"hash": link, "record": record.to_json()}))
        first = {"format": LOG_FORMAT, **(header or {}), "version": VERSION, "seq": len(self), "head": link}
        write_lines(path, [canonical(first), *lines])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> OpLog:
        """Read what `dump` wrote; `MemR1Error` names line and field of anything cut, changed, missing or unknown."""
        header, log = cls.read(path)
        header.end()
        return log

    @classmethod
    def read(cls, path: str | os.PathLike[str], expect: str = LOG_FORMAT) -> tuple[Fields, OpLog]:
        """`load` for a file whose header holds more: returns it with those fields still to be taken."""
        lines = read_objects(path)
        header = next(lines, None)
        if header is None:
            raise MemR1Error(f"{path}:1: the file is empty; expected a header line of format {expect}")
        found = header.take("format", str)
        if found != expect:
            raise header.fail("format", f"expected {expect!r}, got {found!r}")
        version = header.take("version", int)
        if version != VERSION:
            raise header.fail("version", f"this memr1 reads version {VERSION}, the file has {version}; update memr1")
        seq, head = header.take("seq", int), header.take("head", str)
        log, link = cls(), ""
        for line in lines:
            stored, fields = line.take("hash", str), line.child("record")
            line.end()
            record = LogRecord.from_json(fields)
            if record.seq != len(log) + 1:
                raise fields.fail(
                    "seq", f"expected {len(log) + 1}, got {record.seq}; lines are missing or out of order"
                )
            link = _chain(link, canonical(record.to_json()))
            if stored != link:
                raise line.fail("hash", "the record, or one before it, was changed after it was written")
            log.append(record)
        if len(log) != seq:
            raise header.fail(
                "seq", f"the header promises {seq} records, the file has {len(log)}; it was cut or joined"
            )
        if head != link:
            raise header.fail("head", "does not match the hash of the last record")
        return header, log


def _chain(link: str, body: str) -> str:
    return hashlib.blake2b(f"{link}\n{body}".encode(), digest_size=16).hexdigest()
