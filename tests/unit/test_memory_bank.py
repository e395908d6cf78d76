"""The bank's semantics, one promise a test. Arbitrary sequences of operations are in test_memory_machine.py; indexes
have their own tests."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from memr1.errors import MemR1Error
from memr1.memory.bank import MemoryBank
from memr1.memory.embed import CachedEmbedder, HashEmbedder
from memr1.memory.index import Vectors
from memr1.memory.state import REASONS, BankRules, reason_code
from memr1.memory.types import Event, MemoryOp, Provenance


def add(text: str, **more: object) -> MemoryOp:
    return MemoryOp(Event.ADD, text, **more)  # type: ignore[arg-type]


def update(entry_id: str | None, text: str, **more: object) -> MemoryOp:
    return MemoryOp(Event.UPDATE, text, entry_id, **more)  # type: ignore[arg-type]


def delete(entry_id: str | None, **more: object) -> MemoryOp:
    return MemoryOp(Event.DELETE, entry_id=entry_id, **more)  # type: ignore[arg-type]


NOOP = MemoryOp(Event.NOOP)


class CountingEmbedder(HashEmbedder):
    """Remembers every batch it was asked for."""

    def __init__(self) -> None:
        super().__init__(64)
        self.batches: list[list[str]] = []

    def embed(self, texts: Sequence[str]) -> Vectors:
        self.batches.append(list(texts))
        return super().embed(texts)


@pytest.fixture
def bank() -> MemoryBank:
    """Three entries of 1 May, the third deleted on 2 May."""
    bank = MemoryBank("b", HashEmbedder(64))
    bank.apply([add("Ann lives in Rome"), add("Ann has a dog"), add("Bob likes tea")], time="2023-05-01")
    bank.apply([delete("m3")], time="2023-05-02")
    return bank


def texts(bank: MemoryBank) -> list[str]:
    return [e.text for e in bank.entries()]


def test_ids_follow_the_order_of_add_and_are_never_used_again(bank: MemoryBank) -> None:
    results = bank.apply([add("four"), delete("m4"), add("five"), add("Bob likes tea")])
    assert [r.entry_id for r in results] == ["m4", "m4", "m5", "m6"]
    assert [e.id for e in bank.entries()] == ["m1", "m2", "m5", "m6"]


def test_add_takes_times_provenance_and_metadata(bank: MemoryBank) -> None:
    source = Provenance(turn_ids=("D1:1",), speaker="Ann", role="manager", weight_version=3)
    bank.apply(
        [add("Ann ran a race", metadata={"a": [1, "x"]})], provenance=source, time="2023-06-01", event_time="2023-05-07"
    )
    entry = bank.get("m4")
    assert entry is not None
    assert (entry.created_at, entry.updated_at, entry.event_time) == ("2023-06-01", "2023-06-01", "2023-05-07")
    assert (entry.version, entry.status, entry.provenance, entry.metadata) == (1, "live", source, {"a": [1, "x"]})


def test_update_keeps_id_and_first_seen_and_bumps_the_version(bank: MemoryBank) -> None:
    later = Provenance(turn_ids=("D2:1",))
    bank.apply([update("m1", "Ann moved to Oslo", metadata={"n": 1})], provenance=later, time="2023-07-01")
    entry = bank.get("m1")
    assert entry is not None
    assert (entry.id, entry.text, entry.version) == ("m1", "Ann moved to Oslo", 2)
    assert (entry.created_at, entry.updated_at, entry.event_time) == ("2023-05-01", "2023-07-01", "2023-07-01")
    assert (entry.provenance, entry.metadata) == (later, {"n": 1})
    assert [e.text for e in bank.history("m1")] == ["Ann lives in Rome", "Ann moved to Oslo"]


def test_update_keeps_the_metadata_it_does_not_name() -> None:
    bank = MemoryBank("b", HashEmbedder(8))
    bank.apply([add("x", metadata={"a": 1, "b": 1})])
    bank.apply([update("m1", "y", metadata={"b": 2})])
    assert bank.get("m1").metadata == {"a": 1, "b": 2}  # type: ignore[union-attr]


def test_update_to_what_stands_already_is_accepted_counted_and_changes_nothing(bank: MemoryBank) -> None:
    before = bank.get("m1")
    [result] = bank.apply([update("m1", "Ann lives in Rome")], time="2023-08-01")
    assert (result.ok, result.changed, result.entry_id) == (True, False, "m1")
    assert bank.get("m1") == before
    assert (bank.stats().events["UPDATE"], bank.stats().unchanged) == (1, 1)


def test_update_may_change_only_the_case_of_its_own_text(bank: MemoryBank) -> None:
    [result] = bank.apply([update("m1", "ann lives in  Rome")])
    assert result.changed and bank.get("m1").version == 2  # type: ignore[union-attr]


def test_sources_are_the_turns_of_every_version_without_repeats() -> None:
    bank = MemoryBank("b", HashEmbedder(8))
    bank.apply([add("x")], provenance=Provenance(("D1:2", "D1:1")))
    bank.apply([update("m1", "y")], provenance=Provenance(("D1:1", "D3:1")))
    assert bank.sources("m1") == ("D1:2", "D1:1", "D3:1")


def test_delete_leaves_a_tombstone_with_a_higher_version(bank: MemoryBank) -> None:
    assert bank.get("m3") is None and len(bank) == 2
    tombstone = bank.history("m3")[-1]
    assert (tombstone.status, tombstone.version, tombstone.updated_at) == ("deleted", 2, "2023-05-02")


def test_noop_is_logged_and_changes_nothing(bank: MemoryBank) -> None:
    before = bank.entries()
    [result] = bank.apply([NOOP])
    assert (result.ok, result.changed, result.entry_id) == (True, False, None)
    assert bank.entries() == before and bank.seq == 3 and bank.stats().events["NOOP"] == 1


REJECTIONS = [
    ("missing_id", update(None, "x")),
    ("missing_id", delete("")),
    ("unknown_id", update("m99", "x")),
    ("unknown_id", delete("m4")),
    ("deleted_id", update("m3", "x")),
    ("deleted_id", delete("m3")),
    ("version_conflict", update("m1", "x", expected_version=2)),
    ("version_conflict", delete("m1", expected_version=7)),
    ("empty_text", add(" \n")),
    ("empty_text", update("m1", "")),
    ("invalid_text", add("half an emoji \ud83d")),
    ("too_long", add("x" * 4097)),
    ("too_long", update("m1", "x" * 4097)),
    ("duplicate_content", add("  ANN lives\tin rome ")),
    ("duplicate_content", update("m1", "Ann has a dog")),
    ("unknown_kind", add("x", kind="triple")),
    ("kind_mismatch", update("m1", "x", kind="triple")),
]


@pytest.mark.parametrize(("code", "op"), REJECTIONS, ids=[f"{c}-{o.event}" for c, o in REJECTIONS])
@pytest.mark.parametrize("on_reject", ["abort", "skip"])
def test_each_precondition_rejects_with_its_code_and_changes_nothing(
    bank: MemoryBank, code: str, op: MemoryOp, on_reject: str
) -> None:
    before = {i: bank.history(i) for i in ("m1", "m2", "m3", "m4")}
    [result] = bank.apply([op], on_reject=on_reject)
    assert (result.ok, result.reason, result.entry_id, result.changed) == (False, code, None, False)
    assert result.detail
    assert {i: bank.history(i) for i in before} == before
    assert bank.seq == 3, "a rejected decision is in the log"
    assert bank.stats().rejected == {code: 1} and bank.stats().decisions_rejected == 1


def test_a_full_bank_rejects_add_until_something_is_deleted() -> None:
    bank = MemoryBank("b", HashEmbedder(8), rules=BankRules(max_entries=2))
    assert [r.reason for r in bank.apply([add("1"), add("2"), add("3")], on_reject="skip")] == [None, None, "bank_full"]
    assert [r.ok for r in bank.apply([delete("m1"), add("3")])] == [True, True]


@pytest.mark.parametrize("op", [update("m1", "Ann lives in Oslo"), delete("m1")], ids=["update", "delete"])
def test_an_untrusted_source_changes_nothing_that_a_trusted_one_said(bank: MemoryBank, op: MemoryOp) -> None:
    rumour = Provenance(("web-1",), trusted=False)
    [refused] = bank.apply([op], provenance=rumour)
    assert (refused.ok, refused.reason) == (False, "untrusted_source")
    assert texts(bank) == ["Ann lives in Rome", "Ann has a dog"]
    [added] = bank.apply([add("Ann has a boat")], provenance=rumour)
    assert added.entry_id == "m4" and not bank.get("m4").provenance.trusted  # type: ignore[union-attr]
    assert [r.ok for r in bank.apply([update("m4", "Ann has two boats")], provenance=rumour)] == [True]
    assert [h.entry.id for h in bank.search("Ann", 9, filters={"trusted": False})] == ["m4"]
    assert bank.apply([op])[0].ok, "a trusted source may"
    tagged = MemoryOp(Event.UPDATE, bank.get("m4").text, "m4", metadata={"topic": "sea"})  # type: ignore[union-attr]
    assert bank.apply([tagged])[0].changed
    assert not bank.get("m4").provenance.trusted, "metadata vouches for no text"  # type: ignore[union-attr]
    assert bank.apply([update("m4", "Ann has three boats")])[0].ok and bank.get("m4").provenance.trusted  # type: ignore[union-attr]
    again = MemoryBank.replay(bank.log, bank.embedder)
    assert [bank.history(i) for i in ("m1", "m4")] == [again.history(i) for i in ("m1", "m4")]


def test_every_reason_code_is_covered_by_a_test() -> None:
    assert {code for code, _ in REJECTIONS} | {"aborted", "bank_full", "untrusted_source"} == set(REASONS)


def test_matching_expected_version_is_accepted(bank: MemoryBank) -> None:
    results = bank.apply([update("m1", "x", expected_version=1), delete("m1", expected_version=2)])
    assert [r.ok for r in results] == [True, True]


def test_one_rejected_operation_aborts_the_whole_decision_and_is_named(bank: MemoryBank) -> None:
    before = bank.entries()
    results = bank.apply([add("new"), update("m9", "x"), delete("m1")])
    assert [r.ok for r in results] == [False, False, False]
    assert results[1].reason == "unknown_id"
    for result in (results[0], results[2]):
        assert result.reason == "aborted: operation 2 of 3 (UPDATE m9) was rejected as unknown_id"
        assert reason_code(result.reason) == "aborted"
    assert bank.entries() == before and len(bank.history("m4")) == 0
    assert bank.stats().rejected == {"unknown_id": 1, "aborted": 2}
    assert bank.apply([add("new")])[0].entry_id == "m4", "an aborted ADD uses no id up"


def test_skip_applies_the_valid_operations_each_seeing_those_before_it(bank: MemoryBank) -> None:
    results = bank.apply(
        [add("x"), update("m4", "y"), add("Y"), delete("m9"), add("x"), delete("m4"), update("m4", "z")],
        on_reject="skip",
    )
    assert [r.reason for r in results] == [None, None, "duplicate_content", "unknown_id", None, None, "deleted_id"]
    assert texts(bank) == ["Ann lives in Rome", "Ann has a dog", "x"]
    assert [e.version for e in bank.history("m4")] == [1, 2, 3]


def test_content_freed_by_update_or_delete_can_be_added_in_the_same_decision(bank: MemoryBank) -> None:
    results = bank.apply(
        [update("m1", "Ann lives in Oslo"), add("Ann lives in Rome"), delete("m2"), add("Ann has a dog")]
    )
    assert all(r.ok for r in results)
    assert texts(bank) == ["Ann lives in Oslo", "Ann lives in Rome", "Ann has a dog"]


def test_composed_and_decomposed_letters_are_the_same_content() -> None:
    bank = MemoryBank("b", HashEmbedder(8))
    assert bank.apply([add("caf\u00e9"), add("CAFE\u0301")], on_reject="skip")[1].reason == "duplicate_content"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"ops": [add(5)]}, r"ops\[0\]\.text: expected str, got 5"),  # type: ignore[arg-type]
        ({"ops": [NOOP, update(4, "x")]}, r"ops\[1\]\.entry_id: expected str"),  # type: ignore[arg-type]
        ({"ops": [add("x", metadata={"a": float("nan")})]}, r"ops\[0\]\.metadata: "),
        ({"ops": [add("x", metadata={"a": object()})]}, r"ops\[0\]\.metadata: "),
        ({"ops": [{"event": "ADD"}]}, r"ops\[0\]: expected a MemoryOp"),
        ({"ops": [MemoryOp("ADD", "x")]}, r"ops\[0\]\.event: "),  # type: ignore[arg-type]
        ({"ops": [], "time": "1:56 pm on 8 May, 2023"}, "time: .* is not ISO 8601"),
        ({"ops": [], "on_reject": "ignore"}, "on_reject: "),
        ({"ops": [], "provenance": Provenance(turn_ids="D1:1")}, "turn_ids"),  # type: ignore[arg-type]
    ],
)
def test_wrong_types_raise_and_leave_no_trace(bank: MemoryBank, kwargs: dict, message: str) -> None:
    before = bank.entries()
    with pytest.raises(MemR1Error, match=message):
        bank.apply(**kwargs)
    assert bank.entries() == before and bank.seq == 2


def test_changing_the_callers_metadata_afterwards_changes_neither_entry_nor_log() -> None:
    bank = MemoryBank("b", HashEmbedder(8))
    metadata = {"tags": ["a"]}
    bank.apply([add("x", metadata=metadata)])
    metadata["tags"].append("b")
    assert bank.get("m1").metadata == {"tags": ["a"]}  # type: ignore[union-attr]
    bank.verify()


def test_log_has_one_record_for_each_decision_with_actor_and_outcomes(bank: MemoryBank) -> None:
    bank.apply([add("x"), delete("m9")], provenance=Provenance(role="manager"), time="2023-05-03")
    bank.apply([add("y")], actor="admin", provenance=Provenance(role="user"))
    records = list(bank.log)
    assert [(r.seq, r.applied, r.actor) for r in records] == [
        (1, True, None),
        (2, True, None),
        (3, False, "manager"),
        (4, True, "admin"),
    ]
    assert records[2].ops == (add("x"), delete("m9")) and records[2].results[1].reason == "unknown_id"


def test_fork_and_parent_never_see_each_others_changes(bank: MemoryBank) -> None:
    bank.search("Ann", 1)  # so that the index is shared too
    forks = [bank.fork(f"fork{i}") for i in range(3)]
    for i, fork in enumerate(forks):
        fork.apply([update("m1", f"fork {i}"), add(f"new {i}")])
    bank.apply([delete("m2")])
    assert texts(bank) == ["Ann lives in Rome"] and bank.seq == 3
    for i, fork in enumerate(forks):
        assert texts(fork) == [f"fork {i}", "Ann has a dog", f"new {i}"] and fork.seq == 3
        assert [h.entry.text for h in fork.search(f"new {i}", 1)] == [f"new {i}"]
        fork.verify()
    assert bank.search("new 1 fork", 9)[0].entry.id == "m1" and len(bank.search("new", 9)) == 1
    bank.verify()


def test_forks_never_embed_what_the_parent_or_a_sibling_has_embedded() -> None:
    embedder = CountingEmbedder()
    parent = MemoryBank("b", embedder)
    parent.apply([add(f"fact number {i}") for i in range(50)])
    assert embedder.batches == [], "embedding waits for the first search"
    forks = [parent.fork() for _ in range(4)]
    for bank in (*forks, parent):
        bank.search("fact", 3)
    assert [len(batch) for batch in embedder.batches] == [50, 1], "one batch of entries, then the query"
    forks[0].apply([update("m1", "changed")])
    forks[0].fork().search("fact", 3)
    assert embedder.batches[2:] == [["changed"]]


def test_restore_gives_back_entries_log_counts_and_search_results(bank: MemoryBank) -> None:
    hits = bank.search("Ann", 5)
    snapshot, before = bank.snapshot(), (bank.entries(), bank.log, bank.stats())
    bank.apply([update("m1", "other"), add("Ann Ann Ann"), delete("m2")])
    bank.apply([delete("m77")])
    bank.search("Ann", 5)
    bank.restore(snapshot)
    assert (bank.entries(), bank.log, bank.stats()) == before and snapshot.seq == 2
    assert bank.search("Ann", 5) == hits
    bank.verify()


def test_ids_given_again_after_restore_are_searched_by_their_new_text(bank: MemoryBank) -> None:
    snapshot = bank.snapshot()
    bank.apply([add("zebra")])
    assert bank.search("zebra", 1)[0].entry.id == "m4"
    bank.restore(snapshot)
    bank.apply([add("giraffe")])
    [hit] = bank.search("giraffe", 1)
    assert hit.entry.id == "m4" and hit.score == pytest.approx(1.0, abs=1e-6)


def test_snapshot_can_be_pickled_and_opened_elsewhere(bank: MemoryBank) -> None:
    for _ in range(3000):  # as many links in the log as a long episode has turns
        bank.apply([NOOP])
        bank.snapshot()
    copy = MemoryBank.from_snapshot(pickle.loads(pickle.dumps(bank.snapshot())), HashEmbedder(64), bank_id="copy")
    assert (copy.entries(), copy.log, copy.bank_id) == (bank.entries(), bank.log, "copy")
    copy.apply([add("x")])
    assert bank.seq == 3002 and copy.seq == 3003


def test_replay_of_the_log_is_the_bank_even_under_stricter_rules(bank: MemoryBank) -> None:
    bank.apply([add("x"), delete("m9"), update("m4", "yy"), update("m1", "x" * 4000)], on_reject="skip")
    again = MemoryBank.replay(bank.log, HashEmbedder(64), rules=BankRules(max_chars=3))
    assert again.snapshot().state == bank.snapshot().state
    assert again.search("Ann", 9) == bank.search("Ann", 9)


def test_replay_of_a_prefix_is_the_bank_of_that_moment(bank: MemoryBank) -> None:
    assert texts(MemoryBank.replay(bank.log.prefix(1), HashEmbedder(8))) == [
        "Ann lives in Rome",
        "Ann has a dog",
        "Bob likes tea",
    ]


def test_search_ranks_by_similarity_and_breaks_ties_in_order_of_add() -> None:
    bank = MemoryBank("b", HashEmbedder(64))
    bank.apply([add(f"same words{'!' * i}") for i in range(1, 13)])  # equal vectors: HashEmbedder sees words only
    assert [h.entry.id for h in bank.search("same words", 11)] == [f"m{i}" for i in range(1, 12)]
    assert {h.score for h in bank.search("same words", 11)} == {bank.search("same words", 1)[0].score}


def test_search_never_returns_deleted_or_outdated_content(bank: MemoryBank) -> None:
    assert "m3" not in [h.entry.id for h in bank.search("Bob likes tea", 9)]
    bank.apply([update("m1", "the sun is hot")])
    assert bank.search("Ann lives in Rome", 9)[0].entry.id == "m2"
    assert bank.search("the sun is hot", 1)[0].score == pytest.approx(1.0, abs=1e-6)


def test_search_of_an_empty_bank_finds_nothing() -> None:
    assert MemoryBank("b", HashEmbedder(8)).search("x", 3) == []


def test_search_refuses_what_it_cannot_look_for(bank: MemoryBank) -> None:
    for query, k in ((" ", 3), ("\ud83d", 3), ("x", 0), ("x", 2.0)):
        with pytest.raises(MemR1Error, match=r"^(query|k): expected"):
            bank.search(query, k)  # type: ignore[arg-type]


def test_filters_limit_the_search(bank: MemoryBank) -> None:
    bank.apply([add("Ann sings", metadata={"tag": "x"})], provenance=Provenance(speaker="Ann"), time="2023-06-01")
    assert [h.entry.id for h in bank.search("Ann", 9, filters={"speaker": "Ann"})] == ["m4"]
    assert [h.entry.id for h in bank.search("Ann", 9, filters={"metadata.tag": "x"})] == ["m4"]
    assert {h.entry.id for h in bank.search("Ann", 9, filters={"event_time": {"lt": "2023-06-01"}})} == {"m1", "m2"}
    assert bank.search("Ann", 9, filters={"speaker": "Bob"}) == []
    with pytest.raises(MemR1Error, match="did you mean speaker"):
        bank.search("Ann", 9, filters={"speeker": "Ann"})


def test_a_failing_embedder_loses_no_entry_from_later_searches(bank: MemoryBank) -> None:
    class Flaky(HashEmbedder):
        broken = True

        def embed(self, texts: Sequence[str]) -> Vectors:
            if self.broken:
                raise OSError("out of memory")
            return super().embed(texts)

    flaky = Flaky(64)
    other = MemoryBank.from_snapshot(bank.snapshot(), flaky)
    with pytest.raises(OSError, match="out of memory"):
        other.search("Ann", 9)
    flaky.broken = False
    assert other.search("Ann", 9) == bank.search("Ann", 9)


def test_an_embedder_that_returns_nan_or_a_wrong_shape_is_refused_by_name() -> None:
    class Broken(HashEmbedder):
        def embed(self, texts: Sequence[str]) -> Vectors:
            return np.full((len(texts), self.dim), np.nan, np.float32)

    bank = MemoryBank("b", Broken(8))
    bank.apply([add("x")])
    with pytest.raises(MemR1Error, match=r"hash-8.*finite"):
        bank.search("x", 1)


def test_threads_that_write_and_search_at_once_leave_one_consistent_bank() -> None:
    bank = MemoryBank("b", HashEmbedder(16))
    accepted: list[bool] = []

    def work() -> None:
        for i in range(100):  # all threads say the same things: each may be accepted once
            accepted.append(bank.apply([add(f"fact {i}"), add(f"more {i}")])[0].ok)
            if i % 20 == 0:
                assert bank.search(f"fact {i}", 1)[0].score == pytest.approx(1.0, abs=1e-6)
                bank.fork().apply([delete("m1")])

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(work) for _ in range(4)]:
            future.result()
    assert len(accepted) == bank.seq == 400 and sum(accepted) == 100
    assert len(bank) == 200 and bank.stats().decisions_rejected == 300
    bank.verify()


def test_a_cached_embedder_is_not_wrapped_again() -> None:
    embedder = CachedEmbedder(HashEmbedder(8))
    assert MemoryBank("b", embedder).embedder is embedder
    assert MemoryBank("b", embedder).fork().embedder is embedder


def test_metadata_that_nests_without_end_or_is_huge_is_refused_and_leaves_no_trace() -> None:
    bank = MemoryBank("b", HashEmbedder(16))
    deep: dict = {}
    for _ in range(20):
        deep = {"deeper": deep}
    for metadata, message in (
        (deep, "more than 16 lists and objects"),
        ({"x": "y" * 70_000}, "70008 characters as JSON"),
    ):
        with pytest.raises(MemR1Error, match=message):
            bank.apply([MemoryOp(Event.ADD, "one", metadata=metadata)])
    assert bank.seq == 0
    assert bank.apply([MemoryOp(Event.ADD, "one", metadata={"x": "y" * 60_000})])[0].ok
