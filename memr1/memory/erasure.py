"""Hard erase: taking the content of entries out of a log that otherwise only grows.

What an entry said goes; that there was one, when, and from which turn stays, so that the log still leads to the state.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from memr1.memory.oplog import LogRecord, OpLog
from memr1.memory.state import content_key
from memr1.memory.types import Event, MemoryEntry, OpResult


@dataclass(frozen=True)
class Erasure:
    """What was erased, and what was found when the bank was searched for it afterwards."""

    entries: tuple[str, ...]
    """Ids of the entries whose content is gone."""
    rewritten: tuple[int, ...]
    """Sequence numbers of the decisions from which it was taken."""
    also_in: tuple[str, ...] = ()
    """Other places whose own content holds one of the erased texts, such as `bank 'alice', entry m7`: they were not
    asked about, and stay."""


def contents(versions: Iterable[MemoryEntry]) -> frozenset[str]:
    """The texts of versions that still have one."""
    return frozenset(v.text for v in versions if v.text)


def redacted(log: OpLog, entry_ids: Collection[str], texts: Collection[str]) -> tuple[OpLog, list[LogRecord]]:
    """The log without the content of some entries, and those of its records that are different for it.

    texts: what these entries said. Rejected operations that hold one of them lose their content, too: often it was the
        reason of the rejection.
    """
    said = {content_key(text) for text in texts}

    def without(result: OpResult) -> OpResult:
        op = result.op
        target = result.entry_id if op.event is Event.ADD else result.entry_id or op.entry_id
        about = target in entry_ids
        repeats = not result.ok and any(text in content_key(op.text) for text in said)
        if not (about or repeats) or not (op.text or op.metadata):
            return result
        return replace(result, op=replace(op, text="", metadata={}, erased=True))

    shorter, changed = OpLog(), []
    for record in log:
        results = tuple(without(result) for result in record.results)
        if results != record.results:
            record = replace(record, results=results)
            changed.append(record)
        shorter.append(record)
    return shorter, changed
