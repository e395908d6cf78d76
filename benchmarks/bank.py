"""The memory bank's speed: durable writes beside ChromaDB alone, search, forks, recovery. CPU only.

    python benchmarks/bank.py [--quick] [--parts chroma,hybrid]

Every figure has its reference in the same run: `chromadb.PersistentClient` for durable writes, a bare numpy product for
exact search. Vectors are given, not computed: embedding would drown the rest.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
import tracemalloc
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from memr1.memory.bank import MemoryBank
from memr1.memory.embed import CachedEmbedder
from memr1.memory.index import ExactIndex, Vectors
from memr1.memory.store import BankStore
from memr1.memory.types import Event, MemoryOp

DIM = 384
PARTS = ("writes", "exact", "chroma", "hybrid", "forks", "memory", "recovery")


class RandomVectors:
    """An embedder that looks texts up: a random unit vector for each."""

    name, dim = "random", DIM

    def embed(self, texts: Sequence[str]) -> Vectors:
        """(n, dim) float32, the same for the same text."""
        seeds = [zlib.crc32(t.encode()) for t in texts]
        rows = np.stack([np.random.default_rng(s).standard_normal(DIM, np.float32) for s in seeds])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def unit(n: int, seed: int = 0) -> Vectors:
    """n random unit vectors (n, DIM)."""
    rows = np.random.default_rng(seed).standard_normal((n, DIM), np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def neighbourly(n: int, seed: int) -> Vectors:
    """n unit vectors (n, DIM) that have neighbourhoods, as sentence embeddings have: 32 dimensions carry them, the same
    for every seed, and the rest is noise. Without any, no graph could lead to a nearest vector."""
    axes = np.random.default_rng(99).standard_normal((32, DIM), np.float32)
    rng = np.random.default_rng(seed)
    rows = np.empty((n, DIM), np.float32)
    for start in range(0, n, 100_000):
        piece = rows[start : start + 100_000]
        piece[:] = rng.standard_normal((len(piece), 32), np.float32) @ axes
        piece += rng.standard_normal(piece.shape, np.float32)
        piece /= np.linalg.norm(piece, axis=1, keepdims=True)
    return rows


def times(run: Callable[[int], object], n: int) -> list[float]:
    """Seconds of each of n calls."""
    out = []
    for i in range(n):
        start = time.perf_counter()
        run(i)
        out.append(time.perf_counter() - start)
    return out


def show(what: str, seconds: Sequence[float], reference: Sequence[float] | None = None, note: str = "") -> None:
    """One line: median and 99th percentile in milliseconds, and how many times faster than the reference."""
    p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
    line = f"{what:<44} p50 {p50:9.3f} ms   p99 {p99:9.3f} ms"
    if reference is not None:
        other = statistics.median(reference) * 1e3
        line += f"   reference {other:9.3f} ms   ratio {other / p50:6.1f}x"
    print(line + (f"   {note}" if note else ""), flush=True)


def durable_writes(folder: Path, n: int) -> None:
    """Single adds and batches of 100, each on disk when it returns, beside Chroma's persistent client."""
    import chromadb

    client = chromadb.PersistentClient(str(folder / "chroma"))
    collection = client.create_collection("bench", embedding_function=None, configuration={"hnsw": {"space": "cosine"}})
    vectors = unit(n * 101)

    def chroma(ids: list[int]) -> None:
        collection.add(ids=[str(i) for i in ids], embeddings=vectors[ids], documents=[f"fact {i}" for i in ids])

    with BankStore.open(folder / "memory.db", RandomVectors()) as store:
        bank = store.create("b")
        ours = times(lambda i: bank.apply([MemoryOp(Event.ADD, f"fact {i}")]), n)
        theirs = times(lambda i: chroma([i]), n)
        show(f"durable add, one at a time ({n})", ours, theirs)
        with_index = times(lambda i: (bank.apply([MemoryOp(Event.ADD, f"more {i}")]), bank.sync()), n)
        show("  the same, with its vector kept and indexed", with_index, theirs)
        many = max(n // 20, 3)
        ours = times(lambda i: bank.apply([MemoryOp(Event.ADD, f"fact {i} {j}") for j in range(100)]), many)
        theirs = times(lambda i: chroma(list(range(n + i * 100, n + i * 100 + 100))), many)
        show(f"durable decision of 100 adds ({many})", ours, theirs)


def search(sizes: Sequence[int], queries: int) -> None:
    """Exact search beside the bare product and partition that no exact search can do without."""
    for size in sizes:
        vectors = neighbourly(size, seed=1)
        index = ExactIndex()
        index.add([f"m{i}" for i in range(size)], vectors)
        asked = neighbourly(queries, seed=2)

        def bare(i: int, vectors: Vectors = vectors, asked: Vectors = asked) -> object:
            scores = vectors @ asked[i]
            return np.argpartition(scores, -10)[-10:]

        def ours(i: int, index: ExactIndex = index, asked: Vectors = asked) -> object:
            return index.query(asked[i], 10)

        bare(0), ours(0)
        reference = times(bare, queries)
        show(f"exact search, k 10, {size} entries", times(ours, queries), reference)


def approximate_search(sizes: Sequence[int], queries: int) -> None:
    """Chroma as an index, beside the exact one: time, and the share of the true ten nearest that it finds."""
    from memr1.memory.chroma_index import ChromaIndex

    for size in sizes:
        vectors, asked = neighbourly(size, seed=1), neighbourly(queries, seed=2)
        names = [f"m{i}" for i in range(size)]
        exact, chroma = ExactIndex(), ChromaIndex(f"search-{size}", collection=f"of-{size}")
        exact.add(names, vectors)
        start = time.perf_counter()
        chroma.add(names, vectors)
        filling = time.perf_counter() - start
        true = [{n for n, _ in exact.query(q, 10)} for q in asked]
        found = [{n for n, _ in chroma.query(q, 10)} for q in asked]
        recall = sum(len(a & b) for a, b in zip(true, found, strict=True)) / (10 * queries)
        reference = times(lambda i, index=exact, asked=asked: index.query(asked[i], 10), queries)
        seconds = times(lambda i, index=chroma, asked=asked: index.query(asked[i], 10), queries)
        show(
            f"Chroma search, k 10, {size} entries",
            seconds,
            reference,
            f"recall {recall:.3f}, filled in {filling:.1f} s",
        )


def hybrid_search(sizes: Sequence[int], queries: int) -> None:
    """Words and vectors fused, beside vectors alone. Each query shares its rare words with one entry, and its vector
    with none: only the words can find it."""
    for size in sizes:
        bank = MemoryBank("b", CachedEmbedder(RandomVectors(), max_texts=2 * size))
        texts = [f"person {i} keeps item {i * 7919 % size} in room {i % 97}" for i in range(size)]
        for i in range(0, size, 1000):
            bank.apply([MemoryOp(Event.ADD, text) for text in texts[i : i + 1000]])
        wanted = [(i * 9973 + 1) % size for i in range(queries)]
        asked = [f"who is person {i} with item {i * 7919 % size}?" for i in wanted]
        bank.search(asked[0], 10, by="hybrid")  # BM25 is made when first asked for
        bank.embedder.embed(asked)
        hits = sum(
            f"m{i + 1}" in {h.entry.id for h in bank.search(q, 10, by="hybrid")}
            for i, q in zip(wanted, asked, strict=True)
        )
        alone = times(lambda i, bank=bank, asked=asked: bank.search(asked[i], 10), queries)
        both = times(lambda i, bank=bank, asked=asked: bank.search(asked[i], 10, by="hybrid"), queries)
        show(
            f"hybrid search, k 10, {size} entries",
            both,
            alone,
            f"recall {hits / queries:.3f} of the entry whose words are asked for",
        )


def diverging(size: int, number: int, rounds: int) -> None:
    """A group of rollouts: forks of one bank that each go their own way, in turns."""
    bank = MemoryBank("b", CachedEmbedder(RandomVectors(), max_texts=2 * size))
    for i in range(0, size, 1000):
        bank.apply([MemoryOp(Event.ADD, f"fact {j}") for j in range(i, min(i + 1000, size))])
    bank.sync()
    tracemalloc.start()
    forks = [bank.fork() for _ in range(number)]
    for f, fork in enumerate(forks):
        fork.apply([MemoryOp(Event.UPDATE, f"first of {f}", "m1")])
    own = tracemalloc.get_traced_memory()[0] / number
    tracemalloc.stop()
    start = time.perf_counter()
    for n in range(rounds):
        for f, fork in enumerate(forks):
            fork.apply([MemoryOp(Event.UPDATE, f"fork {f} says {n}", f"m{n % size + 1}")])
    seconds = time.perf_counter() - start
    print(
        f"{number} forks of {size} entries, in turns{'':<7} {number * rounds / seconds:9.0f} decisions/s"
        f"   {own / 1024:9.1f} KiB of its own for each",
        flush=True,
    )


def memory(size: int) -> None:
    """Python's own count of what a bank in memory takes, and the vectors of its index."""
    tracemalloc.start()
    bank = MemoryBank("b", CachedEmbedder(RandomVectors(), max_texts=1))
    for i in range(0, size, 100):
        bank.apply(
            [MemoryOp(Event.ADD, f"fact number {j} about somebody") for j in range(i, i + 100)], time="2024-03-01"
        )
    entries = tracemalloc.get_traced_memory()[0]
    bank.sync()
    indexed = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    print(
        f"memory of {size} entries{'':<16} {entries / size:9.0f} bytes each with their log, "
        f"{(indexed - entries) / size:.0f} more with vectors of {DIM} float32",
        flush=True,
    )


def forks(size: int, number: int) -> None:
    """Forking a bank, and what the first write to a fork costs."""
    embedder = CachedEmbedder(RandomVectors(), max_texts=2 * size)
    bank = MemoryBank("b", embedder)
    for i in range(0, size, 1000):
        bank.apply([MemoryOp(Event.ADD, f"fact {j}") for j in range(i, min(i + 1000, size))])
    bank.sync()
    made: list[MemoryBank] = []
    show(f"fork of {size} entries", times(lambda _: made.append(bank.fork()), number))
    show("  first write to a fork", times(lambda i: made[i].apply([MemoryOp(Event.ADD, f"fork {i}")]), number))
    show("  second write", times(lambda i: made[i].apply([MemoryOp(Event.ADD, f"again {i}")]), number))
    show("  search in a fork", times(lambda i: made[i].search(f"fact {i}", 5), number))


def recovery(folder: Path, sizes: Sequence[int]) -> None:
    """Opening a bank by the length of its log."""
    for size in sizes:
        path = folder / f"recover-{size}.db"
        plain = MemoryBank("b", CachedEmbedder(RandomVectors()))
        for i in range(size):
            plain.apply([MemoryOp(Event.ADD, f"fact {i}")])
        with BankStore.open(path, RandomVectors()) as store:
            store.adopt(plain)
        start = time.perf_counter()
        with BankStore.open(path, RandomVectors()) as store:
            assert len(store.bank("b")) == size
        seconds = time.perf_counter() - start
        print(
            f"open a bank of {size} decisions{'':<12} {seconds:9.3f} s   {seconds / size * 1e6:7.1f} us each",
            flush=True,
        )


def main() -> None:
    """Print the machine, then one table line after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the work, to see that it runs")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"which, separated by commas: {', '.join(PARTS)}")
    asked = parser.parse_args()
    quick, parts = asked.quick, asked.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--parts: there is no {', '.join(sorted(unknown))}")
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {sys.version.split()[0]}, numpy {np.__version__}")
    sizes = [1_000, 10_000] if quick else [1_000, 10_000, 100_000, 1_000_000]
    queries = 20 if quick else 100
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        if "writes" in parts:
            durable_writes(folder, 20 if quick else 200)
        if "exact" in parts:
            search(sizes, queries)
        if "chroma" in parts:
            approximate_search(sizes, queries)
        if "hybrid" in parts:
            hybrid_search(sizes, queries)
        if "forks" in parts:
            forks(1_000 if quick else 100_000, 16 if quick else 64)
            for size in sizes[:3]:
                diverging(size, 64, 10 if quick else 50)
        if "memory" in parts:
            memory(1_000 if quick else 10_000)
        if "recovery" in parts:
            recovery(folder, [1_000] if quick else [1_000, 10_000, 50_000])


if __name__ == "__main__":
    main()
