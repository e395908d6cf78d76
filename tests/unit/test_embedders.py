"""Embedders and their cache. The test with the real MiniLM is marked `model` and skips where it cannot be had."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from memr1.errors import MemR1Error
from memr1.memory.embed import CachedEmbedder, HashEmbedder, SentenceTransformerEmbedder, load_embedder
from memr1.memory.index import Vectors

ODD_TEXTS = ["", "!!!", "a", "a b " * 500, "日本語 テキスト", "half \ud83d", "\x00"]


def test_hash_vectors_have_length_one_whatever_the_text() -> None:
    vectors = HashEmbedder(8).embed(ODD_TEXTS + [f"{i} {i * 7}" for i in range(2000)])
    assert vectors.shape == (2007, 8) and vectors.dtype == np.float32
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-6


def test_hash_vectors_are_the_same_in_another_process() -> None:
    code = (
        "from memr1.memory.embed import HashEmbedder as H; import hashlib;"
        "print(hashlib.sha256(H().embed(['Ann lives in Rome']).tobytes()).hexdigest())"
    )
    here = hashlib.sha256(HashEmbedder().embed(["Ann lives in Rome"]).tobytes()).hexdigest()
    root = Path(__file__).parents[2]
    for seed in ("1", "2"):
        there = subprocess.run(
            [sys.executable, "-c", code],
            cwd=root,
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert there.stdout.strip() == here


def test_hash_similarity_is_that_of_shared_words_and_pairs() -> None:
    embedder = HashEmbedder(4096)
    a, b, c, d = embedder.embed(["Ann lives in Rome", "ann LIVES in Oslo!", "Rome in lives Ann", "tea is hot"])
    assert a @ b == pytest.approx(5 / 7)  # 3 words and 2 pairs in common of 4 + 3
    assert a @ c == pytest.approx(4 / 7)  # the same words, no pair
    assert a @ d == pytest.approx(0)


def test_batch_equals_single() -> None:
    embedder = HashEmbedder()
    assert (embedder.embed(ODD_TEXTS) == np.concatenate([embedder.embed([t]) for t in ODD_TEXTS])).all()


def test_a_hash_embedder_can_be_pickled() -> None:
    copy = pickle.loads(pickle.dumps(HashEmbedder(16)))
    assert (copy.embed(["x y"]) == HashEmbedder(16).embed(["x y"])).all()


class Counting(HashEmbedder):
    def __init__(self, pause_s: float = 0.0) -> None:
        super().__init__(16)
        self.batches: list[list[str]] = []
        self.pause_s = pause_s

    def embed(self, texts: Sequence[str]) -> Vectors:
        self.batches.append(list(texts))
        time.sleep(self.pause_s)
        return super().embed(texts)


def test_cache_embeds_each_text_once_and_keeps_the_order() -> None:
    inner = Counting()
    cached = CachedEmbedder(inner)
    asked = ["b", "a", "b", "c", "a"]
    assert (cached.embed(asked) == HashEmbedder(16).embed(asked)).all()
    assert (cached.embed(["d", "a"]) == HashEmbedder(16).embed(["d", "a"])).all()
    assert inner.batches == [["b", "a", "c"], ["d"]]
    assert (cached.hits, cached.misses) == (3, 4)
    assert (cached.name, cached.dim) == ("hash-16", 16)


def test_cache_forgets_what_was_used_longest_ago() -> None:
    inner = Counting()
    cached = CachedEmbedder(inner, max_texts=2)
    for text in ("a", "b", "a", "c", "a", "b"):
        cached.embed([text])
    assert inner.batches == [["a"], ["b"], ["c"], ["b"]]
    assert (cached.embed(list("uvwxyz")) == HashEmbedder(16).embed(list("uvwxyz"))).all(), "a batch above the limit"


def test_what_a_caller_does_to_a_vector_does_not_reach_the_cache() -> None:
    cached = CachedEmbedder(HashEmbedder(16))
    cached.embed(["a"])[:] = 0
    assert np.linalg.norm(cached.embed(["a"])) == pytest.approx(1)


def test_no_texts_give_no_rows() -> None:
    for embedder in (HashEmbedder(16), CachedEmbedder(HashEmbedder(16))):
        assert embedder.embed([]).shape == (0, 16)


def test_threads_that_need_one_new_text_embed_it_once() -> None:
    inner = Counting(pause_s=0.02)
    cached = CachedEmbedder(inner)
    results: list[Vectors] = []
    threads = [threading.Thread(target=lambda: results.append(cached.embed(["a", "b"]))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inner.batches == [["a", "b"]] and len(results) == 8
    assert all((r == results[0]).all() for r in results)


def test_load_embedder_knows_its_names() -> None:
    assert (load_embedder("hash").name, load_embedder("hash").dim) == ("hash-256", 256)
    assert load_embedder("hash-64").dim == 64


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("minlm", "did you mean minilm"),
        ("/no/such/folder", "no such folder"),
        ("hash-0", "dim must be at least 1"),
        ("./models/mini", "no such folder"),
    ],
)
def test_an_unknown_embedder_is_refused_at_once(name: str, message: str) -> None:
    with pytest.raises(MemR1Error, match=message):
        load_embedder(name)


@pytest.fixture(scope="module")
def minilm() -> SentenceTransformerEmbedder:
    return load_embedder("minilm").inner  # type: ignore[return-value]


@pytest.mark.model
def test_minilm_paraphrases_are_nearer_than_unrelated_sentences(minilm: SentenceTransformerEmbedder) -> None:
    a, b, c = minilm.embed(["Ann bought a new car.", "Ann purchased an automobile.", "The soup needs more salt."])
    assert a @ b > 0.7 and a @ c < 0.2
    assert (minilm.name, minilm.dim) == ("minilm", 384)


@pytest.mark.model
def test_minilm_batch_equals_single(minilm: SentenceTransformerEmbedder) -> None:
    texts = ["short", "a sentence of a few more words than that", "x " * 300, "Ünïcödé ☕", ""]
    batch = minilm.embed(texts)
    assert np.abs(batch - np.concatenate([minilm.embed([t]) for t in texts])).max() < 1e-5
    assert np.abs(np.linalg.norm(batch, axis=1) - 1).max() < 1e-5
