"""ChromaDB as an index: vectors only, in collections shared by many banks, behind the same protocol as the exact one.

Chroma is not the system of record. Measured with 1.5.9: `add` of a known id is ignored and `update` of an unknown one
does nothing (so: upsert), batches above 5,461 fail (so: split), an empty list of ids raises (so: never sent), the
default distance is l2 and the default embedder downloads a model (so: both are set), its search is approximate, and a
process killed during a flush can leave a collection unreadable (so: `memr1.memory.chroma_folder` trusts sealed files).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from memr1.errors import MemR1Error
from memr1.memory.chroma_folder import distrust, open_folder
from memr1.memory.index import ExactIndex, IndexLost, Vectors, best, check_query, check_vectors

_SPARE = 8
"""Further candidates asked for beyond k, so that ties at the cut are seen and ranked by id."""


class ChromaIndex:
    """One bank's part of a shared Chroma collection.

    The bank's id is put into every stored id by this class and looked for in every answer, never by a caller, so one
    bank cannot see another's vectors. One process may own a path at a time: Chroma loses vectors when two write to it.
    """

    def __init__(
        self, namespace: str, path: str | Path | None = None, collection: str = "memr1", client: Any = None
    ) -> None:
        """namespace: the bank's id; must be unique in the collection.
        path: folder of a persistent database; None keeps everything in the memory of this process. Files in it that
            were not closed in order (`chroma_folder.close_folders`, called at exit), or were damaged, are made again.
        collection: name prefix; the width of the vectors is added, as a collection takes one width only.
        client: a ready Chroma client (for example `chromadb.HttpClient`) instead of path."""
        self.namespace = namespace
        self._folder = path if client is None else None
        self._client = client if client is not None else _in_memory() if path is None else open_folder(path)
        self._prefix = collection
        # a digest of fixed width: with the name itself, bank "a:b" id "c" and bank "a" id "b:c" could be one
        self._scope = hashlib.blake2b(namespace.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest() + ":"
        self._collection: Any = None
        self._dim: int | None = None
        self._ids: set[str] = set()
        self._reopen()

    def __len__(self) -> int:
        return len(self._ids)

    def ids(self) -> set[str]:
        """Every id in the index."""
        return set(self._ids)

    def add(self, ids: Sequence[str], vectors: Vectors) -> None:
        """Store vectors (n, dim), in batches that Chroma accepts."""
        vectors = check_vectors(ids, vectors, self._dim)
        if len(ids) == 0:
            return
        with self._explained():
            if self._collection is None:
                self._dim = vectors.shape[1]
                self._collection = self._client.get_or_create_collection(
                    f"{self._prefix}-{self._dim}", embedding_function=None, configuration={"hnsw": {"space": "cosine"}}
                )
            for rows in self._batches(range(len(ids))):
                self._collection.upsert(
                    ids=[self._scope + ids[row] for row in rows],
                    embeddings=vectors[rows[0] : rows[-1] + 1],
                    metadatas=[{"bank": self._scope}] * len(rows),
                )
        self._ids.update(ids)

    def remove(self, ids: Iterable[str]) -> None:
        """Take ids out; unknown ids are ignored."""
        gone = self._ids.intersection(ids)
        with self._explained():
            for batch in self._batches(sorted(gone)):
                self._collection.delete(ids=[self._scope + name for name in batch])
        self._ids -= gone
        if not self._ids:  # an empty index takes vectors of any width, which live in another collection
            self._collection = self._dim = None

    def erase(self, ids: Iterable[str]) -> None:
        """See `VectorIndex.erase`: the files of a folder, in which Chroma leaves what it deletes, are made again."""
        self.remove(ids)
        if self._folder is not None:
            distrust(self._folder)

    def query(self, vector: Vectors, k: int, allowed: Collection[str] | None = None) -> list[tuple[str, float]]:
        """The k nearest as far as Chroma finds them (approximate on large collections), scored again exactly."""
        vector = check_query(vector, k, self._dim)
        names = self._ids if allowed is None else self._ids.intersection(allowed)
        if not names:
            return []
        found: dict[str, Vectors] = {}
        limits: Iterable[Any] = [None] if allowed is None else self._batches(sorted(names))
        with self._explained():
            # Chroma's filter looks at every entry, a hundred times the search; a bank on its own needs none
            alone = self._collection.count() == len(self._ids)
        for batch in limits:
            with self._explained():
                answer = self._collection.query(
                    query_embeddings=[vector],
                    n_results=k + _SPARE,
                    where=None if alone else {"bank": self._scope},
                    ids=None if batch is None else [self._scope + name for name in batch],
                    include=["embeddings"],
                )
            for stored, row in zip(answer["ids"][0], answer["embeddings"][0], strict=True):
                name = stored.removeprefix(self._scope)
                if name in names:  # another process may have written to the collection behind our back
                    found[name] = row
        if allowed is None and len(found) < min(k, len(names)):  # crowded out by strangers, or missed by the graph
            return self.query(vector, k, allowed=names)
        return best(list(found), np.asarray(list(found.values()), np.float32), vector, k) if found else []

    def fork(self) -> ExactIndex:
        """An exact index of the same vectors: forks are many and short-lived, and stay out of the collection."""
        copy = ExactIndex()
        for batch in self._batches(sorted(self._ids)):
            with self._explained():
                answer = self._collection.get(ids=[self._scope + name for name in batch], include=["embeddings"])
            vectors = np.asarray(answer["embeddings"], np.float32)
            if len(vectors) != len(batch):
                raise MemR1Error(
                    f"the Chroma index of bank {self.namespace!r} lost {len(batch) - len(vectors)} of {len(batch)} "
                    "vectors; call rebuild_index() on the bank"
                )
            copy.add([stored.removeprefix(self._scope) for stored in answer["ids"]], vectors)
        return copy

    def _reopen(self) -> None:
        """Find what an earlier process stored for this bank."""
        with self._explained():
            for found in self._client.list_collections():
                prefix, _, width = found.name.rpartition("-")
                if prefix != self._prefix or not width.isdigit():
                    continue
                collection = self._client.get_collection(found.name, embedding_function=None)
                stored = collection.get(where={"bank": self._scope}, include=[])["ids"]
                if stored and self._collection is not None:
                    raise MemR1Error(
                        f"bank {self.namespace!r} has vectors in {self._collection.name} and {collection.name}, of two "
                        "embedders; delete the index folder and open the bank again, which fills a new one"
                    )
                if stored:
                    self._collection, self._dim = collection, int(width)
                    self._ids = {name.removeprefix(self._scope) for name in stored}

    def _batches(self, items: Sequence[Any]) -> Iterator[Sequence[Any]]:
        with self._explained():
            size = self._client.get_max_batch_size()
        return (items[start : start + size] for start in range(0, len(items), size))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Chroma's own errors, with what to do about them."""
        try:
            yield
        except MemR1Error:
            raise
        except Exception as error:  # Chroma's own, those of its HTTP client, and bare ones of its Rust core
            raise IndexLost(
                f"the Chroma index of bank {self.namespace!r} failed ({type(error).__name__}: {error}); it is only an "
                "index: start its server again, or delete its folder and open the bank again, which fills a new one"
            ) from error


def _in_memory() -> Any:
    import chromadb
    from chromadb.config import Settings

    return chromadb.EphemeralClient(Settings(anonymized_telemetry=False))
