"""A negative control: a manager's bank of which every entry is deleted before the questions come.

What is answered from it was not remembered, so its scores must be those of no memory at all.
"""

from __future__ import annotations

from memr1.data.types import Dialogue
from memr1.envs.answering import retrieve
from memr1.envs.episode import Episode, Speaker, World
from memr1.envs.ingesting import ingest_with_manager
from memr1.evaluation.memories.base import Memory
from memr1.evaluation.memories.manager import upkeep_of
from memr1.memory.types import Event, MemoryOp, Provenance


def build(dialogue: Dialogue, world: World, manager: Speaker) -> Episode[Memory]:
    """See `Build`."""
    done = yield from ingest_with_manager(dialogue, world, manager)
    bank = done.bank
    deletions = [MemoryOp(Event.DELETE, entry_id=entry.id) for entry in bank.entries()]
    if deletions:
        bank.apply(deletions, provenance=Provenance(role="control"))
    return Memory(
        lambda question: retrieve(bank, question, world),
        bank.entries(),
        sizes=(0,) * len(dialogue.sessions),
        upkeep=upkeep_of(done),
    )
