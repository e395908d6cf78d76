"""MemoryEntry, MemoryOp, OpResult: what is stored, what may be done to it, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Event(StrEnum):
    """The four operations of the Memory Manager (Memory-R1, arXiv 2508.19828, section 3)."""

    ADD = "ADD"
    UPDATE = "UPDATE"
    DELETE = "DELETE"
    NOOP = "NOOP"


@dataclass(frozen=True)
class Provenance:
    """Where an operation came from."""

    turn_ids: tuple[str, ...] = ()
    speaker: str | None = None
    role: str | None = None
    """The agent that decided: `manager`, `oracle`, `user`, …"""
    model: str | None = None
    adapter: str | None = None
    weight_version: int | None = None
    trusted: bool = True
    """False: from a source that is not to be relied on. What it says is marked, and it may neither change nor delete
    what a trusted source said (`untrusted_source`)."""


@dataclass(frozen=True)
class MemoryOp:
    """One operation on a bank. Times are ISO 8601 text; ids are the bank's own."""

    event: Event
    text: str = ""
    """Content for ADD and UPDATE."""
    entry_id: str | None = None
    """Target of UPDATE and DELETE."""
    expected_version: int | None = None
    """UPDATE and DELETE are rejected when the target has another version (compare and set); None skips the check."""
    kind: str = "text"
    """Kind of the payload; `text` now, others (triple, episode, …) register later."""
    metadata: dict[str, Any] = field(default_factory=dict)
    erased: bool = False
    """Only in logs: its content was erased. `MemoryBank.apply` refuses such an operation."""


@dataclass(frozen=True)
class OpResult:
    """Outcome of one operation: applied, or rejected with a reason. Never silence."""

    op: MemoryOp
    ok: bool
    reason: str | None = None
    """Why the operation was rejected, as a code of `memr1.memory.state.REASONS`; None when ok. An operation that was
    fine itself but fell with its decision has `aborted: ` and the operation at fault (`state.reason_code` cuts it)."""
    entry_id: str | None = None
    """The entry that was added, changed or deleted; None for NOOP and for rejected operations."""
    changed: bool = False
    """True when the bank is different for it; False for NOOP, for an UPDATE to what stood already, or when rejected."""
    detail: str | None = None
    """The rejection in words, naming the entry in the way; None when ok."""


@dataclass(frozen=True)
class MemoryEntry:
    """One memory. Immutable: an UPDATE makes a new version with the same id."""

    id: str
    text: str
    created_at: str | None = None
    """First seen (ISO 8601). Kept over updates, so that temporal questions stay answerable."""
    updated_at: str | None = None
    """Last changed (ISO 8601)."""
    event_time: str | None = None
    """When the thing happened, where known; otherwise the time of the session that told it."""
    version: int = 1
    status: str = "live"
    """live, deleted (a tombstone keeps its history) or erased (so does nothing)."""
    kind: str = "text"
    provenance: Provenance = Provenance()
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Hit:
    """A search result."""

    entry: MemoryEntry
    score: float
    """Higher is nearer; cosine similarity for vector indexes."""
