"""BM25 over raw turns: retrieval by words."""

from __future__ import annotations

from memr1.data.types import Dialogue
from memr1.envs.episode import Episode, Speaker, World
from memr1.envs.ingesting import turn_entries
from memr1.evaluation.memories.base import Memory, of_turns
from memr1.memory.bm25 import BM25Retriever


def build(dialogue: Dialogue, world: World, manager: Speaker) -> Episode[Memory]:
    """See `Build`."""
    yield from ()
    entries, k = turn_entries(dialogue), world.config.turns_shown
    retriever = BM25Retriever([e.text for e in entries])
    return of_turns(dialogue, entries, lambda question: [i for i, _ in retriever.query(question, k)])
