"""Replays: many decisions with one reward. Each member goes its own way through the same turns and questions.

The model is a script. Not covered: single decisions (test_episodes.py).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from memr1.config_file import load_config
from memr1.data.types import Dialogue, Fact, Question, Session, Turn
from memr1.envs.deciding import LinkedQuestion
from memr1.envs.episode import Failure, Speaker, drive
from memr1.envs.replaying import ReplayTask, ReplayTurn, play_replays, turn_seed
from memr1.errors import MemR1Error
from memr1.memory.bank import MemoryBank
from memr1.memory.types import Event, MemoryOp
from memr1.rewards.base import make_reward
from memr1.rollout.engine import GenerationRequest
from memr1.training.tasks import build_tasks
from memr1.trajectory import Trajectory
from tests.unit.scripted import ScriptedEngine, fact_worlds, is_answerer, make_config, make_world, shown_entries

LEARNER, FROZEN = Speaker("manager", 1.0, trainable=True), Speaker("answerer")
EM = make_reward("em_set")


def question(text: str, gold: str) -> LinkedQuestion:
    return LinkedQuestion(text, gold, "one")


def turn(number: int, fact: str, *due: LinkedQuestion) -> ReplayTurn:
    return ReplayTurn(str(number), "Ana", f"2024-03-{number:02d}T10:00:00", (fact,), due)


def task(*turns: ReplayTurn, at_end: tuple[LinkedQuestion, ...] = ()) -> ReplayTask:
    world = make_world()
    bank = MemoryBank("d", world.embedder)
    bank.apply([MemoryOp(Event.ADD, text="Ben keeps bees")])
    return ReplayTask("d/1..3", bank.snapshot(), turns, at_end)


CITIES = task(
    turn(1, "Ana lives in Oslo", question("Where does Ana live?", "Oslo")),
    turn(2, "Ana lives in Rome"),
    turn(3, "Ana has a cat"),
    at_end=(question("Where does Ana live?", "Rome"), question("What does Ben keep?", "bees")),
)


def city(prompt: str) -> str:
    """An answerer that knows the last city it is shown, and bees."""
    if "Ben keep?" in prompt:
        return "Use: none\nAnswer: " + ("bees" if "keeps bees" in prompt else "unknown")
    cities = [text.split()[-1] for text in shown_entries(prompt).values() if "lives in" in text]
    return "Use: none\nAnswer: " + (cities[0] if len(cities) == 1 else "unknown")


def play(
    replay: ReplayTask, scripts: dict[int, dict[str, str]], *overrides: str
) -> tuple[list[Trajectory], ScriptedEngine]:
    """scripts: seed -> new fact -> what the member says about it; NOOP otherwise."""
    said = {turn_seed(seed, n): by_fact for seed, by_fact in scripts.items() for n in range(len(replay.turns))}

    def script(prompt: str, request: GenerationRequest) -> str:
        if is_answerer(prompt):
            return city(prompt)
        fact = prompt.split("New fact (")[1].split("): ")[1].split("<|im_end|>")[0]
        completion = said[request.sampling.seed].get(fact, "NOOP")
        number = next((n for n, text in shown_entries(prompt).items() if "Oslo" in text), "9")
        return completion.replace("#", number)

    engine = ScriptedEngine(script)
    (played,) = drive([play_replays(replay, make_world(*overrides), LEARNER, FROZEN, EM, list(scripts))], engine)
    assert not isinstance(played, Failure), played
    return played, engine


GOOD = {"Ana lives in Oslo": "ADD", "Ana lives in Rome": "UPDATE #", "Ana has a cat": "ADD"}
HOARDER = {"Ana lives in Oslo": "ADD", "Ana lives in Rome": "ADD", "Ana has a cat": "ADD"}


def test_one_reward_for_all_decisions_is_the_mean_over_questions_when_they_are_due() -> None:
    (good, hoarder, idle), engine = play(CITIES, {7: GOOD, 8: HOARDER, 9: {}})
    assert (good.reward, hoarder.reward, idle.reward) == (1.0, pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert good.outcome["gold"] == "Oslo / Rome / bees" and good.outcome["answer"] == "Oslo / Rome / bees"
    for played in (good, hoarder, idle):
        assert [s.trainable for s in played.steps] == [True] * 3 + [False] * 3
        assert len(played.outcome["operations"]) == 3
    assert [e["text"] for e in good.outcome["bank_after"]] == ["Ben keeps bees", "Ana lives in Rome", "Ana has a cat"]
    # members are generated together, turn by turn; then all questions at once
    assert [len(b) for b in engine.batches] == [3, 3, 3, 9]


def test_members_have_banks_of_their_own_and_the_snapshot_stays() -> None:
    before = [e.text for e in MemoryBank.from_snapshot(CITIES.snapshot, make_world().embedder).entries()]
    (good, idle), _ = play(CITIES, {7: GOOD, 9: {}})
    assert len(good.outcome["bank_after"]) == 3 and len(idle.outcome["bank_after"]) == 1
    assert [e.text for e in MemoryBank.from_snapshot(CITIES.snapshot, make_world().embedder).entries()] == before


def test_every_turn_of_every_member_is_sampled_with_a_seed_of_its_own() -> None:
    _, engine = play(CITIES, {7: GOOD, 8: GOOD})
    requests = [r for batch in engine.batches[:3] for r in batch]
    assert len({r.sampling.seed for r in requests}) == 6
    assert {r.policy for r in requests} == {"manager"} and {r.sampling.temperature for r in requests} == {1.0}
    assert {r.sampling.temperature for r in engine.batches[3]} == {0.0}


def test_bank_pressure_is_the_mean_growth_in_proportion_to_what_was_answered() -> None:
    (good, hoarder, idle, wild), _ = play(
        CITIES, {7: GOOD, 8: HOARDER, 9: {}, 10: {"Ana has a cat": "perhaps"}}, "memory.pressure=0.3"
    )
    assert good.reward_parts["pressure"] == pytest.approx(-0.3 * 1.0 * 2 / 3)
    assert hoarder.reward_parts["pressure"] == pytest.approx(-0.3 * 2 / 3 * 3 / 3)
    assert idle.reward_parts["pressure"] == 0
    assert wild.reward_parts["pressure"] == pytest.approx(-0.3 * 1 / 3 * 1 / 3)  # unreadable counts as one entry
    assert good.reward == pytest.approx(sum(good.reward_parts.values()))


def test_a_question_without_gold_is_an_error_and_no_zero() -> None:
    broken = replace(CITIES, at_end=(question("Where?", " "),))
    (played,), _ = play(broken, {7: GOOD})
    assert played.reward is None and played.error == "the question has no gold answer"


# -- tasks -------------------------------------------------------------------------------------------------------


def talk() -> Dialogue:
    turns = tuple(Turn(str(n), "Ana", f"Word {n}.", (Fact(f"Fact {n}"),) if n != 2 else ()) for n in range(1, 7))
    questions = (
        Question("q1", "One?", "a", "x", evidence=("1",)),
        Question("q2", "One and four?", "b", "x", evidence=("1", "4")),
        Question("q3", "Six?", "c", "x", evidence=("6",)),
        Question("q4", "No evidence?", "d", "x"),
        Question("q5", "After three?", "e", "x", evidence=("3",), asked_after="3"),
        Question("q6", "No gold?", None, "x", evidence=("3",)),
    )
    return Dialogue("d", ("Ana",), (Session("s", None, "", turns),), questions)


def replays(length: int, dialogue: Dialogue | None = None) -> list[ReplayTask]:
    made = build_tasks(
        [dialogue or talk()], make_world(), ScriptedEngine(lambda p, r: ""),
        role="manager", bank="add-everything", replay=length,
    )  # fmt: skip
    assert all(t.demonstration is None for t in made)
    return [t.task for t in made if isinstance(t.task, ReplayTask)]


def test_a_whole_replay_goes_from_an_empty_bank_through_every_fact_to_every_question() -> None:
    (whole,) = replays(0)
    assert [t.turn_id for t in whole.turns] == ["1", "3", "4", "5", "6"]
    assert [[q.text for q in t.due] for t in whole.turns] == [[], ["After three?"], [], [], []]
    assert [q.text for q in whole.at_end] == ["One?", "One and four?", "Six?", "No evidence?"]
    assert len(MemoryBank.from_snapshot(whole.snapshot, make_world().embedder)) == 0


def test_a_stretch_is_asked_what_rests_on_it_and_on_nothing_later() -> None:
    first, second, third = replays(2)
    assert [[t.turn_id for t in r.turns] for r in (first, second, third)] == [["1", "3"], ["4", "5"], ["6"]]
    assert [[q.text for q in r.questions] for r in (first, second, third)] == [
        ["After three?", "One?"], ["One and four?"], ["Six?"]
    ]  # fmt: skip
    banks = [MemoryBank.from_snapshot(r.snapshot, make_world().embedder) for r in (first, second, third)]
    assert [[e.text for e in b.entries()] for b in banks] == [
        [], ["Fact 1", "Fact 3"], ["Fact 1", "Fact 3", "Fact 4", "Fact 5"]
    ]  # fmt: skip
    assert len({r.id for r in (first, second, third)}) == 3


def test_replays_of_a_world_ask_after_every_turn_and_at_the_end() -> None:
    world = fact_worlds(1)[0]
    (whole,) = replays(0, world.dialogue)
    assert [t.turn_id for t in whole.turns] == list(world.fact_turns)
    assert len(whole.at_end) == sum(q.asked_after is None for q in world.dialogue.questions)
    assert all(t.due for t in whole.turns)


def test_the_day_of_asking_is_shown_in_replays_as_in_single_decisions() -> None:
    asked = Question("q1", "How old?", "9", "x", evidence=("6",), asked_on="9 March 2030")
    dialogue = replace(talk(), questions=(asked, replace(asked, id="q2", asked_after="6")))
    (whole,) = replays(0, dialogue)
    assert [q.text for q in whole.questions] == [asked.shown_text] * 2


def test_kept_replays_are_read_back(tmp_path: Path) -> None:
    from memr1.data.jsonl import write_jsonl
    from memr1.training.worlds import training_dialogues

    write_jsonl([talk()], tmp_path / "d.jsonl")
    config = make_config("data.kind=jsonl", f"data.path={tmp_path / 'd.jsonl'}", f"output={tmp_path}")
    world = replace(make_world(), config=config)
    engine = ScriptedEngine(lambda p, r: "")
    first, second = (
        build_tasks(training_dialogues(config), world, engine, role="manager", bank="add-everything", replay=2)
        for _ in range(2)
    )
    for a, b in zip(first, second, strict=True):
        assert isinstance(a.task, ReplayTask) and isinstance(b.task, ReplayTask)
        assert (a.task.turns, a.task.at_end, a.task.id) == (b.task.turns, b.task.at_end, b.task.id)
        assert list(a.task.snapshot.log) == list(b.task.snapshot.log)
    assert len(list((tmp_path / ".cache" / "tuples").iterdir())) == 1


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("{role: answerer, episode: replay}", "replay is for managers that learn from rewards"),
        ("{role: manager, objective: sft, episode: replay}", "replay is for managers that learn from rewards"),
        ("{role: manager, traces: x}", "need objective=sft"),
        ("{role: manager, evidence_reward: 0.5}", "it needs role=answerer"),
        ("{role: manager, episode: replays}", "did you mean replay"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(stage: str, message: str) -> None:
    with pytest.raises(MemR1Error, match=message):
        load_config(None, [f"stages=[{stage}]"])
