"""Reciprocal rank fusion: one ranking out of several whose scores cannot be compared."""

from __future__ import annotations

from collections.abc import Sequence

RANK_OFFSET = 60
"""Of Cormack, Clarke and Buettcher (SIGIR 2009): keeps the first ranks of one list from outweighing all others."""


def fuse(rankings: Sequence[Sequence[str]], k: int) -> list[tuple[str, float]]:
    """The k best of several rankings (ids, best first), with the sum of 1 / (60 + rank) over the rankings that have an
    id, ranks counted from 1. Ties in order of the first ranking that has one of them."""
    scores: dict[str, float] = {}
    for ranking in rankings:
        for rank, name in enumerate(ranking, start=1):
            scores[name] = scores.get(name, 0.0) + 1.0 / (RANK_OFFSET + rank)
    return sorted(scores.items(), key=lambda pair: -pair[1])[:k]
