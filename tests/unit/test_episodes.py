"""Episodes: many played in lockstep, one decision or answer paid for, a dialogue replayed into a bank.

The model is a script. Not covered: real generation (test_engine.py), tasks made of datasets (test_tasks.py).
"""

from __future__ import annotations

import json

import pytest

from memr1.data.types import Dialogue, Fact, OracleOp, Session, Turn
from memr1.envs.answering import AnswerTask, play_answers
from memr1.envs.deciding import DecisionTask, LinkedQuestion, play_decisions, related_entries
from memr1.envs.episode import Episode, Failure, Speaker, World, drive
from memr1.envs.evidence import evidence_recall, held_evidence
from memr1.envs.ingesting import ingest_with_manager, ingest_without_model, replay, turn_entries
from memr1.errors import MemR1Error
from memr1.memory.bank import MemoryBank, Snapshot
from memr1.memory.embed import EmbedderLost
from memr1.memory.types import Event, MemoryEntry, MemoryOp, Provenance
from memr1.rewards.base import make_reward
from memr1.rollout.engine import Completion, GenerationRequest, SamplingParams
from memr1.trajectory import Trajectory
from tests.unit.scripted import ScriptedEngine, entry, fact_worlds, is_answerer, make_config, make_world, shown_entries

EM = make_reward("em_set")
LEARNER = Speaker("manager", 1.0, trainable=True)
FROZEN = Speaker("answerer")


def run_group(episode: Episode[list[Trajectory]], engine: ScriptedEngine) -> list[Trajectory]:
    (played,) = drive([episode], engine)
    assert not isinstance(played, Failure), played
    return played


def run(episode: Episode[list[Trajectory]], engine: ScriptedEngine) -> Trajectory:
    (played,) = run_group(episode, engine)
    return played


# -- drive ------------------------------------------------------------------------------------------------------


def counting(name: str, calls: int, fail_at: int | None = None) -> Episode[list[str]]:
    heard = []
    for call in range(calls):
        if call == fail_at:
            raise ValueError(f"{name} fails at {call}")
        requests = [GenerationRequest((65 + call, 65 + i), "base", SamplingParams(40)) for i in range(call + 1)]
        completions = yield requests
        heard += [name + str(len(completions))]
    return heard


def test_episodes_of_different_lengths_are_played_in_lockstep_and_keep_their_order() -> None:
    engine = ScriptedEngine(lambda prompt, request: prompt)
    played = drive([counting("a", 1), counting("b", 3), counting("c", 0), counting("d", 2)], engine)
    assert played == [["a1"], ["b1", "b2", "b3"], [], ["d1", "d2"]]
    assert [len(batch) for batch in engine.batches] == [3, 4, 3]  # one generate call per moment, for all that wait


def test_an_episode_gets_its_own_completions() -> None:
    def speaking(number: int) -> Episode[str]:
        completions = yield [
            GenerationRequest((65 + number, 66 + i), "base", SamplingParams(40)) for i in range(number)
        ]
        return "".join(chr(c.ids[0]) + chr(c.ids[1]) for c in completions)

    engine = ScriptedEngine(lambda prompt, request: prompt)
    assert drive([speaking(2), speaking(1), speaking(3)], engine) == ["CBCC", "BB", "DBDCDD"]


def test_an_episode_that_raises_is_a_failure_and_harms_no_other() -> None:
    engine = ScriptedEngine(lambda prompt, request: prompt)
    first, second, third = drive([counting("a", 2, 0), counting("b", 2), counting("c", 3, 2)], engine)
    assert isinstance(first, Failure) and str(first.error) == "a fails at 0"
    assert second == ["b1", "b2"]
    assert isinstance(third, Failure) and str(third.error) == "c fails at 2"


def test_an_error_of_the_engine_is_not_an_episode_s() -> None:
    def broken(prompt: str, request: GenerationRequest) -> str:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        drive([counting("a", 1)], ScriptedEngine(broken))


def test_a_lost_embedder_is_not_an_episode_s_and_reaches_whoever_plays() -> None:
    def searching() -> Episode[str]:
        yield []
        raise EmbedderLost("none answered")

    with pytest.raises(EmbedderLost, match="none answered"):
        drive([searching(), counting("a", 2)], ScriptedEngine(lambda prompt, request: prompt))


def test_nothing_to_play_generates_nothing() -> None:
    engine = ScriptedEngine(lambda prompt, request: prompt)
    assert drive([], engine) == []
    assert engine.batches == []


# -- answering --------------------------------------------------------------------------------------------------

OSLO = entry(4, "Ana lives in Oslo", 2, provenance=Provenance(turn_ids=("D1:1",)))
BEES = entry(9, "Ben keeps bees", 5, provenance=Provenance(turn_ids=("D1:3", "D1:4")))
TASK = AnswerTask(
    "w/q1", "Where does Ana live?", "Oslo", "single-hop", (BEES, OSLO), ("D1:1", "D2:2"), {"m4": ("D1:1",)}
)


def test_an_answer_is_paid_and_told_with_everything_a_viewer_needs() -> None:
    engine = ScriptedEngine(lambda prompt, request: "Use: 1, 7\nAnswer: oslo")
    played = run(play_answers(TASK, make_world(), Speaker("answerer", 1.0, trainable=True), EM, [41]), engine)
    assert (played.reward, played.reward_parts, played.error) == (1.0, {"em_set": 1.0}, None)
    assert (played.task_id, played.group_id, played.seed) == ("w/q1", "w/q1", 41)
    assert played.outcome["answer"] == "oslo" and played.outcome["gold"] == "Oslo"
    assert played.outcome["selected"] == ["m9"]  # number 7 was not displayed
    assert played.outcome["evidence_recall"] == 0.5
    (step,) = played.steps
    assert (step.role, step.policy, step.trainable, step.finish_reason) == ("answerer", "answerer", True, "stop")
    assert step.parsed == {"answer": "oslo", "selected": [1, 7]}
    assert step.sequence.weight_version == 5
    ((request,),) = engine.batches
    assert request.sampling == SamplingParams(make_config().rollout.answer_max_new_tokens, 1.0, 41)
    assert request.prompt_ids == step.sequence.prompt_ids


def test_an_answer_that_cannot_be_read_pays_nothing_and_says_why() -> None:
    played = run(play_answers(TASK, make_world(), FROZEN, EM, [0]), ScriptedEngine(lambda p, r: "It is Oslo."))
    assert (played.reward, played.outcome["answer"]) == (0.0, None)
    assert played.steps[0].parsed["error"].startswith("expected the lines Use: and Answer:")


def test_a_question_without_gold_is_an_error_and_no_zero() -> None:
    task = AnswerTask("w/q1", "Where?", "", "single-hop", ())
    played = run(play_answers(task, make_world(), FROZEN, EM, [0]), ScriptedEngine(lambda p, r: "Use: none\nAnswer: x"))
    assert (played.reward, played.error) == (None, "the question has no gold answer")


def test_a_cut_completion_is_scored_as_it_stands_and_marked() -> None:
    world = make_world("rollout.answer_max_new_tokens=20")
    played = run(
        play_answers(TASK, world, FROZEN, EM, [0]), ScriptedEngine(lambda p, r: "Use: 1\nAnswer: Oslo, Norway")
    )
    assert played.steps[0].finish_reason == "length"
    assert (played.outcome["answer"], played.reward) == ("Oslo,", 1.0)


def test_a_cut_prompt_is_marked_in_the_step() -> None:
    whole = make_world().agents.answerer.prompt(TASK.question, TASK.entries)
    world = make_world(f"rollout.max_prompt_tokens={len(whole.ids) - 1}")
    played = run(play_answers(TASK, world, FROZEN, EM, [0]), ScriptedEngine(lambda p, r: "Use: 1\nAnswer: Oslo"))
    assert played.steps[0].parsed["prompt_cut"] == 1
    assert len(played.steps[0].sequence.prompt_ids) < len(whole.ids)


def recall(entries: list[MemoryEntry], evidence: tuple[str, ...]) -> float | None:
    return evidence_recall(entries, evidence, held_evidence([OSLO, BEES], evidence, "x", lambda _: ()))


def test_evidence_recall_counts_turns_once_and_is_unknown_without_evidence() -> None:
    assert recall([OSLO, BEES], ("D1:1", "D1:3", "D1:1")) == 1.0
    assert recall([BEES], ("D1:1", "D1:3", "D1:4", "D9:9")) == 0.5
    assert recall([], ("D1:1",)) == 0.0
    assert recall([OSLO], ()) is None


def test_an_entry_holds_what_was_merged_into_it_and_not_what_it_overwrote() -> None:
    bank = MemoryBank("w", make_world().embedder)
    for turn, op in (
        ("D1:1", MemoryOp(Event.ADD, text="Ana likes chess")),
        ("D1:2", MemoryOp(Event.ADD, text="Ben keeps bees")),
        ("D2:1", MemoryOp(Event.UPDATE, text="Ana likes chess and sailing", entry_id="m1")),
        ("D2:2", MemoryOp(Event.UPDATE, text="Ana lives in Rome", entry_id="m2")),
    ):
        bank.apply([op], provenance=Provenance((turn,)))

    def held(gold: str | None, *evidence: str) -> dict[str, tuple[str, ...]]:
        return held_evidence(bank.entries(), evidence, gold, bank.sources)

    assert held("sailing, chess", "D1:1", "D2:1") == {"m1": ("D1:1", "D2:1")}
    assert held("chess", "D1:1") == {"m1": ("D1:1",)}
    assert held("bees", "D1:2") == {}, "it was overwritten by something else"
    assert held("2", "D1:1", "D2:1") == {"m1": ("D2:1",)} == held(None, "D1:1", "D2:1"), "what it kept cannot be seen"
    assert held("Rome", "D2:2") == {"m2": ("D2:2",)}
    assert held("Rome") == {}


# -- deciding ---------------------------------------------------------------------------------------------------


def snapshot_of(world: World, *texts: str) -> Snapshot:
    bank = MemoryBank("w", world.embedder)
    for day, text in enumerate(texts, start=1):
        bank.apply([MemoryOp(Event.ADD, text=text)], time=f"2024-03-{day:02d}T10:00:00")
    return bank.snapshot()


def decision_task(world: World, **changes: object) -> DecisionTask:
    fields: dict[str, object] = {
        "id": "w/D2:1",
        "snapshot": snapshot_of(world, "Ana lives in Oslo", "Ben keeps bees"),
        "facts": ("Ana lives in Rome",),
        "time": "2024-04-02T09:00:00",
        "turn_id": "D2:1",
        "speaker": "Ana",
        "questions": (LinkedQuestion("Where does Ana live?", "Rome", "knowledge-update"),),
    }
    return DecisionTask(**(fields | changes))  # type: ignore[arg-type]


def reader(decision: str) -> ScriptedEngine:
    """A manager that says `decision`, and an answerer that reads the oldest memory about where Ana lives."""

    def script(prompt: str, request: GenerationRequest) -> str:
        if not is_answerer(prompt):
            return decision
        homes = [(n, t) for n, t in shown_entries(prompt).items() if "Ana lives in" in t]
        if not homes:
            return "Use: none\nAnswer: unknown"
        return f"Use: {homes[0][0]}\nAnswer: {homes[0][1].split()[-1]}"

    return ScriptedEngine(script)


def decide(decision: str, *overrides: str, **changes: object) -> Trajectory:
    world = make_world(*overrides)
    return run(play_decisions(decision_task(world, **changes), world, LEARNER, FROZEN, EM, [7]), reader(decision))


@pytest.mark.parametrize(
    ("decision", "reward", "after"),
    [
        ("UPDATE 1 Ana lives in Rome", 1.0, ["Ana lives in Rome", "Ben keeps bees"]),
        ("DELETE 1\nADD Ana lives in Rome", 1.0, ["Ben keeps bees", "Ana lives in Rome"]),
        ("ADD Ana lives in Rome", 0.0, ["Ana lives in Oslo", "Ben keeps bees", "Ana lives in Rome"]),
        ("NOOP", 0.0, ["Ana lives in Oslo", "Ben keeps bees"]),
        ("DELETE 1", 0.0, ["Ben keeps bees"]),
        ("UPDATE 2 Ana lives in Rome", 0.0, ["Ana lives in Oslo", "Ana lives in Rome"]),
    ],
)
def test_the_decision_is_paid_by_the_answer_on_the_bank_it_makes(
    decision: str, reward: float, after: list[str]
) -> None:
    played = decide(decision)
    assert played.reward == reward
    assert [e["text"] for e in played.outcome["bank_after"]] == after
    assert [e["text"] for e in played.outcome["bank_before"]] == ["Ana lives in Oslo", "Ben keeps bees"]
    assert all(o["ok"] for o in played.outcome["operations"])
    assert "error" not in played.steps[0].parsed


def test_a_decision_that_cannot_be_read_changes_nothing_and_is_counted() -> None:
    played = decide("I would update the first one.")
    assert played.steps[0].parsed["error"].startswith("unknown operation")
    assert played.outcome["bank_after"] == played.outcome["bank_before"]
    assert (played.outcome["operations"], played.reward) == ([], 0.0)


def test_a_number_that_was_not_displayed_aborts_the_decision_or_only_itself() -> None:
    decision = "DELETE 9\nUPDATE 1 Ana lives in Rome"
    played = decide(decision)
    assert played.reward == 0.0
    reasons = [o["reason"] for o in played.outcome["operations"]]
    assert reasons[0] == "unknown_id" and reasons[1].startswith("aborted: operation 1 of 2")
    played = decide(decision, "memory.on_reject=skip")
    assert played.reward == 1.0
    assert [o["ok"] for o in played.outcome["operations"]] == [False, True]


def test_only_the_manager_s_step_trains() -> None:
    played = decide("NOOP")
    assert [(s.role, s.policy, s.trainable) for s in played.steps] == [
        ("manager", "manager", True),
        ("answerer", "answerer", False),
    ]
    assert [s.role for s in played.trainable_steps] == ["manager"]
    assert [s.sequence.weight_version for s in played.steps] == [3, 5]


def test_the_learner_samples_and_the_frozen_answerer_is_greedy() -> None:
    world, engine = make_world(), reader("NOOP")
    run(play_decisions(decision_task(world), world, LEARNER, FROZEN, EM, [7]), engine)
    (decision,), (answer,) = engine.batches
    assert (decision.sampling.temperature, decision.sampling.seed) == (1.0, 7)
    assert answer.sampling.temperature == 0.0


def test_several_questions_are_asked_at_once_and_pay_their_mean() -> None:
    questions = (
        LinkedQuestion("Where does Ana live?", "Rome", "knowledge-update"),
        LinkedQuestion("Where did Ana live?", "Oslo", "temporal"),
        LinkedQuestion("Where is Ana now?", "Rome", "knowledge-update"),
    )
    world, engine = make_world(), reader("UPDATE 1 Ana lives in Rome")
    played = run(play_decisions(decision_task(world, questions=questions), world, LEARNER, FROZEN, EM, [0]), engine)
    assert played.reward == pytest.approx(2 / 3)
    assert [len(batch) for batch in engine.batches] == [1, 3]
    assert len(played.steps) == 4


def test_the_group_starts_from_one_snapshot_that_play_never_changes() -> None:
    world = make_world()
    task = decision_task(world)
    before = MemoryBank.from_snapshot(task.snapshot, world.embedder).entries()
    decisions = iter(["DELETE 1", "UPDATE 1 Ana lives in Rome", "ADD x"])
    engine = ScriptedEngine(lambda p, r: "Use: none\nAnswer: Rome" if is_answerer(p) else next(decisions))
    played = run_group(play_decisions(task, world, LEARNER, FROZEN, EM, range(3)), engine)
    assert [len(p.outcome["bank_after"]) for p in played] == [1, 2, 3]
    assert {json.dumps(p.outcome["bank_before"]) for p in played} == {json.dumps(played[0].outcome["bank_before"])}
    assert MemoryBank.from_snapshot(task.snapshot, world.embedder).entries() == before
    assert {p.group_id for p in played} == {"w/D2:1"}
    assert len({p.steps[0].sequence.prompt_ids for p in played}) == 1


def test_a_group_is_asked_about_the_turn_and_about_the_entries_that_one_of_it_hit() -> None:
    questions = (
        LinkedQuestion("Where does Ana live?", "Rome", "c"),
        LinkedQuestion("Where did Ana live?", "Oslo", "c", watches=("m1",)),
        LinkedQuestion("Who keeps bees?", "Ben", "c", watches=("m2", "m7")),
    )
    world = make_world()
    task = decision_task(world, questions=questions)

    def asked(*decisions: str) -> list[list[str]]:
        said = iter(decisions)
        engine = ScriptedEngine(lambda p, r: "Use: none\nAnswer: Rome" if is_answerer(p) else next(said))
        seeds = range(len(decisions))
        played = run_group(play_decisions(task, world, LEARNER, FROZEN, EM, seeds), engine)
        right = sum(q.gold == "Rome" for q in task.questions)
        assert [p.reward for p in played] == [right / (len(p.steps) - 1) for p in played]
        return [p.outcome["question"].split(" / ") for p in played]

    turn, first, second = (q.text for q in questions)
    assert asked("NOOP", "ADD Cleo sings") == [[turn]] * 2, "of entries nobody touched, all banks say the same"
    assert asked("NOOP", "UPDATE 2 Ben keeps cats") == [[turn, second]] * 2
    assert asked("DELETE 1", "UPDATE 2 Ben keeps cats", "NOOP") == [[turn, first, second]] * 3
    assert asked("UPDATE 9 Ana", "NOOP") == [[turn]] * 2, "what was rejected hit nothing"
    task = decision_task(world, questions=questions[1:])
    assert asked("NOOP", "NOOP") == [[first, second]] * 2, "a decision is never without a judge"


def test_a_question_on_an_entry_that_one_decision_hides_is_asked_of_all() -> None:
    questions = (
        LinkedQuestion("Where does Ana live?", "Rome", "c"),
        LinkedQuestion("Who keeps bees?", "Ben", "c", watches=("m2",)),
    )
    world = make_world("memory.answerer_top_k=1")
    said = iter(["NOOP", "ADD who keeps bees at night"])
    engine = ScriptedEngine(lambda p, r: "Use: none\nAnswer: Rome" if is_answerer(p) else next(said))
    task = decision_task(world, questions=questions)
    played = run_group(play_decisions(task, world, LEARNER, FROZEN, EM, range(2)), engine)
    assert [len(p.steps) for p in played] == [3, 3]


@pytest.mark.parametrize("said", [("ADD x", "ADD x"), ("NOOP", "UPDATE 9 Ana")])
def test_decisions_that_differ_are_judged_the_same_whether_or_not_equal_ones_would_be(said: tuple[str, str]) -> None:
    world = make_world("memory.pressure=0.1")
    task = decision_task(world)

    def played(judge_alike: bool, decisions: tuple[str, ...]) -> tuple[list[Trajectory], ScriptedEngine]:
        rest = iter(decisions)
        engine = ScriptedEngine(lambda p, r: "Use: none\nAnswer: Rome" if is_answerer(p) else next(rest))
        seeds = range(len(decisions))
        return run_group(play_decisions(task, world, LEARNER, FROZEN, EM, seeds, judge_alike), engine), engine

    differing = (*said, "DELETE 1")
    assert played(False, differing)[0] == played(True, differing)[0]
    group, engine = played(False, said)
    if said[0] == said[1]:
        assert [t.reward for t in group] == [None, None] and [t.error for t in group] == [None, None]
        assert [len(t.trainable_steps) for t in group] == [1, 1] and len(engine.batches) == 1
    else:  # the same bank, but only one of the two was rejected and is charged for it
        assert None not in [t.reward for t in group] and group[0].reward != group[1].reward


def test_applied_operations_carry_their_provenance() -> None:
    world = make_world()
    task = decision_task(world, questions=(LinkedQuestion("Where does Ana live?", "Rome", "c"),))
    made: list[MemoryBank] = []
    original = MemoryBank.fork
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryBank, "fork", lambda bank: made.append(original(bank)) or made[-1])
        run(play_decisions(task, world, LEARNER, FROZEN, EM, [0]), reader("UPDATE 1 Ana lives in Rome"))
    changed = next(e for e in made[0].entries() if e.text == "Ana lives in Rome")
    assert changed.provenance == Provenance(("D2:1",), "Ana", "manager", "tiny-random", "manager", 3)
    assert (changed.created_at, changed.updated_at) == ("2024-03-01T10:00:00", "2024-04-02T09:00:00")


def test_related_entries_are_united_best_rank_first() -> None:
    world = make_world()
    bank = MemoryBank.from_snapshot(
        snapshot_of(world, "Ana lives in Oslo", "Ben keeps bees", "Cy plays chess", "Ana has a dog"), world.embedder
    )
    found = related_entries(bank, ["Ana lives in Oslo", "Ben keeps bees"], 2)
    assert [e.text for e in found[:2]] == ["Ana lives in Oslo", "Ben keeps bees"]
    assert len(found) == len({e.id for e in found}) <= 4
    assert related_entries(bank, [], 2) == []


# -- ingesting --------------------------------------------------------------------------------------------------


def dialogue(*turns: Turn) -> Dialogue:
    return Dialogue("d", ("Ana", "Ben"), (Session("s1", None, "", turns),))


def turn(number: int, *facts: str, speaker: str = "Ana", oracle: OracleOp | None = None) -> Turn:
    return Turn(f"D1:{number}", speaker, "; ".join(facts) or "Hm.", tuple(Fact(f, oracle) for f in facts))


@pytest.mark.parametrize("index", range(3))
def test_the_oracle_leaves_just_what_holds_at_the_end_of_a_world(index: int) -> None:
    fact_world = fact_worlds()[index]
    bank = ingest_without_model(fact_world.dialogue, make_world(), "oracle")
    last = fact_world.dialogue.sessions[-1].turns[-1].id
    assert {e.text for e in bank.entries()} == set(fact_world.live_entries(last))
    assert bank.stats().rejected == {}
    assert bank.stats().events["UPDATE"] > 0


@pytest.mark.parametrize("index", range(3))
def test_replay_shows_the_bank_as_it_is_before_every_turn_with_facts(index: int) -> None:
    fact_world = fact_worlds()[index]
    held: list[str] = []
    seen = []
    for moment in replay(fact_world.dialogue, make_world(), "oracle"):
        assert {e.text for e in moment.bank.entries()} == set(held)
        held = fact_world.live_entries(moment.turn.id)
        seen.append(moment.turn.id)
    assert tuple(seen) == fact_world.fact_turns


def test_adding_everything_keeps_every_distinct_fact_and_skips_repetitions_only() -> None:
    told = dialogue(turn(1, "Ana has a dog", "Ana is here"), turn(2), turn(3, "ana has a  dog", "Ben left"))
    bank = ingest_without_model(told, make_world(), "add-everything")
    assert [e.text for e in bank.entries()] == ["Ana has a dog", "Ana is here", "Ben left"]
    assert bank.stats().rejected == {"duplicate_content": 1}
    assert [e.provenance.turn_ids for e in bank.entries()] == [("D1:1",), ("D1:1",), ("D1:3",)]


def test_the_oracle_cannot_be_asked_where_the_data_have_none() -> None:
    with pytest.raises(MemR1Error, match=r"d D1:1: no oracle operations.*stages.bank=add-everything or manager"):
        ingest_without_model(dialogue(turn(1, "Ana has a dog")), make_world(), "oracle")
    known = dialogue(turn(1, "Ana has a dog", oracle=OracleOp("ADD", "Ana has a dog")))
    with pytest.raises(MemR1Error, match="agents.extractor=gold"):
        ingest_without_model(known, make_world("agents.extractor=utterance"), "oracle")


def test_an_oracle_whose_target_is_gone_is_a_fault_of_the_data() -> None:
    lost = dialogue(turn(1, "Ana moved", oracle=OracleOp("UPDATE", "Ana moved", "Ana lives in Oslo")))
    with pytest.raises(MemR1Error, match=r"d D1:1: the oracle's target 'Ana lives in Oslo' is not a live entry"):
        ingest_without_model(lost, make_world(), "oracle")


def test_a_manager_replays_a_dialogue_and_everything_it_did_is_counted() -> None:
    told = dialogue(
        turn(1, "Ana lives in Oslo"), turn(2), turn(3, "Ben keeps bees"), turn(4, "Ana lives in Rome"), turn(5, "Hm")
    )
    replies = iter(["ADD Ana lives in Oslo", "ADD Ben keeps bees\nNOOP", "UPDATE 1 Ana lives in Rome", "what?"])
    engine = ScriptedEngine(lambda p, r: next(replies))
    (done,) = drive([ingest_with_manager(told, make_world(), Speaker("manager"))], engine)
    assert not isinstance(done, Failure)
    assert {e.text for e in done.bank.entries()} == {"Ana lives in Rome", "Ben keeps bees"}
    stats = done.bank.stats()
    assert (stats.events, stats.rejected) == ({"ADD": 2, "NOOP": 1, "UPDATE": 1}, {})
    assert (done.decisions, done.unparsed) == (4, 1)
    requests = [r for batch in engine.batches for r in batch]
    assert {r.policy for r in requests} == {"manager"}
    written = sum(len(t) + 1 for t in ("ADD Ana lives in Oslo", "ADD Ben keeps bees\nNOOP", "what?"))
    assert done.tokens == sum(len(r.prompt_ids) for r in requests) + written + len("UPDATE 1 Ana lives in Rome") + 1


def test_rejected_operations_are_counted_apart() -> None:
    told = dialogue(turn(1, "Ana lives in Oslo"))
    engine = ScriptedEngine(lambda p, r: "DELETE 4\nADD x")
    (done,) = drive([ingest_with_manager(told, make_world(), Speaker("manager"))], engine)
    assert not isinstance(done, Failure)
    stats = done.bank.stats()
    assert (sum(stats.rejected.values()), stats.events, len(done.bank)) == (2, {}, 0)


def test_raw_turns_are_entries_with_their_turn_as_evidence() -> None:
    told = fact_worlds()[0].dialogue
    entries = turn_entries(told)
    turns = [t for _, t in told.turns()]
    assert [e.id for e in entries] == [t.id for t in turns]
    assert all(e.provenance.turn_ids == (t.id,) for e, t in zip(entries, turns, strict=True))
    assert entries[0].text == f"{turns[0].speaker}: {turns[0].text}"


def test_completions_carry_what_a_trajectory_needs() -> None:
    (done,) = ScriptedEngine(lambda p, r: "abcdef").generate([GenerationRequest((65,), "answerer", SamplingParams(3))])
    assert done == Completion((97, 98, 99), (-0.5, -0.5, -0.5), "length", 5)


@pytest.mark.parametrize(
    ("decision", "question", "gold", "reward"),
    [
        ("UPDATE 1 Ana lives in Rome", "Where does Ana live?", "Rome", 1.0),  # right, and no larger
        ("ADD Cleo sings", "Where does Ana live?", "Oslo", 0.9),  # right, at the cost of one entry
        ("ADD Cleo sings\nADD Dora sings", "Where does Ana live?", "Oslo", 0.8),
        ("DELETE 2", "Where does Ana live?", "Oslo", 1.0),  # shrinking pays nothing
        ("UPDATE 9 nonsense", "Where does Ana live?", "Oslo", 0.9),  # rejected by the bank
        ("not an operation", "Where does Ana live?", "Oslo", 0.9),
        ("ADD Cleo sings", "Where does Ana live?", "Rome", 0.0),  # wrong: thrift does not come into it
    ],
)
def test_bank_pressure_is_taken_off_only_where_the_answers_are_right(
    decision: str, question: str, gold: str, reward: float
) -> None:
    questions = (LinkedQuestion(question, gold, "c"),)
    played = decide(decision, "memory.pressure=0.1", questions=questions)
    assert played.reward == pytest.approx(reward)
    assert sum(played.reward_parts.values()) == pytest.approx(reward)
