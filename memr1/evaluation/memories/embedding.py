"""Nearest raw turns: retrieval by vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from memr1.data.types import Dialogue
from memr1.envs.episode import Episode, Speaker, World
from memr1.envs.ingesting import turn_entries
from memr1.evaluation.memories.base import Memory, of_turns
from memr1.memory.types import MemoryEntry


def build(dialogue: Dialogue, world: World, manager: Speaker) -> Episode[Memory]:
    """See `Build`."""
    yield from ()
    entries, k = turn_entries(dialogue), world.config.turns_shown
    rank = nearest(entries, world)
    return of_turns(dialogue, entries, lambda question: rank(question)[:k])


def nearest(entries: Sequence[MemoryEntry], world: World) -> Callable[[str], list[int]]:
    """A ranking of all entries by cosine similarity: a question to their places, best first, ties in order."""
    vectors = world.embedder.embed([e.text for e in entries])

    def rank(question: str) -> list[int]:
        scores = vectors @ world.embedder.embed([question])[0]
        return [int(i) for i in (-scores).argsort(kind="stable")]

    return rank
