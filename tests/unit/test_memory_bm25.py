"""BM25 against the formula worked out by hand, and its order."""

from __future__ import annotations

import math

import pytest

from memr1.errors import MemR1Error
from memr1.memory.bm25 import BM25Retriever

TEXTS = ["the cat sat", "the dog sat on the mat with the other dog", "a Dog, asleep", "", "birds fly"]


def by_hand(query: str, words: list[list[str]], i: int, k1: float = 1.5, b: float = 0.75) -> float:
    """Lucene's BM25, without the constant factor k1 + 1 that changes no order."""
    average = sum(map(len, words)) / len(words)
    score = 0.0
    for word in query.split():
        df = sum(word in w for w in words)
        idf = math.log(1 + (len(words) - df + 0.5) / (df + 0.5))
        tf = words[i].count(word)
        score += idf * tf / (tf + k1 * (1 - b + b * len(words[i]) / average))
    return score


def test_scores_are_those_of_the_formula() -> None:
    words = [
        ["the", "cat", "sat"],
        ["the", "dog", "sat", "on", "the", "mat", "with", "the", "other", "dog"],
        ["a", "dog", "asleep"],
        [],
        ["birds", "fly"],
    ]
    found = dict(BM25Retriever(TEXTS).query("dog sat", 5))
    assert found == pytest.approx({i: by_hand("dog sat", words, i) for i in (0, 1, 2)}, rel=1e-5)


def test_best_come_first_and_texts_without_a_common_word_are_no_hits() -> None:
    retriever = BM25Retriever(TEXTS)
    assert retriever.query("the DOG", 9)[0][0] == 1
    assert {i for i, _ in retriever.query("dog", 9)} == {1, 2}
    assert len(retriever.query("dog", 1)) == 1
    assert retriever.query("zebra", 3) == [] and retriever.query("?!", 3) == []


def test_ties_come_in_order_of_the_list() -> None:
    assert [i for i, _ in BM25Retriever(["x y"] * 5 + ["z"]).query("x", 3)] == [0, 1, 2]


@pytest.mark.parametrize("texts", [[], [""], ["?", "!"]])
def test_nothing_to_search_finds_nothing(texts: list[str]) -> None:
    assert BM25Retriever(texts).query("x", 3) == []


def test_k_must_be_positive() -> None:
    with pytest.raises(MemR1Error, match="at least 1"):
        BM25Retriever(TEXTS).query("dog", 0)
