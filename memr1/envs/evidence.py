"""What of a question's evidence entries hold: the rule that tables, rewards and demonstrations go by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from memr1.memory.types import MemoryEntry
from memr1.rewards.match import contains

Held = Mapping[str, tuple[str, ...]]
"""Entry id -> ids of the evidence turns that the entry holds; entries that hold none are not in it."""


def held_evidence(
    entries: Sequence[MemoryEntry], evidence: Sequence[str], gold: str | None, behind: Callable[[str], Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    """The evidence that each entry holds: turns that it was last written from, and of those before, such as the older
    half of two facts that were merged, the ones behind a text that holds the gold answer. An entry that was overwritten
    by something else holds nothing of what it said.

    evidence: turn ids. behind: entry id to the turns of all its versions (`MemoryBank.sources`).
    """
    held = {}
    for entry in entries:
        turns = set(entry.provenance.turn_ids)
        if evidence and gold and entry.version > 1 and contains(entry.text, gold):
            turns.update(behind(entry.id))
        if found := tuple(turn for turn in dict.fromkeys(evidence) if turn in turns):
            held[entry.id] = found
    return held


def turns_held(entries: Sequence[MemoryEntry], held: Held) -> set[str]:
    """The evidence turns that some of these entries hold."""
    return {turn for entry in entries for turn in held.get(entry.id, ())}


def evidence_recall(entries: Sequence[MemoryEntry], evidence: Sequence[str], held: Held) -> float | None:
    """Share of the evidence turns that some entry holds; None where a question names no evidence."""
    return len(turns_held(entries, held)) / len(set(evidence)) if evidence else None
