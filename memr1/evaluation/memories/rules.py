"""A manager by rules, in the manner of mem0's update step (arXiv 2504.19413), with similarity in place of a model.

A new fact is compared with the nearest entry of the bank: nearly the same is a NOOP, news that the same thing ended a
DELETE, the same thing told differently an UPDATE, and everything else an ADD.
"""

from __future__ import annotations

import re

from memr1.data.types import Dialogue
from memr1.envs.episode import Episode, Speaker, World
from memr1.envs.ingesting import empty_bank, iso, told
from memr1.evaluation.memories.base import Memory, of_bank
from memr1.memory.bank import MemoryBank
from memr1.memory.types import Event, MemoryOp, Provenance

SAME, ALIKE = 0.95, 0.75
"""Cosine similarity from which two sentences say the same, and from which they are about the same thing."""

_ENDED = re.compile(
    r"\b(no longer|not any ?more|stopped|quit|gave up|ended|sold|cancell?ed|isn't|doesn't|never)\b", re.I
)


def build(dialogue: Dialogue, world: World, manager: Speaker) -> Episode[Memory]:
    """See `Build`."""
    yield from ()
    bank = empty_bank(dialogue, world)
    for session, turn, facts in told(dialogue, world):
        for fact in facts:
            bank.apply(
                [decide(bank, fact)],
                provenance=Provenance(turn_ids=(turn.id,), speaker=turn.speaker, role="rules"),
                time=iso(session),
                event_time=iso(session),
            )
    return of_bank(dialogue, bank, world)


def decide(bank: MemoryBank, fact: str) -> MemoryOp:
    """What the rules do with a fact."""
    hit = next(iter(bank.search(fact, 1)), None)
    if hit is None or hit.score < ALIKE:
        return MemoryOp(Event.ADD, text=fact)
    if hit.score >= SAME:
        return MemoryOp(Event.NOOP)
    if _ENDED.search(fact):
        return MemoryOp(Event.DELETE, entry_id=hit.entry.id)
    return MemoryOp(Event.UPDATE, text=fact, entry_id=hit.entry.id)
