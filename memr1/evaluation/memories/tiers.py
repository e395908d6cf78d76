"""Tiers in the manner of MemoryOS (arXiv 2506.06326): the last turns as they are (short term), older ones in segments
of one topic (mid term), and the facts of segments that are hot (long term).

Left away: the model's summaries of segments and its profile of the user; a segment is known by the mean of its turns.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from memr1.agents.extractor import facts_of
from memr1.data.types import Dialogue, Session, Turn
from memr1.envs.episode import Episode, Speaker, World
from memr1.envs.ingesting import turn_entries
from memr1.evaluation.memories.base import Memory, entry_of
from memr1.memory.types import MemoryEntry

RECENT = 7
"""Turns in the short-term queue."""
SAME_TOPIC = 0.6
"""Cosine similarity with a segment's mean from which a turn joins it; otherwise it opens a new one."""
MOST_SEGMENTS = 200
"""Of the mid-term memory; beyond it the coldest is forgotten."""
HOT = 4
"""Turns from which a segment is hot, so that its facts become long-term memory."""
OPENED = 5
"""Segments that a question opens."""


@dataclass
class Segment:
    """Turns on one topic."""

    places: list[int] = field(default_factory=list)
    """Of its turns in the dialogue."""
    total: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """Sum of its turns' vectors."""

    @property
    def mean(self) -> np.ndarray:
        """Unit vector of its topic."""
        return self.total / max(float(np.linalg.norm(self.total)), 1e-9)


def build(dialogue: Dialogue, world: World, manager: Speaker) -> Episode[Memory]:
    """See `Build`. A third of what is shown is the newest turns, whatever is asked; the rest is the most similar."""
    yield from ()
    entries = turn_entries(dialogue)
    vectors = world.embedder.embed([e.text for e in entries])
    where = list(dialogue.turns())
    segments: list[Segment] = []
    facts: dict[int, list[MemoryEntry]] = {}
    sizes, place = [], 0
    for session in dialogue.sessions:
        for _ in session.turns:
            if place >= RECENT:  # the oldest of the queue moves on
                segment = file_turn(segments, place - RECENT, vectors[place - RECENT])
                for old in segment.places if len(segment.places) >= HOT else ():
                    facts.setdefault(old, _facts(*where[old], world))
            place += 1
        sizes.append(min(place, RECENT) + sum(len(s.places) for s in segments) + sum(map(len, facts.values())))
    queue = entries[-RECENT:]
    known = [fact for old in sorted(facts) for fact in facts[old]]
    k = world.config.memory.answerer_top_k

    def retrieve(question: str) -> list[MemoryEntry]:
        query = world.embedder.embed([question])[0]
        opened = sorted(segments, key=lambda s: -float(s.mean @ query))[:OPENED]
        older, recent = queue[: -max(k // 3, 1)], queue[-max(k // 3, 1) :]
        found = [*(entries[i] for s in opened for i in s.places), *known, *older]
        scores = world.embedder.embed([e.text for e in found]) @ query if found else np.zeros(0)
        best = [found[i] for i in (-scores).argsort(kind="stable")[: k - len(recent)]]
        return [*best, *recent[::-1]]

    held = [*(entries[i] for s in segments for i in s.places), *known, *queue]
    return Memory(retrieve, held, tuple(sizes))


def file_turn(segments: list[Segment], place: int, vector: np.ndarray) -> Segment:
    """Put a turn into the segment of its topic, or into a new one; the coldest, which has fewest turns and was touched
    longest ago, makes room where there are too many."""
    nearest = max(segments, key=lambda s: float(s.mean @ vector), default=None)
    if nearest is None or float(nearest.mean @ vector) < SAME_TOPIC:
        nearest = Segment(total=np.zeros_like(vector))
        segments.append(nearest)
        if len(segments) > MOST_SEGMENTS:
            segments.remove(min(segments[:-1], key=lambda s: (len(s.places), s.places[-1])))
    nearest.places.append(place)
    nearest.total = nearest.total + vector
    return nearest


def _facts(session: Session, turn: Turn, world: World) -> list[MemoryEntry]:
    facts = facts_of(turn, world.config.agents.extractor)
    return [entry_of(session, turn, f"{turn.id}/f{n}", fact) for n, fact in enumerate(facts, 1)]
