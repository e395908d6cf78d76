"""Decisions that the guards held: kept in the store's database until an operator releases or drops them.

What got an answer is here or in a bank, and after a release in both places until it is taken out here; it is applied
under its own key, so that releasing it twice changes a bank once.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Connection, Float, MetaData, String, Table, Text, delete, func, insert, select

from memr1.errors import MemR1Error
from memr1.memory.jsonl import parse_object
from memr1.memory.oplog import LogRecord
from memr1.memory.scopes import Scope
from memr1.memory.store import BankStore
from memr1.memory.types import MemoryOp, OpResult, Provenance
from memr1.serving.errors import ApiError, as_api_error
from memr1.serving.refs import BankRef

_metadata = MetaData()
_held = Table(
    "memr1_serving_held",
    _metadata,
    Column("held_id", String(64), primary_key=True),
    Column("tenant", String(255), index=True),
    Column("bank_id", String(255), nullable=False, index=True),
    Column("made", Float, nullable=False),
    Column("body", Text, nullable=False),
)


@dataclass(frozen=True)
class Wanted:
    """A decision before it is made: arguments of `BankService.apply`."""

    ref: BankRef
    ops: tuple[MemoryOp, ...]
    provenance: Provenance
    time: str
    event_time: str | None
    on_reject: str
    key: str | None
    facts: tuple[str, ...]


@dataclass(frozen=True)
class Held:
    """A decision that waits."""

    id: str
    wanted: Wanted
    suspicions: tuple[str, ...]
    """Codes of `memr1.serving.guards.FORMS`."""
    made: float
    """When it was held, in seconds since the epoch."""

    @classmethod
    def of(cls, wanted: Wanted, suspicions: Sequence[str]) -> Held:
        """A new one; decisions of one bank under one idempotency key are the same one."""
        name = secrets.token_hex(16) if wanted.key is None else _named(wanted.ref, wanted.key)
        return cls(name, wanted, tuple(suspicions), time.time())


class Quarantine:
    """Held decisions in the database of a store."""

    def __init__(self, store: BankStore, most: int) -> None:
        """most: of a tenant; one more is refused."""
        self._store, self._most = store, most
        with store.transaction("preparing the quarantine") as connection:
            _metadata.create_all(connection)

    def put(self, held: Held) -> Held:
        """Keep a decision; the earlier one of its id where there is one. `ApiError` 429 when too many wait."""
        tenant = held.wanted.ref.scope.tenant
        try:
            with self._store.transaction("holding a write") as connection:
                self._store.still_owner(connection)
                row = connection.execute(select(_held).where(_held.c.held_id == held.id)).first()
                if row is not None:
                    return _load(row)
                of_tenant = select(func.count()).select_from(_held).where(_held.c.tenant == tenant)
                if connection.execute(of_tenant).scalar_one() >= self._most:
                    raise ApiError(
                        429,
                        "quarantine_full",
                        f"{self._most} suspicious writes wait for an operator already; nothing was kept of this one",
                        headers={"Retry-After": "60"},
                    )
                connection.execute(insert(_held), _row(held))
        except MemR1Error as error:
            raise as_api_error(error) from error
        return held

    def find(self, ref: BankRef, key: str) -> Held | None:
        """The decision that waits under an idempotency key."""
        return self.get(_named(ref, key))

    def get(self, held_id: str) -> Held | None:
        """A decision that waits."""
        with self._store.transaction("reading the quarantine") as connection:
            row = connection.execute(select(_held).where(_held.c.held_id == held_id)).first()
        return None if row is None else _load(row)

    def of_tenant(self, tenant: str | None) -> list[Held]:
        """Everything of a tenant that waits, oldest first."""
        return self._all(_held.c.tenant == tenant)

    def of_bank(self, ref: BankRef) -> list[Held]:
        """Everything of a bank that waits, oldest first."""
        return self._all(_held.c.bank_id == ref.scope.bank_id(ref.name))

    def _all(self, which: Any) -> list[Held]:
        found = select(_held).where(which).order_by(_held.c.made, _held.c.held_id)
        with self._store.transaction("reading the quarantine") as connection:
            return [_load(row) for row in connection.execute(found)]

    def count(self) -> int:
        """How many wait."""
        with self._store.transaction("reading the quarantine") as connection:
            return int(connection.execute(select(func.count()).select_from(_held)).scalar_one())

    def remove(self, held_id: str) -> None:
        """Take one out, which somebody has decided about."""
        with self._store.transaction("taking a write out of the quarantine") as connection:
            self._store.still_owner(connection)
            connection.execute(delete(_held).where(_held.c.held_id == held_id))

    def remove_of(self, ref: BankRef, connection: Connection) -> None:
        """Take everything of a bank out, in the transaction that removes the bank."""
        connection.execute(delete(_held).where(_held.c.bank_id == ref.scope.bank_id(ref.name)))


def _named(ref: BankRef, key: str) -> str:
    return hashlib.sha256(f"{ref.scope.bank_id(ref.name)}\n{key}".encode()).hexdigest()[:32]


def _row(held: Held) -> dict[str, Any]:
    wanted, ref = held.wanted, held.wanted.ref
    # written as the record of the log that it would become
    record = LogRecord(
        seq=1,
        results=tuple(OpResult(op, ok=False) for op in wanted.ops),
        provenance=wanted.provenance,
        time=wanted.time,
        event_time=wanted.event_time,
        on_reject=wanted.on_reject,
        idempotency_key=wanted.key,
    )
    body = {
        "scope": vars(ref.scope),
        "bank": ref.name,
        "record": record.to_json(),
        "facts": list(wanted.facts),
        "suspicions": list(held.suspicions),
    }
    return {
        "held_id": held.id,
        "tenant": ref.scope.tenant,
        "bank_id": ref.scope.bank_id(ref.name),
        "made": held.made,
        "body": json.dumps(body),
    }


def _load(row: Any) -> Held:
    fields = parse_object(row.body, f"held write {row.held_id}")
    record = LogRecord.from_json(fields.child("record"))
    ref = BankRef(Scope(**fields.take("scope", dict)), fields.take("bank", str))
    wanted = Wanted(
        ref,
        record.ops,
        record.provenance,
        record.time or "",
        record.event_time,
        record.on_reject,
        record.idempotency_key,
        fields.texts("facts"),
    )
    return Held(row.held_id, wanted, fields.texts("suspicions"), row.made)
