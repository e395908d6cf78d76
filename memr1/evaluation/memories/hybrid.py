"""Hybrid retrieval over raw turns: words and vectors, fused by reciprocal rank."""

from __future__ import annotations

from memr1.data.types import Dialogue
from memr1.envs.episode import Episode, Speaker, World
from memr1.envs.ingesting import turn_entries
from memr1.evaluation.memories.base import Memory, of_turns
from memr1.evaluation.memories.embedding import nearest
from memr1.memory.bm25 import BM25Retriever
from memr1.memory.fusion import fuse


def build(dialogue: Dialogue, world: World, manager: Speaker) -> Episode[Memory]:
    """See `Build`."""
    yield from ()
    entries, k = turn_entries(dialogue), world.config.turns_shown
    retriever, rank = BM25Retriever([e.text for e in entries]), nearest(entries, world)

    def fused(question: str) -> list[int]:
        by_words = [str(i) for i, _ in retriever.query(question, len(entries))]
        return [int(i) for i, _ in fuse([[str(i) for i in rank(question)], by_words], k)]

    return of_turns(dialogue, entries, fused)
