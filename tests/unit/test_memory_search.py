"""Ways to search a bank: by vectors, by words, by both, and as of an earlier time. Indexes have tests of their own."""

from __future__ import annotations

import pytest

from memr1.errors import MemR1Error
from memr1.memory.bank import MemoryBank
from memr1.memory.embed import HashEmbedder
from memr1.memory.fusion import fuse
from memr1.memory.types import Event, Hit, MemoryOp, Provenance

TEXTS = ("Ann lives in Rome", "Ann has a dog named Rex", "Bob likes green tea", "the tea of Bob is never hot")


@pytest.fixture
def bank() -> MemoryBank:
    bank = MemoryBank("b", HashEmbedder(64))
    for day, text in enumerate(TEXTS, start=1):
        bank.apply(
            [MemoryOp(Event.ADD, text)], time=f"2024-03-{day:02d}", provenance=Provenance(speaker=text.split()[0])
        )
    return bank


def ids(hits: list[Hit]) -> list[str]:
    return [h.entry.id for h in hits]


def test_fusion_is_the_sum_of_reciprocal_ranks() -> None:
    found = fuse([["a", "b", "c"], ["c", "a", "d"]], k=3)
    expected = {"a": 1 / 61 + 1 / 62, "b": 1 / 62, "c": 1 / 63 + 1 / 61, "d": 1 / 63}
    assert found == [(n, pytest.approx(expected[n])) for n in ("a", "c", "b")]
    assert fuse([["x", "y"], ["y", "x"]], k=2) == [
        ("x", pytest.approx(1 / 61 + 1 / 62)),
        ("y", pytest.approx(1 / 61 + 1 / 62)),
    ]
    assert fuse([[], []], k=2) == []


def test_words_find_what_shares_them_and_nothing_else(bank: MemoryBank) -> None:
    assert ids(bank.search("tea", 9, by="words")) == ["m3", "m4"]
    assert bank.search("helicopter", 9, by="words") == []
    assert ids(bank.search("tea", 1, by="words", filters={"speaker": "the"})) == ["m4"]


def test_words_follow_every_change(bank: MemoryBank) -> None:
    assert ids(bank.search("Rome", 9, by="words")) == ["m1"]
    bank.apply([MemoryOp(Event.UPDATE, "Ann lives in Oslo", "m1")])
    assert bank.search("Rome", 9, by="words") == []
    assert ids(bank.search("Oslo", 9, by="words")) == ["m1"]
    bank.apply([MemoryOp(Event.DELETE, entry_id="m1")])
    assert bank.search("Oslo", 9, by="words") == []
    fork = bank.fork()
    fork.apply([MemoryOp(Event.ADD, "Oslo is cold")])
    assert ids(fork.search("Oslo", 9, by="words")) == ["m5"] and bank.search("Oslo", 9, by="words") == []


def test_hybrid_fuses_the_two_rankings(bank: MemoryBank) -> None:
    query = "what tea does Bob like?"
    rankings = [ids(bank.search(query, 50)), ids(bank.search(query, 50, by="words"))]
    found = bank.search(query, 3, by="hybrid")
    assert [(h.entry.id, h.score) for h in found] == fuse(rankings, 3)
    assert ids(bank.search(query, 9, by="hybrid", filters={"speaker": "Ann"})) == ids(
        bank.search(query, 9, filters={"speaker": "Ann"})
    )
    assert MemoryBank("empty", HashEmbedder(64)).search("x", 3, by="hybrid") == []


@pytest.mark.parametrize("by", ["vector", "words", "hybrid"])
def test_a_search_as_of_a_time_is_the_search_of_then(bank: MemoryBank, by: str) -> None:
    then = bank.fork()
    bank.apply(
        [MemoryOp(Event.UPDATE, "Ann lives in Oslo", "m1"), MemoryOp(Event.DELETE, entry_id="m3")], time="2024-04-01"
    )
    bank.apply([MemoryOp(Event.ADD, "Ann drinks tea")], time="2024-04-02T10:00:00+02:00")
    for query in ("where does Ann live?", "tea", "Rome"):
        assert bank.search(query, 9, by=by, as_of="2024-03-31T23:59:59") == then.search(query, 9, by=by)
        assert bank.search(query, 9, by=by, as_of="2024-04-02T08:00:00Z") == bank.search(query, 9, by=by)
    assert [e.id for e in bank.entries_at("2024-04-02T07:59:59Z")] == ["m1", "m2", "m4"]
    assert bank.search("Ann", 9, by=by, as_of="2023-01-01") == []
    assert ids(bank.search("Ann Rome", 9, by=by, as_of="2024-03-02", filters={"speaker": "Ann"}))[0] == "m1"


def test_versions_without_a_time_were_always_there() -> None:
    bank = MemoryBank("b", HashEmbedder(64))
    bank.apply([MemoryOp(Event.ADD, "Ann sings")])
    assert ids(bank.search("Ann", 1, as_of="1900-01-01")) == ["m1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"by": "magic"}, "by: expected 'vector', 'words' or 'hybrid'"),
        ({"as_of": "May"}, "as_of: 'May' is not ISO 8601"),
    ],
)
def test_bad_arguments_are_named(bank: MemoryBank, arguments: dict[str, str], message: str) -> None:
    with pytest.raises(MemR1Error, match=message):
        bank.search("x", 1, **arguments)
