"""Embeddings of entries, kept in the database of a store so that an opened bank embeds nothing twice. Derived data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, suppress

import numpy as np
from sqlalchemy import Connection, delete, insert, select

from memr1.errors import MemR1Error
from memr1.memory import tables
from memr1.memory.embed import Embedder
from memr1.memory.index import Vectors


def digest(text: str) -> str:
    """Name of a text in the table."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class KeptVectors:
    """An embedder in front of another one. Where the database cannot be read or written, the other one does it alone:
    a search must not fail for want of a copy."""

    def __init__(
        self,
        transaction: Callable[[str], AbstractContextManager[Connection]],
        still_owner: Callable[[Connection], None],
        inner: Embedder,
    ) -> None:
        """transaction: opens a transaction, given a word on what it is for. still_owner: raises unless this process may
        write."""
        self._transaction, self._still_owner, self.inner = transaction, still_owner, inner
        self.name, self.dim = inner.name, inner.dim
        self._erased: set[str] = set()
        """Digests that are not kept again while this process lives: forks may still hold what a bank has erased."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """n texts to (n, dim) float32; those in the database are read, the others computed and written."""
        digests = [digest(t) for t in texts]
        found: dict[str, Vectors] = {}
        with suppress(MemR1Error):
            found = self._read(list(dict.fromkeys(digests)))
        missing = {d: t for d, t in zip(digests, texts, strict=True) if d not in found}
        if missing:
            fresh = np.asarray(self.inner.embed(list(missing.values())), np.float32)
            found |= dict(zip(missing, fresh, strict=True))
            with suppress(MemR1Error):
                self._write({d: found[d] for d in missing})
        return np.stack([found[d] for d in digests]) if texts else np.zeros((0, self.dim), np.float32)

    def embed_query(self, text: str) -> Vectors:
        """(dim,) of a query. Queries are not kept: there is no end to them."""
        return np.asarray(self.inner.embed([text])[0], np.float32)

    def delete(self, connection: Connection, texts: Iterable[str]) -> None:
        """Delete the vectors of texts."""
        digests, v = list({digest(text) for text in texts}), tables.vectors.c
        for i in range(0, len(digests), tables.PER_STATEMENT):
            connection.execute(delete(tables.vectors).where(v.digest.in_(digests[i : i + tables.PER_STATEMENT])))

    def forget(self, connection: Connection, texts: Iterable[str]) -> None:
        """Delete the vectors of texts, and keep none of them from now on."""
        texts = list(texts)
        self._erased |= {digest(text) for text in texts}
        self.delete(connection, texts)

    def _read(self, digests: Sequence[str]) -> dict[str, Vectors]:
        found: dict[str, Vectors] = {}
        v = tables.vectors.c
        for i in range(0, len(digests), tables.PER_STATEMENT):
            batch = digests[i : i + tables.PER_STATEMENT]
            with self._transaction("reading vectors") as connection:
                rows = connection.execute(
                    select(v.digest, v.vector).where(v.embedder == self.name, v.digest.in_(batch))
                ).all()
            for name, blob in rows:
                vector = np.frombuffer(blob, np.float32) if len(blob) == 4 * self.dim else None
                # of another width, or damaged: computed again
                if vector is not None and abs(float(np.linalg.norm(vector)) - 1) < 1e-3:
                    found[name] = vector
        return found

    def _write(self, fresh: dict[str, Vectors]) -> None:
        rows = [
            {"embedder": self.name, "digest": d, "vector": v.tobytes()}
            for d, v in fresh.items()
            if d not in self._erased
        ]
        v = tables.vectors.c
        for i in range(0, len(rows), tables.PER_STATEMENT):
            batch = rows[i : i + tables.PER_STATEMENT]
            with self._transaction("keeping vectors") as connection:
                self._still_owner(connection)
                connection.execute(
                    delete(tables.vectors).where(v.embedder == self.name, v.digest.in_([r["digest"] for r in batch]))
                )
                connection.execute(insert(tables.vectors), batch)
