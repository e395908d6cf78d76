"""One suite for all indexes, small enough that Chroma's approximate search is exact, then what each has of its own.

Not covered: recall of Chroma on large collections, and processes killed during a flush.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import chromadb
import numpy as np
import pytest
from chromadb.config import Settings

from memr1.errors import MemR1Error
from memr1.memory.bank import MemoryBank
from memr1.memory.chroma_index import ChromaIndex
from memr1.memory.embed import CachedEmbedder, HashEmbedder
from memr1.memory.index import ExactIndex, IndexLost, VectorIndex, Vectors, natural_order
from memr1.memory.types import Event, MemoryOp

Make = Callable[[], VectorIndex]


def new_chroma() -> ChromaIndex:
    return ChromaIndex(uuid.uuid4().hex, collection="test")


class ChromaServer:
    """`chroma run` on a free port of loopback, over a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.start()

    def start(self) -> None:
        program = Path(sys.executable).with_name("chroma")
        self._process = subprocess.Popen(
            [str(program), "run", "--host", "127.0.0.1", "--port", str(self.port), "--path", str(self.folder)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                self.client = chromadb.HttpClient("127.0.0.1", self.port, settings=Settings(anonymized_telemetry=False))
                return
            except Exception:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise
                time.sleep(0.1)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChromaServer]:
    running = ChromaServer(tmp_path_factory.mktemp("chroma"))
    yield running
    running.stop()


@pytest.fixture(params=["exact", "chroma", "chroma server"])
def make(request: pytest.FixtureRequest) -> Make:
    if request.param == "chroma server":
        client = request.getfixturevalue("server").client
        return lambda: ChromaIndex(uuid.uuid4().hex, collection="test", client=client)
    return ExactIndex if request.param == "exact" else new_chroma


def unit(n: int, dim: int = 24, seed: int = 0) -> Vectors:
    vectors = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def names(n: int) -> list[str]:
    return [f"m{i}" for i in range(1, n + 1)]


def oracle(ids: list[str], vectors: Vectors, query: Vectors, k: int) -> list[tuple[str, float]]:
    scores = vectors.astype(np.float64) @ query.astype(np.float64)
    return [(ids[i], scores[i]) for i in np.argsort(-scores, kind="stable")[:k]]


def assert_same(found: list[tuple[str, float]], expected: list[tuple[str, float]]) -> None:
    assert [name for name, _ in found] == [name for name, _ in expected]
    assert [s for _, s in found] == pytest.approx([s for _, s in expected], abs=1e-6)


def test_query_equals_brute_force_through_adds_replacements_and_removals(make: Make) -> None:
    index, ids, vectors = make(), names(200), unit(200)
    for start in range(0, 200, 23):
        index.add(ids[start : start + 23], vectors[start : start + 23])
    queries = unit(5, seed=1)
    for query in queries:
        assert_same(index.query(query, 10), oracle(ids, vectors, query, 10))
    index.remove(ids[::3])
    vectors[1::3] = unit(len(ids[1::3]), seed=2)
    index.add(ids[1::3], vectors[1::3])
    kept = [i for i in range(200) if i % 3]
    for query in queries:
        assert_same(index.query(query, 10), oracle([ids[i] for i in kept], vectors[kept], query, 10))
    assert len(index) == len(kept) and index.ids() == {ids[i] for i in kept}


def test_adding_a_known_id_replaces_its_vector(make: Make) -> None:
    index, vectors = make(), unit(2)
    index.add(["m1"], vectors[:1])
    index.add(["m1"], vectors[1:])
    assert len(index) == 1
    assert_same(index.query(vectors[1], 5), [("m1", 1.0)])


def test_removing_an_unknown_id_or_nothing_does_nothing(make: Make) -> None:
    index = make()
    index.remove(["m1"])
    index.remove([])
    index.add(["m1"], unit(1))
    index.remove(["m2", "m1", "m1"])
    index.remove(["m1"])
    assert len(index) == 0 and index.query(unit(1)[0], 3) == []


def test_an_id_that_was_removed_can_come_back(make: Make) -> None:
    index, vectors = make(), unit(70)
    index.add(names(70), vectors)
    index.remove(["m1"])
    index.add(["m1"], vectors[1:2])
    assert_same(index.query(vectors[1], 2), [("m1", 1.0), ("m2", 1.0)])


def test_ties_come_in_natural_order_even_at_the_cut(make: Make) -> None:
    index, same = make(), np.repeat(unit(1), 12, axis=0)
    index.add([f"m{i}" for i in range(12, 0, -1)], same)
    assert [name for name, _ in index.query(same[0], 11)] == names(11)
    assert [name for name, _ in index.query(same[0], 9, allowed=set(names(12)))] == names(9)


def test_allowed_limits_the_search_and_unknown_ids_in_it_count_for_nothing(make: Make) -> None:
    index, ids, vectors = make(), names(90), unit(90)
    index.add(ids, vectors)
    index.remove(["m4"])
    query = unit(1, seed=3)[0]
    chosen = [1, 6, 8, 80]
    allowed = {ids[i] for i in chosen} | {"m4", "m777"}
    assert_same(index.query(query, 9, allowed), oracle([ids[i] for i in chosen], vectors[chosen], query, 9))
    assert index.query(query, 9, allowed=set()) == []


def test_more_neighbours_than_there_are_gives_all(make: Make) -> None:
    index = make()
    index.add(names(3), unit(3))
    assert len(index.query(unit(1)[0], 50)) == 3


def test_fork_is_equal_and_independent_in_both_directions(make: Make) -> None:
    index, ids, vectors = make(), names(150), unit(150)
    index.add(ids[:100], vectors[:100])
    fork = index.fork()
    second = fork.fork()
    index.add(ids[100:], vectors[100:])
    index.remove(ids[:10])
    fork.remove(ids[50:60])
    query = unit(1, seed=4)[0]
    assert_same(index.query(query, 20), oracle(ids[10:], vectors[10:], query, 20))
    left = [i for i in range(100) if not 50 <= i < 60]
    assert_same(fork.query(query, 20), oracle([ids[i] for i in left], vectors[left], query, 20))
    assert_same(second.query(query, 20), oracle(ids[:100], vectors[:100], query, 20))


@pytest.mark.parametrize(
    ("ids", "vectors", "message"),
    [
        (["m1", "m2"], unit(1), "2 ids"),
        (["m1", "m1"], unit(2), "twice"),
        (["m2"], unit(1, dim=8), "another embedder"),
        (["m2"], 3 * unit(1), "length 1"),
        (["m2"], np.full((1, 24), np.nan), "length 1"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(make: Make, ids: list[str], vectors: Vectors, message: str) -> None:
    index = make()
    index.add(["m1"], unit(1))
    with pytest.raises(MemR1Error, match=message):
        index.add(ids, vectors)
    assert len(index) == 1


def test_an_emptied_index_takes_vectors_of_another_width(make: Make) -> None:
    index = make()
    index.add(["m1"], unit(1))
    index.remove(["m1"])
    index.add(["m1"], unit(1, dim=8))
    assert_same(index.query(unit(1, dim=8)[0], 1), [("m1", 1.0)])


def test_natural_order_counts_and_bears_any_digits() -> None:
    ids = ["m10", "m9", "m2@10", "m2@9", "m", "9" * 5000, "m٣"]
    assert sorted(ids, key=natural_order) == ["9" * 5000, "m", "m2@9", "m2@10", "m9", "m10", "m٣"]


def test_exact_scores_do_not_depend_on_where_a_vector_lies() -> None:
    ids, vectors, query = names(300), unit(300, 384), unit(1, 384, seed=5)[0]
    at_once, one_by_one = ExactIndex(), ExactIndex()
    at_once.add(ids, vectors)
    for i in reversed(range(300)):
        one_by_one.add([ids[i]], vectors[i : i + 1])
    assert at_once.query(query, 50) == one_by_one.query(query, 50), "equal to the last bit"


def test_forking_an_exact_index_shares_its_vectors() -> None:
    index = ExactIndex()
    index.add(names(1000), unit(1000))
    fork = index.fork()
    fork.add(["m1001"], unit(1))
    assert fork._block is index._block is not None and len(fork._tail) == 1


def test_banks_in_one_chroma_collection_never_see_each_others_vectors() -> None:
    a, b, vectors = new_chroma(), new_chroma(), unit(40)
    a.add(names(20), vectors[:20])
    b.add(names(20), vectors[20:])
    assert a._collection.name == b._collection.name
    for index, own in ((a, vectors[:20]), (b, vectors[20:])):
        assert_same(index.query(vectors[3], 20), oracle(names(20), own, vectors[3], 20))
    a.remove(names(20))
    assert len(b.query(vectors[3], 20)) == 20


def test_vectors_that_came_into_a_chroma_collection_from_elsewhere_are_not_returned() -> None:
    index, vectors = new_chroma(), unit(20)
    index.add(names(10), vectors[:10])
    ChromaIndex(index.namespace, collection="test").add(
        [f"x{i}" for i in range(30)], np.repeat(vectors[10:11], 30, axis=0)
    )
    assert_same(index.query(vectors[10], 10), oracle(names(10), vectors[:10], vectors[10], 10))


def test_chroma_takes_more_vectors_than_one_of_its_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    index, ids, vectors = new_chroma(), names(100), unit(100)
    monkeypatch.setattr(type(index._client), "get_max_batch_size", lambda self: 7)
    index.add(ids, vectors)
    query = unit(1, seed=6)[0]
    assert_same(index.query(query, 9), oracle(ids, vectors, query, 9))
    assert_same(index.query(query, 9, allowed=set(ids[:50])), oracle(ids[:50], vectors[:50], query, 9))
    assert_same(index.fork().query(query, 9), oracle(ids, vectors, query, 9))
    index.remove(ids[20:])
    assert_same(index.query(query, 9), oracle(ids[:20], vectors[:20], query, 9))


def add(*texts: str) -> list[MemoryOp]:
    return [MemoryOp(Event.ADD, text) for text in texts]


FACTS = ["Ann lives in Rome", "Ann has a dog", "Bob likes tea", "the tea is hot", "a dog in Rome"]


def changed_bank(index: str | VectorIndex) -> MemoryBank:
    bank = MemoryBank("b", HashEmbedder(32), index)
    bank.apply(add(*FACTS))
    bank.search("Ann", 2)
    bank.apply([MemoryOp(Event.UPDATE, "Ann has a cat", "m2"), MemoryOp(Event.DELETE, entry_id="m4"), *add("tea tea")])
    return bank


def test_a_bank_finds_the_same_with_either_index_also_after_changes_and_in_forks() -> None:
    banks = [changed_bank("exact"), changed_bank("chroma")]
    banks += [bank.fork() for bank in banks]
    for bank in banks[2:]:
        bank.apply(add("Ann in Oslo"))
    for query in ("Ann", "tea", "a dog in Rome"):
        for left, right in ((0, 1), (2, 3)):
            a, b = (
                [(h.entry.id, round(h.score, 6)) for h in banks[i].search(query, 4, filters={"kind": "text"})]
                for i in (left, right)
            )
            assert a == b and len(a) == 4
    for bank in banks:
        bank.verify()


def test_a_chroma_index_on_disk_is_taken_up_again_and_only_differences_are_embedded(tmp_path: Path) -> None:
    bank = changed_bank(ChromaIndex("b", path=tmp_path / "index"))
    hits = bank.search("Ann in Rome", 4)
    bank.dump(tmp_path / "bank.jsonl")
    bank.apply(add("never dumped"))  # the index knows what the file does not
    bank.sync()

    embedder = CachedEmbedder(HashEmbedder(32))
    again = MemoryBank.load(tmp_path / "bank.jsonl", embedder, ChromaIndex("b", path=tmp_path / "index"))
    assert again.search("Ann in Rome", 4) == hits
    assert embedder.misses == 1, "the query alone: every vector was there"
    again.verify()


def test_a_chroma_index_of_another_embedder_or_another_past_is_not_believed(tmp_path: Path) -> None:
    MemoryBank("b", HashEmbedder(32), ChromaIndex("b", path=tmp_path)).apply(add("x"))
    first = MemoryBank("b", HashEmbedder(32), ChromaIndex("b", path=tmp_path))
    first.apply(add("Ann lives in Rome"))
    first.sync()
    other = MemoryBank("b", HashEmbedder(32), ChromaIndex("b", path=tmp_path))
    other.apply(add("Bob likes tea"))
    [hit] = other.search("Bob likes tea", 3)
    assert (hit.entry.id, hit.score) == ("m1", pytest.approx(1.0, abs=1e-6))
    wider = MemoryBank.from_snapshot(other.snapshot(), HashEmbedder(48), ChromaIndex("b", path=tmp_path))
    assert wider.search("Bob likes tea", 3)[0].score == pytest.approx(1.0, abs=1e-6)
    wider.verify()


def test_drift_of_an_index_is_detected_and_rebuilding_mends_it() -> None:
    for index in (ExactIndex(), new_chroma()):
        bank = changed_bank(index)
        hits = bank.search("Ann", 5)
        index.remove(list(index.ids())[:2])
        with pytest.raises(MemR1Error, match="lacks 2 entries"):
            bank.verify()
        bank.rebuild_index()
        assert bank.search("Ann", 5) == hits
        bank.verify()


def test_a_bank_goes_on_without_an_index_that_is_lost_and_takes_it_up_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = ChromaServer(tmp_path)
    try:
        bank = changed_bank(ChromaIndex("b", client=server.client))
        hits = bank.search("Ann", 5)
        server.stop()
        bank.apply([MemoryOp(Event.ADD, "Ann sings at night")])
        bank.sync()
        assert [h.entry.text for h in bank.fork().search("Ann sings at night", 1)] == ["Ann sings at night"]
        with pytest.raises(MemR1Error, match="its index is lost"):
            bank.verify()
        found = bank.search("Ann sings at night", 1)
        assert [h.entry.text for h in found] == ["Ann sings at night"]
        assert "searches without its index until rebuild_index()" in caplog.text
        assert {h.entry.id for h in hits} <= {h.entry.id for h in bank.search("Ann", 9)}
        with pytest.raises(IndexLost, match="start its server again"):
            bank.rebuild_index()
        assert bank.search("Ann sings at night", 1) == found
        server.start()
        bank.rebuild_index()
        assert [h.entry for h in bank.search("Ann sings at night", 1)] == [h.entry for h in found]
        bank.verify()
    finally:
        server.stop()


def test_hits_that_are_no_longer_live_are_dropped_and_the_next_best_fill_their_place() -> None:
    index = ExactIndex()
    bank = changed_bank(index)
    hits = bank.search("Ann", 3)
    vector = HashEmbedder(32).embed(["Ann"])
    for stale in ("m1@7#0000", "m4@1#0000", "m99@1#0000", "nonsense"):
        index.add([stale], vector)
    assert bank.search("Ann", 3) == hits


def test_an_unknown_index_is_refused() -> None:
    with pytest.raises(MemR1Error, match="'faiss' is not known"):
        MemoryBank("b", HashEmbedder(8), "faiss")
