"""What a caller hands to a bank, checked and made its own: types, times, metadata.

A wrong type is a mistake of the calling program and raises `MemR1Error`; what a model decides wrongly is a rejection
with a reason instead, see `memr1.memory.state`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from memr1.errors import MemR1Error
from memr1.memory.jsonl import canonical, plain_json
from memr1.memory.state import is_unicode
from memr1.memory.types import Event, MemoryOp, Provenance


def check_op(op: MemoryOp, where: str) -> MemoryOp:
    """A copy whose metadata is plain JSON of its own, so that the log never changes under the bank."""
    if not isinstance(op, MemoryOp):
        raise MemR1Error(f"{where}: expected a MemoryOp, got {op!r}; parse model output with a protocol first")
    if not isinstance(op.event, Event):
        raise MemR1Error(f"{where}.event: expected one of {', '.join(Event.__members__)}, got {op.event!r}")
    _check(op.text, f"{where}.text", str)
    _check(op.entry_id, f"{where}.entry_id", str, optional=True)
    _check(op.expected_version, f"{where}.expected_version", int, optional=True)
    _check(op.kind, f"{where}.kind", str)
    _check(op.metadata, f"{where}.metadata", dict)
    if op.erased is not False:
        raise MemR1Error(f"{where}.erased: only logs hold erased operations; use MemoryBank.erase")
    if _depth(op.metadata) > DEEPEST_METADATA:
        raise MemR1Error(f"{where}.metadata: more than {DEEPEST_METADATA} lists and objects inside one another")
    metadata = plain_json(op.metadata, f"{where}.metadata")
    if metadata and (size := len(canonical(metadata))) > LARGEST_METADATA:
        raise MemR1Error(
            f"{where}.metadata: {size} characters as JSON, at most {LARGEST_METADATA} are kept; "
            "store large things elsewhere and keep their name here"
        )
    return dataclasses.replace(op, metadata=metadata)


LARGEST_METADATA = 65_536
"""Characters of an operation's metadata as JSON."""
DEEPEST_METADATA = 16
"""Levels of metadata; what nests without end can be written down but not always read again."""


def _depth(value: Any) -> int:
    """Lists and objects inside one another, counted without recursion and no further than needed."""
    level, depth = [value], 0
    while level and depth <= DEEPEST_METADATA:
        inner = [v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list | tuple)]
        level = [x for values in inner for x in values]
        depth += bool(inner)
    return depth


def check_provenance(provenance: Provenance) -> Provenance:
    """The provenance with its turn ids as a tuple."""
    if not isinstance(provenance, Provenance):
        raise MemR1Error(f"provenance: expected a Provenance, got {provenance!r}")
    if isinstance(provenance.turn_ids, str) or not isinstance(provenance.turn_ids, Iterable):
        raise MemR1Error(f"provenance.turn_ids: expected several texts, got {provenance.turn_ids!r}; write ('D1:1',)")
    turn_ids = tuple(provenance.turn_ids)
    for turn_id in turn_ids:
        _check(turn_id, "provenance.turn_ids", str)
    for name in ("speaker", "role", "model", "adapter"):
        _check(getattr(provenance, name), f"provenance.{name}", str, optional=True)
    _check(provenance.weight_version, "provenance.weight_version", int, optional=True)
    if not isinstance(provenance.trusted, bool):
        raise MemR1Error(f"provenance.trusted: expected True or False, got {provenance.trusted!r}")
    return dataclasses.replace(provenance, turn_ids=turn_ids)


def check_bank_id(bank_id: str) -> None:
    """`MemR1Error` unless a bank may be kept under this id."""
    if not isinstance(bank_id, str) or not 0 < len(bank_id) <= 255 or "\0" in bank_id or not is_unicode(bank_id):
        raise MemR1Error(f"bank_id: expected a text of 1 to 255 characters without NUL, got {bank_id!r}")


def check_new_bank_id(bank_id: str) -> None:
    """`MemR1Error` unless a bank may be made under this id."""
    check_bank_id(bank_id)
    if bank_id.startswith("@") and bank_id.count("/") < 3:
        raise MemR1Error(f"bank_id: {bank_id!r} begins with @, as the banks of scopes do; use BankStore.scoped")


def check_actor(actor: str | None) -> None:
    """`MemR1Error` unless an actor is None or a text."""
    _check(actor, "actor", str, optional=True)


def check_time(value: str | None, where: str) -> str | None:
    """The time itself; `MemR1Error` unless it is ISO 8601 text or None."""
    if value is not None:
        _check(value, where, str)
        try:
            datetime.fromisoformat(value)
        except ValueError as error:
            raise MemR1Error(f"{where}: {value!r} is not ISO 8601; write 2023-05-08 or 2023-05-08T13:56:00") from error
    return value


def check_key(key: str | None) -> None:
    """`MemR1Error` unless an idempotency key is None or a text of 1 to 255 characters that a database can keep."""
    if key is not None and (not isinstance(key, str) or not 0 < len(key) <= 255 or "\0" in key or not is_unicode(key)):
        raise MemR1Error(f"idempotency_key: expected a text of 1 to 255 characters without NUL, got {key!r}")


def _check(value: Any, where: str, kind: type, *, optional: bool = False) -> None:
    if optional and value is None:
        return
    if not isinstance(value, kind) or isinstance(value, bool):
        raise MemR1Error(f"{where}: expected {kind.__name__}, got {value!r}")
