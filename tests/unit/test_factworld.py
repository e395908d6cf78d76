"""FactWorld: worlds are reproducible, splits share no surface, oracle operations replay, every answer is true.

Not covered: whether the small talk reads well, and whether a model learns from it.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from itertools import combinations, pairwise

import pytest

from memr1.data.factworld import FactWorldConfig, Record, TurnEvent, World, generate, generate_dialogues
from memr1.data.factworld_lexicon import ATTRIBUTES, lexicon, say_fact
from memr1.data.types import Dialogue, Question
from memr1.errors import MemR1Error

SPLITS = ("train", "validation", "test")
CATEGORIES = {"single-hop", "multi-hop", "temporal", "knowledge-update", "aggregation", "unanswerable"}


@pytest.fixture(scope="module", params=SPLITS)
def worlds(request: pytest.FixtureRequest) -> list[World]:
    return generate(FactWorldConfig(split=request.param, seed=7, num_worlds=60))


def turn_order(dialogue: Dialogue) -> dict[str, int]:
    return {turn.id: n for n, (_, turn) in enumerate(dialogue.turns())}


# --- determinism -------------------------------------------------------------------------------------------------


def test_the_same_config_gives_the_same_bytes_in_another_process() -> None:
    code = (
        "import hashlib; from memr1.data.factworld import *; "
        "print(hashlib.sha256(repr(generate_dialogues(FactWorldConfig(num_worlds=5, seed=3))).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(digests) == 1


def test_a_world_depends_on_its_index_and_not_on_how_many_are_made() -> None:
    few, many = (generate_dialogues(FactWorldConfig(num_worlds=n, seed=11)) for n in (4, 9))
    assert many[:4] == few
    assert len({d.id for d in many}) == 9
    other_seed = generate_dialogues(FactWorldConfig(num_worlds=4, seed=12))
    assert all(a.sessions != b.sessions for a, b in zip(few, other_seed, strict=True))


def test_the_number_of_questions_leaves_the_story_as_it_is() -> None:
    asked = generate_dialogues(FactWorldConfig(num_worlds=3, questions_per_world=8, questions_per_fact_turn=4))
    silent = generate_dialogues(FactWorldConfig(num_worlds=3, questions_per_world=0))
    assert [d.sessions for d in asked] == [d.sessions for d in silent]
    assert [d.questions for d in silent] == [(), (), ()]


# --- splits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("one", "other"), combinations(SPLITS, 2))
def test_splits_share_no_name_no_value_and_no_template(one: str, other: str) -> None:
    def lowered(texts: object) -> set[str]:
        return {t.lower() for t in texts}  # type: ignore[attr-defined]

    assert lowered(lexicon(one).values()) & lowered(lexicon(other).values()) == set()
    assert lowered(lexicon(one).templates()) & lowered(lexicon(other).templates()) == set()


@pytest.mark.parametrize("split", SPLITS)
def test_a_lexicon_is_complete_and_unambiguous(split: str) -> None:
    lex = lexicon(split)
    assert len(set(lex.first_names)) >= 30 and len(set(lex.surnames)) >= 30
    values = list(lex.values())
    assert len(values) == len(set(values)), Counter(values).most_common(3)
    templates = [t for p in lex.phrases.values() for t in p.templates()]
    assert len(templates) == len(set(templates)), Counter(templates).most_common(3)
    assert set(lex.phrases) == set(ATTRIBUTES)
    for key, attribute in ATTRIBUTES.items():
        phrases = lex.phrases[key]
        assert bool(phrases.revoke) == bool(phrases.ended) == attribute.revocable, key
        assert bool(phrases.update) == bool(phrases.changed) == (not attribute.is_set), key
        assert bool(phrases.count) == attribute.is_set, key
        assert len(phrases.plain) >= 3, key
        if attribute.pool == "person":
            assert phrases.via
        else:
            assert len(lex.pools[attribute.pool]) >= 8, key


def test_no_text_of_one_split_occurs_in_another() -> None:
    texts = {}
    for split in SPLITS:
        dialogues = generate_dialogues(FactWorldConfig(split=split, num_worlds=40))
        texts[split] = {t.text for d in dialogues for _, t in d.turns()} | {
            q.text for d in dialogues for q in d.questions
        }
    assert all(texts[a] & texts[b] == set() for a, b in combinations(SPLITS, 2))


# --- shape -------------------------------------------------------------------------------------------------------


def test_texts_are_short_and_worlds_have_the_promised_size(worlds: list[World]) -> None:
    for world in worlds:
        turns = [t for _, t in world.dialogue.turns()]
        facts = [f for t in turns for f in t.facts or ()]
        assert max(len(t.text.split()) for t in turns) <= 30
        assert max(len(f.text.split()) for f in facts) <= 12
        assert max(len(q.text.split()) for q in world.dialogue.questions) <= 14
        assert all(len((q.answer or "").split()) <= 4 for q in world.dialogue.questions)
        assert len(world.story.people) == 4 and 3 <= len(world.dialogue.sessions) <= 5
        kinds = Counter(e.kind for e in world.story.events)
        assert 12 <= kinds.total() - kinds["ephemeral"] <= 18
        assert 4 <= kinds["ephemeral"] + sum(t.facts == () for t in turns) <= 11
        assert len(world.dialogue.questions) == 7
        assert not any("{" in text or "}" in text for text in [*(t.text for t in turns), *(f.text for f in facts)])
        assert all(f.text[0] == f.text[0].upper() for f in facts)


def test_speakers_tell_of_themselves_in_the_first_person_and_never_of_each_other(worlds: list[World]) -> None:
    for world in worlds:
        speakers = world.dialogue.speakers
        for _, turn in world.dialogue.turns():
            assert turn.speaker in speakers and turn.speaker not in turn.text
            event = world.event(turn.id)
            listener = speakers[1 - speakers.index(turn.speaker)]
            assert event is None or event.subject != listener


def test_sessions_have_increasing_dates_and_print_them(worlds: list[World]) -> None:
    for world in worlds:
        times = [s.time for s in world.dialogue.sessions]
        assert all(a is not None and b is not None and a.date() < b.date() for a, b in pairwise(times))
        for s in world.dialogue.sessions:
            assert s.time is not None and s.time_text == f"{s.time.day} {s.time:%B %Y}"


def test_values_change_more_than_once_in_most_worlds(worlds: list[World]) -> None:
    most = [max(Counter((r.subject, r.attribute) for r in w.records if r.replaces).values(), default=0) for w in worlds]
    assert sum(m >= 2 for m in most) >= 0.9 * len(worlds)
    assert sum(m >= 3 for m in most) >= 0.15 * len(worlds)


# --- oracle operations -------------------------------------------------------------------------------------------


def test_oracle_operations_replay_and_end_in_the_facts_that_hold(worlds: list[World]) -> None:
    events: Counter[str] = Counter()
    for world in worlds:
        bank: dict[str, str] = {}  # text to the turn that wrote it
        for _, turn in world.dialogue.turns():
            for fact in turn.facts or ():
                oracle = fact.oracle
                assert oracle is not None
                events[oracle.event] += 1
                if oracle.event in ("UPDATE", "DELETE"):
                    assert oracle.target_text in bank
                    del bank[oracle.target_text]
                else:
                    assert oracle.target_text is None
                if oracle.event in ("ADD", "UPDATE"):
                    assert oracle.text == fact.text and oracle.text not in bank
                    bank[oracle.text] = turn.id
                else:
                    assert oracle.text == ""
                if oracle.event in ("DELETE", "NOOP"):
                    assert fact.text not in bank, "a revocation or restatement is worded otherwise"
            assert world.live_entries(turn.id) == list(bank)
        # Written from the relation table's own columns, not from Record.entry.
        phrases = lexicon(world.story.split).phrases
        held = [
            ({say_fact(t, r.subject, r.value) for t in phrases[r.attribute].plain + phrases[r.attribute].update}, r)
            for r in world.records
            if r.end is None
        ]
        assert len(bank) == len(held)
        for (text, turn_id), (wordings, record) in zip(bank.items(), held, strict=True):
            assert text in wordings and turn_id == record.told_turn
    assert set(events) == {"ADD", "UPDATE", "DELETE", "NOOP"}
    assert min(events.values()) >= len(worlds)


def test_plain_wordings_do_not_tell_a_first_value_a_repeated_one_and_a_change_apart(worlds: list[World]) -> None:
    kinds: dict[str, set[str]] = {}
    attribute_of: dict[str, str] = {}
    for world in worlds:
        phrases = lexicon(world.story.split).phrases
        for _, turn in world.dialogue.turns():
            event = world.event(turn.id)
            if event is None or event.attribute is None:
                continue
            (fact,) = turn.facts or ()
            values = {r.value for r in world.records if (r.subject, r.attribute) == (event.subject, event.attribute)}
            for t in phrases[event.attribute].plain:
                if fact.text in {say_fact(t, event.subject, v) for v in values}:
                    kinds.setdefault(t, set()).add(event.kind)
                    attribute_of[t] = event.attribute
    ambiguous = {attribute_of[t] for t, found in kinds.items() if found >= {"state", "restate", "update"}}
    single_valued = {key for key, a in ATTRIBUTES.items() if not a.is_set}
    assert ambiguous <= single_valued and len(ambiguous) >= len(single_valued) - 3  # rare ones may be told too seldom


def test_a_restatement_repeats_a_fact_that_holds_and_a_passing_remark_does_not(worlds: list[World]) -> None:
    for world in worlds:
        phrases = lexicon(world.story.split).phrases
        for _, turn in world.dialogue.turns():
            event = world.event(turn.id)
            if event is None or event.kind not in ("restate", "ephemeral"):
                continue
            (fact,) = turn.facts or ()
            same = [
                r for r in world.live_records(turn.id) if (r.subject, r.attribute) == (event.subject, event.attribute)
            ]
            reworded = {say_fact(t, r.subject, r.value) for r in same for t in phrases[r.attribute].plain}
            assert (fact.text in reworded) == (event.kind == "restate")
            assert fact.oracle is not None and fact.oracle.event == "NOOP"


def test_intervals_are_the_sessions_that_told_them(worlds: list[World]) -> None:
    for world in worlds:
        day = {t.id: s.time.date() for s, t in world.dialogue.turns() if s.time}
        for record in world.records:
            assert record.start == day[record.told_turn]
            assert record.end == (day[record.ended_turn] if record.ended_turn else None)
            assert record.end is None or record.start < record.end


# --- questions ---------------------------------------------------------------------------------------------------


def holds(record: Record, now: int, order: dict[str, int]) -> bool:
    return order[record.told_turn] <= now and not (record.ended_turn and order[record.ended_turn] <= now)


def reader(world: World) -> dict[str, set[tuple[str, ...]]]:
    """Every question text of the split's templates over this world's names, with its meaning."""
    phrases = lexicon(world.story.split).phrases
    subjects = {(p, p) for p in world.story.people} | {(r.subject, r.subject) for r in world.records}
    paths = {
        (phrases[key].via.format(n=p), f"{p}|{key}") for p in world.story.people for key in phrases if phrases[key].via
    }
    meanings: dict[str, set[tuple[str, ...]]] = {}

    def add(text: str, *meaning: str) -> None:
        meanings.setdefault(text, set()).add(meaning)

    for named, subject in subjects | paths:
        for key, attribute in ATTRIBUTES.items():
            # "Where is X based" makes sense of an organisation, everything else of a person.
            hop = subject.split("|")[1] if "|" in subject else None
            is_org = hop == "employer" if hop else subject not in world.story.people
            if attribute.of_org != is_org:
                continue
            for t in phrases[key].ask:
                add(say_fact(t, named), "value", subject, key)
            for t in phrases[key].count:
                add(say_fact(t, named), "count", subject, key)
            for r in world.records:
                if r.subject == subject and r.attribute == key:
                    for t in phrases[key].when:
                        add(say_fact(t, named, r.value), "when", subject, key, r.value)
    return meanings


def true_answer(world: World, meaning: tuple[str, ...], now: int) -> str:
    """What the hidden relation table says just after turn number `now`; knows nothing of the generator's questions."""
    order = turn_order(world.dialogue)
    live = [r for r in world.records if holds(r, now, order)]
    kind, subject, key, *rest = meaning
    if "|" in subject:
        person, relation = subject.split("|")
        targets = [r.value for r in live if (r.subject, r.attribute) == (person, relation)]
        if not targets:
            return "unknown"
        (subject,) = targets
    found = [r for r in live if (r.subject, r.attribute) == (subject, key)]
    if not found:
        return "unknown"
    if kind == "count":
        return str(len(found))
    if kind == "when":
        days = [f"{r.start.day} {r.start:%B %Y}" for r in found if r.value == rest[0]]
        return days[0] if days else "unknown"
    assert ATTRIBUTES[key].is_set or len(found) == 1, "a single-valued attribute has two values"
    return ", ".join(r.value for r in found)


def check(world: World, question: Question, meanings: dict[str, set[tuple[str, ...]]]) -> tuple[str, ...]:
    """Assert that the answer is true and the evidence right; returns the question's meaning."""
    order = turn_order(world.dialogue)
    now = order[question.asked_after] if question.asked_after else len(order) - 1
    assert question.text in meanings and len(meanings[question.text]) == 1, question
    (meaning,) = meanings[question.text]
    assert question.answer == true_answer(world, meaning, now), (question, meaning)
    assert all(order[e] <= now for e in question.evidence)
    assert len(set(question.evidence)) == len(question.evidence)
    assert (question.answer == "unknown") == (question.category == "unanswerable")
    if question.category != "unanswerable":
        # The evidence must suffice: with only these turns told, the answer is the same.
        seen = set(question.evidence)
        told = [r for r in world.records if r.told_turn in seen and r.ended_turn not in seen]
        kind, subject, key = meaning[:3]
        if "|" in subject:
            person, relation = subject.split("|")
            subject = next(r.value for r in told if (r.subject, r.attribute) == (person, relation))
        values = [r for r in told if (r.subject, r.attribute) == (subject, key)]
        rebuilt = {
            "count": lambda: str(len(values)),
            "value": lambda: ", ".join(r.value for r in values),
            "when": lambda: f"{values[0].start.day} {values[0].start:%B %Y}",
        }[kind]()
        assert rebuilt == question.answer
    return meaning


def test_every_question_has_the_answer_of_the_hidden_world(worlds: list[World]) -> None:
    for world in worlds:
        meanings = reader(world)
        texts = [q.text for q in world.dialogue.questions]
        assert len(texts) == len(set(texts))
        for question in world.dialogue.questions:
            assert question.asked_after is None
            check(world, question, meanings)


def test_all_six_types_occur_in_every_world(worlds: list[World]) -> None:
    for world in worlds:
        assert {q.category for q in world.dialogue.questions} == CATEGORIES
        assert sum(q.category == "unanswerable" for q in world.dialogue.questions) == 1


def test_a_question_is_filed_under_its_type(worlds: list[World]) -> None:
    for world in worlds:
        meanings = reader(world)
        for q in world.dialogue.questions:
            (meaning,) = meanings[q.text]
            kind, subject, key = meaning[:3]
            versions = [r for r in world.records if (r.subject, r.attribute) == (subject, key)]
            if q.category == "unanswerable":
                assert all(r.end is not None for r in versions)
                assert q.evidence == ((versions[-1].ended_turn,) if versions else ())
            elif kind == "when":
                assert q.category == "temporal"
            elif "|" in subject:
                assert q.category == "multi-hop" and len(q.evidence) == 2
            elif ATTRIBUTES[key].is_set:
                assert q.category == "aggregation"
                changes = {r.told_turn for r in versions} | {r.ended_turn for r in versions if r.ended_turn}
                assert set(q.evidence) == changes
            else:
                assert q.category == ("knowledge-update" if versions[-1].replaces else "single-hop")
                assert q.evidence == (versions[-1].told_turn,)


def test_unanswerable_questions_ask_for_revoked_facts_too() -> None:
    worlds = generate(FactWorldConfig(num_worlds=100))
    revoked = [q for w in worlds for q in w.dialogue.questions if q.category == "unanswerable" and q.evidence]
    assert 15 <= len(revoked) <= 85


def test_questions_after_a_turn_are_right_as_of_that_turn(worlds: list[World]) -> None:
    asked = 0
    for world in worlds[:15]:
        meanings, rng = reader(world), random.Random(1)
        for _, turn in world.dialogue.turns():
            questions = world.questions_after(turn.id, rng, num_bearing=3, num_others=3)
            assert len({q.text for q in questions}) == len(questions) <= 6
            assert all(q.asked_after == turn.id for q in questions)
            for q in questions:
                check(world, q, meanings)
            asked += len(questions)
    assert asked > 1000


def test_other_questions_are_first_about_what_a_wrong_decision_would_hit(worlds: list[World]) -> None:
    chosen = by_chance = 0.0
    for world in worlds[:15]:
        meanings = reader(world)
        for event in world.story.events:

            def is_near(q: Question, event: TurnEvent = event, meanings: dict = meanings) -> bool:
                read = meanings[q.text]
                return any(event.subject in m[1] or event.attribute in (m[2], m[1].split("|")[-1]) for m in read)

            every = world.questions_after(event.turn_id, random.Random(0), num_bearing=0, num_others=100)
            if every:
                by_chance += sum(map(is_near, every)) / len(every)
                chosen += is_near(
                    world.questions_after(event.turn_id, random.Random(0), num_bearing=0, num_others=1)[0]
                )
    assert chosen > 1.5 * by_chance > 0


def test_mishandling_a_changing_turn_changes_the_answer_to_one_of_its_questions(worlds: list[World]) -> None:
    changing = 0
    for world in worlds:
        meanings, order = reader(world), turn_order(world.dialogue)
        for event in world.story.events:
            questions = world.questions_after(event.turn_id, random.Random(0), num_bearing=2, num_others=0)
            if event.kind not in ("state", "update", "revoke"):
                continue
            assert 1 <= len(questions) <= 2
            before = order[event.turn_id] - 1
            assert any(true_answer(world, next(iter(meanings[q.text])), before) != q.answer for q in questions)
            changing += 1
    assert changing >= 10 * len(worlds)


def test_a_passing_remark_is_followed_by_the_question_it_could_mislead(worlds: list[World]) -> None:
    misleading = 0
    for world in worlds:
        meanings = reader(world)
        for event in world.story.events:
            if event.kind == "ephemeral" and event.attribute:
                questions = world.questions_after(event.turn_id, random.Random(0), num_bearing=1, num_others=0)
                (meaning,) = meanings[questions[0].text]
                slots = {(meaning[1], meaning[2]), tuple(meaning[1].split("|"))}
                order = turn_order(world.dialogue)
                reached = {
                    (r.value, meaning[2])
                    for r in world.records
                    if holds(r, order[event.turn_id], order) and f"{r.subject}|{r.attribute}" == meaning[1]
                }
                assert (event.subject, event.attribute) in slots | reached
                misleading += 1
    assert misleading >= len(worlds)


def test_every_fact_turn_has_a_question() -> None:
    config = FactWorldConfig(num_worlds=40, questions_per_fact_turn=3, questions_per_world=6)
    for world in generate(config):
        asked = Counter(q.asked_after for q in world.dialogue.questions)
        assert asked.pop(None) == 6
        assert set(asked) == set(world.fact_turns)
        assert max(asked.values()) == 3
        assert len({q.id for q in world.dialogue.questions}) == len(world.dialogue.questions)


def test_questions_after_an_unknown_turn_name_the_dialogue() -> None:
    (world,) = generate(FactWorldConfig(num_worlds=1))
    with pytest.raises(MemR1Error, match=r"factworld-train-0-00000 has no turn 'D99:1'; its turns run from D1:1"):
        world.questions_after("D99:1", random.Random(0))


# --- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("split", "dev"),
        ("num_worlds", 0),
        ("people_per_world", 1),
        ("people_per_world", 21),
        ("facts_per_person", 9),
        ("update_rate", -0.1),
        ("chatter_rate", float("nan")),
        ("seed", 1.5),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_range(field: str, value: object) -> None:
    with pytest.raises(MemR1Error, match=rf"data\.factworld\.{field} is .*set it to"):
        FactWorldConfig(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "config",
    [
        FactWorldConfig(num_worlds=10, sessions_per_world=1),
        FactWorldConfig(num_worlds=10, people_per_world=2, facts_per_person=1),
        FactWorldConfig(num_worlds=2, people_per_world=20, facts_per_person=8, sessions_per_world=12),
        FactWorldConfig(num_worlds=10, sessions_per_world=30),
        FactWorldConfig(
            num_worlds=10,
            update_rate=2,
            revoke_rate=2,
            restate_rate=2,
            chatter_rate=2,
            ephemeral_rate=2,
            sessions_per_world=6,
        ),
        FactWorldConfig(num_worlds=10, update_rate=0, revoke_rate=0, restate_rate=0, chatter_rate=0, ephemeral_rate=0),
    ],
    ids=["one session", "tiny", "huge", "many sessions", "all rates high", "all rates zero"],
)
def test_extreme_settings_still_give_true_answers(config: FactWorldConfig) -> None:
    for world in generate(config):
        meanings = reader(world)
        assert world.dialogue.questions
        for question in world.dialogue.questions:
            check(world, question, meanings)
