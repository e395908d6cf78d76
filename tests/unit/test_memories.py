"""What systems remember by: each kind holds, finds and counts what its file says. Models are scripted.

Not covered: answering over them (test_harness.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from memr1.data.types import Dialogue, Fact, OracleOp, Session, Turn
from memr1.envs.episode import Failure, Speaker, drive
from memr1.evaluation.memories import MEMORIES, Memory
from memr1.evaluation.memories.linked_notes import link, read_description
from memr1.evaluation.memories.rules import decide
from memr1.evaluation.memories.tiers import Segment, file_turn
from memr1.memory.bank import MemoryBank
from memr1.memory.types import Event, MemoryOp
from tests.unit.scripted import ScriptedEngine, make_world


def dialogue(*sessions: Sequence[str]) -> Dialogue:
    """Sessions of turns that are their own facts."""
    return Dialogue(
        "d",
        ("Ana",),
        tuple(
            Session(
                f"s{n}",
                None,
                "",
                tuple(Turn(f"D{n}:{i}", "Ana", text, (Fact(text),)) for i, text in enumerate(texts, 1)),
            )
            for n, texts in enumerate(sessions, 1)
        ),
    )


def built(name: str, talk: Dialogue, *overrides: str, says: str = "NOOP") -> Memory:
    world = make_world(*overrides)
    (memory,) = drive([MEMORIES[name](talk, world, Speaker("manager"))], ScriptedEngine(lambda *_: says))
    assert not isinstance(memory, Failure), memory.error
    return memory


class Angles:
    """An embedder that knows the angle of each text, in degrees."""

    name, dim = "angles", 2

    def __init__(self, **angles: float) -> None:
        self.angles = {text.replace("_", " "): angle for text, angle in angles.items()}

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        radians = np.deg2rad([self.angles[text] for text in texts])
        return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


TALK = dialogue(["red apples grow", "blue whales swim"], [], ["green tea is hot"])


@pytest.mark.parametrize("name", MEMORIES)
def test_sizes_follow_the_sessions_and_end_with_what_is_held(name: str) -> None:
    facts = [Fact(t.text, OracleOp("ADD", t.text)) for _, t in TALK.turns()]
    turns = iter(facts)
    known = Dialogue(
        "d",
        ("Ana",),
        tuple(
            Session(s.id, None, "", tuple(Turn(t.id, "Ana", t.text, (next(turns),)) for t in s.turns))
            for s in TALK.sessions
        ),
    )
    memory = built(name, known, says="ADD")
    assert memory.sizes == ((0, 0, 0) if name in ("none", "wiped") else (2, 2, 3))
    assert len(memory.entries) == memory.sizes[-1]
    shown = memory.retrieve("blue whales")
    assert {e.id for e in shown} <= {e.id for e in memory.entries}
    if name not in ("none", "wiped", "full-context"):
        assert "blue whales swim" in shown[0].text


@pytest.mark.parametrize("name", ["manager", "wiped", "linked-notes"])
def test_a_fact_that_is_longer_than_a_prompt_is_an_unreadable_decision_and_not_the_end(name: str) -> None:
    talk = dialogue(["red apples grow", "blue " * 700, "green tea is hot"])
    says = "NOOP" if name != "linked-notes" else "Keywords: x\nContext: y"
    memory = built(name, talk, "rollout.max_prompt_tokens=600", says=says)
    assert (memory.upkeep.decisions, memory.upkeep.unreadable) == (3, 1)
    assert built(name, talk, "rollout.max_prompt_tokens=6000", says=says).upkeep.unreadable == 0


def test_a_wiped_bank_was_filled_and_shows_nothing() -> None:
    talk = dialogue(["red apples grow", "blue whales swim"])
    kept, wiped = (built(name, talk, says="ADD") for name in ("manager", "wiped"))
    assert len(kept.retrieve("blue whales")) == 2 and wiped.retrieve("blue whales") == []
    assert wiped.upkeep.decisions == kept.upkeep.decisions == 2 and wiped.upkeep.tokens == kept.upkeep.tokens > 0
    assert not wiped.entries and not wiped.ended


def test_hybrid_is_the_fusion_of_its_two_rankings() -> None:
    words = dialogue(["kiwi kiwi", "plum", "kiwi jam", "jam plum"])
    k = "evaluation.retrieval_top_k=4"
    by_words, by_vectors = (
        [e.id for e in built(name, words, k).retrieve("kiwi jam")] for name in ("bm25", "embedding")
    )
    score = {
        i: sum(1 / (61 + ranking.index(i)) for ranking in (by_words, by_vectors) if i in ranking) for i in by_vectors
    }
    fused = [e.id for e in built("hybrid", words, k).retrieve("kiwi jam")]
    assert [score[i] for i in fused] == sorted(score.values(), reverse=True)


def test_rules_do_nothing_update_delete_or_add_by_likeness() -> None:
    angles = Angles(tea=0, tea_again=10, tea_now=30, tea_no_longer=30, bees=80)
    bank = MemoryBank("b", angles)  # type: ignore[arg-type]
    assert decide(bank, "tea") == MemoryOp(Event.ADD, text="tea")
    bank.apply([MemoryOp(Event.ADD, text="tea")])
    assert decide(bank, "tea again") == MemoryOp(Event.NOOP)  # cos 10 degrees = 0.98
    assert decide(bank, "tea now") == MemoryOp(Event.UPDATE, text="tea now", entry_id="m1")  # 0.87
    assert decide(bank, "tea no longer") == MemoryOp(Event.DELETE, entry_id="m1")
    assert decide(bank, "bees") == MemoryOp(Event.ADD, text="bees")  # 0.17


def test_what_the_rules_deleted_counts_as_ended_where_the_dataset_says_so() -> None:
    told = dialogue(["Ana plays the old piano at home"], ["Ana no longer plays the old piano at home"])
    memory = built("rules", told)
    assert (memory.sizes, memory.ended) == ((1, 0), frozenset())
    first, second = told.sessions
    (turn,) = second.turns
    ending = Fact(turn.text, OracleOp("DELETE", "", first.turns[0].text))
    news = Fact("Ana sails", OracleOp("ADD", "Ana sails"))
    for facts, ended in (((ending,), {"D2:1"}), ((ending, news), set())):
        revoked = replace(told, sessions=(first, replace(second, turns=(replace(turn, facts=facts),))))
        assert built("rules", revoked).ended == ended
    assert memory.upkeep.operations == {"ADD": 1, "DELETE": 1} and memory.upkeep.decisions == 2


def test_links_are_the_nearest_old_notes_that_are_alike_and_go_both_ways() -> None:
    at = np.deg2rad([0, 90, 10, 20, 30, 100])
    links = link(np.stack([np.cos(at), np.sin(at)], axis=1))
    assert set(links[4]) == {3, 2, 0} and links[4][0] == 3  # the three nearest of the older ones
    assert links[5] == [1]
    assert set(links[0]) == {2, 3, 4} and links[1] == [5]
    assert all(a in links[b] for a, others in enumerate(links) for b in others)


def test_notes_bring_their_links_along_before_the_next_best() -> None:
    talk = dialogue(["red apples are sweet fruit", "red apples are sweet fruit and cheap", "zebras"])
    memory = built("linked-notes", talk, "memory.answerer_top_k=2", says="Keywords: fruit\nContext: on apples")
    assert [e.id for e in memory.retrieve("red apples are sweet fruit")] == ["n1", "n2"]
    assert memory.upkeep.unreadable == 0 and memory.upkeep.tokens > 100
    unreadable = built("linked-notes", talk, says="I like notes")
    assert unreadable.upkeep.unreadable == 3 and len(unreadable.entries) == 3


def test_descriptions_need_both_lines() -> None:
    assert read_description("Keywords: a, b\nContext: c") == "a, b c"
    assert read_description("keywords: a\n\nCONTEXT: c\nmore") == "a c"
    assert read_description("Keywords: a\nContext:") is None
    assert read_description("") is None


def test_tiers_show_the_last_turns_and_the_best_of_the_opened_segments() -> None:
    talk = dialogue([f"number {n} chat" for n in range(12)], ["zebra stripes zebra"])
    memory = built("tiers", talk, "memory.answerer_top_k=6")
    shown = [e.id for e in memory.retrieve("number 3 chat")]
    assert len(shown) == 6 and shown[-2:] == ["D2:1", "D1:12"]  # a third is the newest of the queue, newest first
    assert any(i.startswith("D1:4") for i in shown)
    assert memory.sizes[-1] == len(memory.entries) == len({e.id for e in memory.entries})


def test_facts_of_hot_segments_become_long_term_memory() -> None:
    memory = built("tiers", dialogue(["the same words again"] * 12))
    facts = [e.id for e in memory.entries if "/f" in e.id]
    assert facts == [f"D1:{n}/f1" for n in range(1, 6)]  # five turns have left the queue; four make a segment hot
    assert not any("/f" in e.id for e in built("tiers", dialogue(["the same words again"] * 10)).entries)


def test_turns_join_the_segment_of_their_topic_and_the_coldest_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memr1.evaluation.memories.tiers.MOST_SEGMENTS", 2)
    segments: list[Segment] = []
    for place, vector in enumerate(((1, 0, 0), (0, 1, 0), (0.1, 1, 0), (0, 0, 1))):
        file_turn(segments, place, np.array(vector, dtype=float))
    assert [s.places for s in segments] == [[1, 2], [3]]


def test_every_kind_of_memory_has_a_system() -> None:
    from memr1.evaluation.systems import SYSTEMS

    assert {s.memory for s in SYSTEMS.values()} == set(MEMORIES)


def test_a_world_without_facts_leaves_memories_empty() -> None:
    silent: Any = Dialogue("d", ("Ana",), (Session("s1", None, "", (Turn("D1:1", "Ana", "Hi.", ()),)),))
    for name in ("add-everything", "rules", "linked-notes", "manager", "wiped", "oracle"):
        memory = built(name, silent)
        assert (list(memory.entries), memory.sizes, memory.retrieve("hi?")) == ([], (0,), [])
