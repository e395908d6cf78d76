"""Hard erase: taking the content of entries out of a log that otherwise only grows.

What an entry said goes; that there was one, when, and from which turn stays, so that the log still leads to the state.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

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
    """Other entries and decisions of the bank, such as `entry m7`, whose own content holds one of the erased texts as
    whole words: they were not asked about, and stay."""


def contents(versions: Iterable[MemoryEntry]) -> frozenset[str]:
    """The texts of versions that still have one."""
    return frozenset(v.text for v in versions if v.text)


class Mentions:
    """Finds texts in other texts: as whole words, whatever their case and white space."""

    def __init__(self, texts: Collection[str]) -> None:
        keys = sorted({content_key(text) for text in texts})
        self._pattern = re.compile("|".join(rf"(?<!\w){re.escape(key)}(?!\w)" for key in keys)) if keys else None

    def __call__(self, text: str, metadata: Any = None) -> bool:
        """Whether one of them stands in a text, or in any text within metadata."""
        if self._pattern is None:
            return False
        return any(self._pattern.search(content_key(said)) for said in (text, *_texts(metadata)))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def redacted(log: OpLog, entry_ids: Collection[str], mentions: Mentions) -> tuple[OpLog, list[LogRecord]]:
    """The log without the content of some entries, and those of its records that are different for it.

    mentions: finds what these entries said. Operations whose content no state depends on (rejected ones, and what a
    NOOP or a DELETE carried) lose it when it mentions one of them: often it was the reason of the rejection.
    """

    def without(result: OpResult) -> OpResult:
        op = result.op
        target = result.entry_id if op.event is Event.ADD else result.entry_id or op.entry_id
        idle = not result.ok or op.event in (Event.NOOP, Event.DELETE)
        if not (target in entry_ids or (idle and mentions(op.text, op.metadata))) or not (op.text or op.metadata):
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


def places(log: OpLog, newest: Iterable[MemoryEntry], mentions: Mentions) -> tuple[str, ...]:
    """Where else a text stands: decisions, then entries."""
    decisions = [f"decision {r.seq}" for r in log if any(mentions(op.text, op.metadata) for op in r.ops)]
    return (*decisions, *(f"entry {e.id}" for e in newest if mentions(e.text, e.metadata)))
