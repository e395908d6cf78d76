"""A bank kept by a manager model: Memory-R1, and its pipeline without training."""

from __future__ import annotations

from memr1.data.types import Dialogue
from memr1.envs.episode import Episode, Speaker, World
from memr1.envs.ingesting import Ingested, ingest_with_manager
from memr1.evaluation.memories.base import Memory, Upkeep, of_bank


def build(dialogue: Dialogue, world: World, manager: Speaker) -> Episode[Memory]:
    """See `Build`. A decision that cannot be asked for or parsed changes nothing and leaves no record, but counts."""
    done = yield from ingest_with_manager(dialogue, world, manager)
    return of_bank(dialogue, done.bank, world, upkeep_of(done))


def upkeep_of(done: Ingested) -> Upkeep:
    """What the manager's decisions took."""
    return Upkeep(decisions=done.decisions, unreadable=done.unparsed, tokens=done.tokens)
