"""Nearest vectors by cosine: the protocol every index keeps, and the exact one, which is also the oracle in tests.

An index is derived: the bank feeds it and can rebuild it at any time. It never decides what is in a bank.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from memr1.errors import MemR1Error

Vectors = NDArray[np.float32]


class IndexLost(MemR1Error):
    """An index that cannot be asked: its file is damaged, its server is away. The bank goes on without it."""


class VectorIndex(Protocol):
    """Vectors under ids that the caller chooses. Calls can be repeated: a retry after a failure does no harm.

    Any call may raise `IndexLost`.
    """

    def add(self, ids: Sequence[str], vectors: Vectors) -> None:
        """Store vectors (n, dim) of length 1; an id that is there already gets the new vector."""

    def remove(self, ids: Iterable[str]) -> None:
        """Take ids out; ids that are not there are none of its business."""

    def erase(self, ids: Iterable[str]) -> None:
        """Take ids out and let nothing of their vectors outlive the next time that the index is opened."""

    def query(self, vector: Vectors, k: int, allowed: Collection[str] | None = None) -> list[tuple[str, float]]:
        """The k ids nearest to a vector (dim,), best first, with cosine similarities; ties in `natural_order`.

        allowed: search among these ids only; ids that the index does not hold count for nothing.
        """

    def ids(self) -> set[str]:
        """Every id in the index."""

    def __len__(self) -> int:
        """Number of ids in the index."""

    def fork(self) -> VectorIndex:
        """An index with the same content now, and independent from now on."""


def natural_order(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key in which `m9` comes before `m10`."""
    parts = re.findall(r"[0-9]+|[^0-9]+", text)
    return tuple(
        (0, len(part.lstrip("0")), part.lstrip("0")) if part[0] in "0123456789" else (1, 0, part) for part in parts
    )


def best(ids: Sequence[str], vectors: Vectors, query: Vectors, k: int) -> list[tuple[str, float]]:
    """The k best of the candidates by cosine in double precision, ties in `natural_order`.

    ids: n candidates; vectors: (n, dim); query: (dim,). A row's score depends on that row alone: matrix products in
    single precision give a vector different last bits in different places, and forks would disagree on ties.
    """
    scores = (vectors.astype(np.float64) * query.astype(np.float64)).sum(axis=1).tolist()
    pairs = list(zip(ids, scores, strict=True))
    if len(set(scores)) < len(scores):  # taking names apart costs more than all the rest, and only ties ask for it
        pairs.sort(key=lambda pair: natural_order(pair[0]))
    pairs.sort(key=lambda pair: -pair[1])
    return pairs[:k]


_MARGIN = 1e-4
"""Candidates this near to the k-th best are scored again; far above the rounding of float32 products of unit rows."""
_TAIL = 64
"""Vectors that a fork copies at most beside a quarter of the shared ones; more are merged into one block."""


class ExactIndex:
    """Every vector is compared. A block of vectors is shared between forks; what came after it is each one's own."""

    def __init__(self) -> None:
        self._block_ids: list[str] = []
        self._block: Vectors | None = None  # never written to once it stands: forks share it
        self._row: dict[str, int] = {}  # rows of the block; shared with it
        self._dead: set[int] = set()
        self._tail: dict[str, Vectors] = {}
        self._dim: int | None = None

    def __len__(self) -> int:
        return len(self._block_ids) - len(self._dead) + len(self._tail)

    def ids(self) -> set[str]:
        """Every id in the index."""
        return {name for name, row in self._row.items() if row not in self._dead} | set(self._tail)

    def add(self, ids: Sequence[str], vectors: Vectors) -> None:
        """Store vectors (n, dim); `MemR1Error` when their number or width does not fit."""
        vectors = check_vectors(ids, vectors, self._dim)
        if len(ids) == 0:
            return
        self.remove(ids)
        self._dim = vectors.shape[1]
        for name, vector in zip(ids, vectors.copy(), strict=True):
            self._tail[name] = vector
        if len(self._tail) > _TAIL + len(self._block_ids) // 4 or len(self._dead) > _TAIL + len(self._block_ids) // 2:
            self._merge()

    def remove(self, ids: Iterable[str]) -> None:
        """Take ids out; unknown ids are ignored."""
        for name in ids:
            if self._tail.pop(name, None) is None and name in self._row:
                self._dead.add(self._row[name])
        if len(self) == 0:  # an empty index takes vectors of any width
            self._block_ids, self._block, self._row, self._dead, self._dim = [], None, {}, set(), None

    def erase(self, ids: Iterable[str]) -> None:
        """The same as `remove`: nothing of this index is on a disk."""
        self.remove(ids)

    def query(self, vector: Vectors, k: int, allowed: Collection[str] | None = None) -> list[tuple[str, float]]:
        """The k nearest among all, or among `allowed`."""
        if len(self) == 0:
            return []
        vector = check_query(vector, k, self._dim)
        if allowed is not None:
            names = [n for n in dict.fromkeys(allowed) if n in self._tail or self._alive(n)]
            return best(names, self._gather(names), vector, k) if names else []
        in_block, tail = len(self._block_ids), list(self._tail)
        scores = np.empty(in_block + len(tail), np.float32)
        if self._block is not None:
            np.matmul(self._block, vector, out=scores[:in_block])
            if self._dead:
                scores[list(self._dead)] = -np.inf
        if tail:
            scores[in_block:] = np.stack([self._tail[name] for name in tail]) @ vector
        k = min(k, len(self))
        rows = np.flatnonzero(scores >= np.partition(scores, -k)[-k] - _MARGIN)
        chosen = [self._block_ids[i] if i < in_block else tail[i - in_block] for i in rows.tolist()]
        if self._block is not None and rows[-1] < in_block:
            return best(chosen, self._block[rows], vector, k)
        return best(chosen, self._gather(chosen), vector, k)

    def fork(self) -> ExactIndex:
        """Shares the block, copies the list of what came after."""
        other = ExactIndex()
        other._block_ids, other._block, other._row = self._block_ids, self._block, self._row
        other._dead, other._tail, other._dim = set(self._dead), dict(self._tail), self._dim
        return other

    def _alive(self, name: str) -> bool:
        return name in self._row and self._row[name] not in self._dead

    def _gather(self, names: Sequence[str]) -> Vectors:
        rows = [self._tail[n] if n in self._tail else self._block[self._row[n]] for n in names]  # type: ignore[index]
        return np.stack(rows)

    def _merge(self) -> None:
        names = [n for i, n in enumerate(self._block_ids) if i not in self._dead] + list(self._tail)
        self._block = self._gather(names)
        self._block_ids, self._row = names, {name: row for row, name in enumerate(names)}
        self._dead, self._tail = set(), {}


def check_vectors(ids: Sequence[str], vectors: Vectors, dim: int | None) -> Vectors:
    """The vectors as (n, dim) float32; `MemR1Error` when they do not fit the ids, the index or the unit sphere."""
    vectors = np.asarray(vectors, np.float32)
    if vectors.ndim != 2 or len(vectors) != len(ids):
        raise MemR1Error(
            f"an index got {len(ids)} ids and vectors of shape {vectors.shape}; expected one row for each id"
        )
    if len(set(ids)) != len(ids):
        raise MemR1Error("an index got an id twice in one call")
    if len(ids) and dim is not None and vectors.shape[1] != dim:
        raise MemR1Error(
            f"the index holds vectors of {dim} numbers and got {vectors.shape[1]}; it was built with another embedder, "
            "so rebuild it"
        )
    if len(ids) and not (np.abs(np.linalg.norm(vectors, axis=1) - 1) < 1e-3).all():
        raise MemR1Error("an index got vectors that are not of length 1; normalise them in the embedder")
    return vectors


def check_query(vector: Vectors, k: int, dim: int | None) -> Vectors:
    """The query as (dim,) float32; `MemR1Error` when it does not fit."""
    vector = np.asarray(vector, np.float32)
    if dim is not None and vector.shape != (dim,):
        raise MemR1Error(f"the index holds vectors of {dim} numbers, the query has shape {vector.shape}")
    if k < 1:
        raise MemR1Error(f"k must be at least 1, got {k}")
    return vector
