"""Training tasks: every one has what pays it, and every demonstration does what the oracle would do.

Not covered: playing the tasks (test_episodes.py).
"""

from __future__ import annotations

import pytest

from memr1.data.types import Dialogue, Fact, OracleOp, Question, Session, Turn
from memr1.envs.answering import AnswerTask
from memr1.envs.deciding import DecisionTask, related_entries
from memr1.envs.episode import World
from memr1.errors import MemR1Error
from memr1.memory.bank import MemoryBank
from memr1.memory.types import Event
from memr1.training.tasks import TrainTask, build_tasks
from tests.unit.scripted import ScriptedEngine, fact_worlds, make_world, tokenizer

SILENT = ScriptedEngine(lambda prompt, request: "NOOP")


def tasks(dialogues: list[Dialogue], world: World, role: str, bank: str = "oracle") -> list[TrainTask]:
    return build_tasks(dialogues, world, SILENT, role=role, bank=bank)


def completion(task: TrainTask) -> str:
    assert task.demonstration is not None
    assert task.demonstration.completion_ids[-1] == tokenizer().eos_token_id
    assert all(task.demonstration.loss_mask)
    assert len(task.demonstration.loss_mask) == len(task.demonstration.completion_ids)
    return str(tokenizer().decode(list(task.demonstration.completion_ids), skip_special_tokens=True))


WORLDS = fact_worlds(6)
DIALOGUES = [w.dialogue for w in WORLDS]
TURNS = {f"{w.id}/{t.id}": (w, t) for w in WORLDS for _, t in w.dialogue.turns()}


@pytest.mark.parametrize("protocol", ["lines", "json"])
def test_a_manager_s_demonstration_makes_the_bank_that_the_oracle_makes(protocol: str) -> None:
    world = make_world(f"agents.protocol={protocol}", "memory.manager_top_k=20")
    made = tasks(DIALOGUES, world, "manager")
    events = set()
    for t in made:
        assert isinstance(t.task, DecisionTask)
        bank = MemoryBank.from_snapshot(t.task.snapshot, world.embedder)
        shown = world.agents.manager.prompt(t.task.facts, "", related_entries(bank, t.task.facts, 20))
        prompt = tokenizer().decode(list(t.demonstration.prompt_ids)) if t.demonstration else ""
        assert all(fact in prompt for fact in t.task.facts)
        numbers = {e.text: n for n, e in shown.entries.items()}
        decision = world.agents.manager.read(completion(t), shown)
        assert decision.ops is not None, decision.error
        results = bank.apply(decision.ops)
        assert all(r.ok for r in results)
        fact_world, turn = TURNS[t.task.id]
        assert {e.text for e in bank.entries()} == set(fact_world.live_entries(turn.id))
        assert t.kind == "+".join(f.oracle.event for f in turn.facts or () if f.oracle)
        events |= {r.op.event for r in results}
        assert len(numbers) == len(shown.entries)
    assert events == set(Event)


@pytest.mark.parametrize("protocol", ["lines", "json"])
def test_an_answerer_s_demonstration_gives_the_gold_answer_from_the_evidence(protocol: str) -> None:
    world = make_world(f"agents.protocol={protocol}", "memory.answerer_top_k=20")
    made = tasks(DIALOGUES, world, "answerer")
    for t in made:
        assert isinstance(t.task, AnswerTask)
        prompt = world.agents.answerer.prompt(t.task.question, t.task.entries)
        assert t.demonstration is not None and prompt.ids == t.demonstration.prompt_ids
        answer = world.agents.answerer.read(completion(t))
        assert answer.text == t.task.gold
        chosen = [prompt.entries[str(n)] for n in answer.selected]
        assert all(set(e.provenance.turn_ids) & set(t.task.evidence) for e in chosen)
        assert bool(chosen) == (t.kind != "unanswerable")
    assert {t.kind for t in made} >= {"single-hop", "multi-hop", "temporal", "aggregation", "unanswerable"}
    at_end = [q for d in DIALOGUES for q in d.questions if q.asked_after is None]
    assert [t.task.id for t in made] == [f"{d.id}/{q.id}" for d in DIALOGUES for q in d.questions if not q.asked_after]
    assert len(made) == len(at_end) == 6 * 7


def test_what_ceased_to_hold_is_answered_unknown_without_a_source() -> None:
    made = [
        t for t in tasks([w.dialogue for w in fact_worlds(20)], make_world(), "answerer") if t.kind == "unanswerable"
    ]
    revoked = [t for t in made if isinstance(t.task, AnswerTask) and t.task.evidence]
    assert revoked and len(made) > len(revoked)
    assert {t.task.gold for t in made if isinstance(t.task, AnswerTask)} == {"unknown"}
    assert {completion(t) for t in made} == {"Use: none\nAnswer: unknown"}


def test_no_answer_is_cloned_whose_evidence_is_out_of_sight() -> None:
    world = make_world("memory.answerer_top_k=1")
    hops = [t for t in tasks(DIALOGUES, world, "answerer") if t.kind == "multi-hop"]
    assert hops and all(t.demonstration is None for t in hops)  # two sources, one shown
    forgotten = build_tasks(DIALOGUES, make_world(), SILENT, role="answerer", bank="manager")
    for t in forgotten:  # that manager never stored anything
        assert (t.demonstration is not None) == (t.kind == "unanswerable")


@pytest.mark.parametrize("bank", ["oracle", "add-everything", "manager"])
def test_every_manager_task_of_factworld_has_questions_to_pay_it(bank: str) -> None:
    made = tasks(DIALOGUES, make_world(), "manager", bank)
    assert [t.task.id for t in made] == [f"{w.id}/{turn}" for w in WORLDS for turn in w.fact_turns]
    counts = [len(t.task.questions) for t in made if isinstance(t.task, DecisionTask)]
    assert min(counts) >= 1 and max(counts) == 3  # as asked for: `questions_per_fact_turn`
    assert sum(c == 3 for c in counts) > 0.7 * len(counts)
    assert all((t.demonstration is not None) == (bank == "oracle") for t in made)


def test_a_manager_task_starts_from_the_bank_before_its_turn() -> None:
    world = make_world()
    for fact_world in WORLDS:
        held: set[str] = set()
        for t in tasks([fact_world.dialogue], world, "manager"):
            assert isinstance(t.task, DecisionTask)
            bank = MemoryBank.from_snapshot(t.task.snapshot, world.embedder)
            assert {e.text for e in bank.entries()} == held
            held = set(fact_world.live_entries(t.task.turn_id))


# -- dialogues as people bring them ------------------------------------------------------------------------------


def own(questions: tuple[Question, ...], oracle: bool = False) -> Dialogue:
    def fact(text: str) -> tuple[Fact, ...]:
        return (Fact(text, OracleOp("ADD", text) if oracle else None),)

    turns = (
        Turn("1", "Ana", "I moved to Oslo.", fact("Ana lives in Oslo.")),
        Turn("2", "Ben", "Nice.", ()),
        Turn("3", "Ben", "I keep bees.", fact("Ben keeps bees.")),
        Turn("4", "Ana", "I am a nurse.", fact("Ana is a nurse.")),
    )
    return Dialogue("mine", ("Ana", "Ben"), (Session("s1", None, "", turns),), questions)


def judges(dialogue: Dialogue, *overrides: str) -> dict[str, list[str]]:
    """Questions that judge each turn's decision, from the bank that adding everything makes."""
    made = tasks([dialogue], make_world(*overrides), "manager", "add-everything")
    return {t.task.turn_id: [q.text for q in t.task.questions] for t in made if isinstance(t.task, DecisionTask)}


def test_a_question_pays_the_turn_that_completes_its_evidence_then_come_those_on_entries_in_sight() -> None:
    dialogue = own(
        (
            Question("q1", "Who lives in Oslo?", "Ana", "one", evidence=("1",)),
            Question("q2", "Do both work?", "yes", "two", evidence=("4", "1")),
            Question("q3", "Who keeps bees?", "Ben", "one", evidence=("3",)),
            Question("q4", "Anything else?", "no", "none"),
            Question("q5", "No gold", None, "none", evidence=("4",)),
            Question("q6", "Blank gold", " ", "none", evidence=("4",)),
        )
    )
    found = judges(dialogue)
    assert found["1"] == ["Who lives in Oslo?"]
    assert found["3"] == ["Who keeps bees?", "Who lives in Oslo?"]
    assert found["4"][0] == "Do both work?" and set(found["4"][1:]) == {"Who keeps bees?", "Who lives in Oslo?"}
    assert len(judges(dialogue, "memory.manager_top_k=1")["4"]) == 2
    assert judges(dialogue, "rollout.questions_per_decision=1")["3"] == ["Who keeps bees?"]


def test_questions_on_old_entries_name_them_and_those_on_the_turn_are_always_asked() -> None:
    dialogue = own(
        (
            Question("q1", "Where does Ana live?", "Oslo", "one", evidence=("1",)),
            Question("q2", "What does Ben keep?", "bees", "one", evidence=("3",)),
            Question("q3", "What is Ana?", "nurse", "one", evidence=("4",)),
            Question("q4", "Where does the nurse live?", "Oslo", "two", evidence=("4", "1")),
        )
    )
    made = tasks([dialogue], make_world(), "manager", "add-everything")
    (task,) = (t.task for t in made if isinstance(t.task, DecisionTask) and t.task.turn_id == "4")
    said = {e.text: e.id for e in MemoryBank.from_snapshot(task.snapshot, make_world().embedder).entries()}
    assert {q.text: q.watches for q in task.questions} == {
        "What is Ana?": (),
        "Where does Ana live?": (said["Ana lives in Oslo."],),
        "What does Ben keep?": (said["Ben keeps bees."],),
        "Where does the nurse live?": (),
    }


def test_a_question_that_needs_the_turn_is_always_asked_whatever_it_watches() -> None:
    dialogue = own(
        (
            Question("q3", "What is Ana?", "nurse", "one", evidence=("4",)),
            Question("q4", "Where does the nurse live?", "Oslo", "two", evidence=("4", "1")),
        )
    )
    made = tasks([dialogue], make_world(), "manager", "add-everything")
    (task,) = (t.task for t in made if isinstance(t.task, DecisionTask) and t.task.turn_id == "4")
    assert [(q.text, q.watches) for q in task.questions] == [("What is Ana?", ()), ("Where does the nurse live?", ())]


def test_an_entry_is_watched_by_a_question_whose_answer_stands_nowhere_else() -> None:
    dialogue = own(
        (
            Question("q1", "Who lives in Oslo?", "Ana", "one", evidence=("1",)),  # Ana is a nurse, too: to be guessed
            Question("q2", "Where does Ana live?", "Oslo", "one", evidence=("1",)),
            Question("q3", "Who keeps bees?", "Ben", "one", evidence=("3",)),
            Question("q4", "What is Ana?", "nurse", "one", evidence=("4",)),
        )
    )
    assert judges(dialogue)["4"][0] == "What is Ana?"
    assert set(judges(dialogue)["4"][1:]) == {"Where does Ana live?", "Who keeps bees?"}


def test_a_turn_that_no_question_bears_on_is_judged_by_none() -> None:
    assert judges(own((Question("q1", "Who lives in Oslo?", "Ana", "one", evidence=("1",)),)))["3"] == []


def test_every_entry_in_sight_is_watched_by_a_question_where_there_is_one() -> None:
    world = make_world("rollout.questions_per_decision=4", "memory.manager_top_k=3")
    dialogues = [w.dialogue for w in fact_worlds(3, questions_per_fact_turn=24)]
    watched = 0
    for t in tasks(dialogues, world, "manager"):
        assert isinstance(t.task, DecisionTask)
        bank = MemoryBank.from_snapshot(t.task.snapshot, world.embedder)
        (dialogue,) = (d for d in dialogues if t.task.id.startswith(f"{d.id}/"))
        possible = {q.text: set(q.evidence) for q in dialogue.questions if q.asked_after == t.task.turn_id}
        chosen = [possible[q.text] for q in t.task.questions]
        assert len(chosen) <= 4
        for e in related_entries(bank, t.task.facts, 3):
            sources = set(e.provenance.turn_ids)
            if any(sources & p for p in possible.values()):
                assert any(sources & c for c in chosen), (t.task.id, e.text, possible)
                watched += 1
    assert watched > 50


def test_answers_stand_in_a_text_as_words() -> None:
    dialogue = own(
        (
            Question("q1", "Who lives where?", "Os", "one", evidence=("1",)),  # no word of "Oslo"
            Question("q2", "Where does Ana live?", "oslo", "one", evidence=("1",)),
            Question("q3", "Who keeps bees?", "Ben", "one", evidence=("3",)),
        )
    )
    assert judges(dialogue)["3"] == ["Who keeps bees?", "Where does Ana live?"]


def test_where_questions_are_asked_after_turns_those_alone_pay_the_turn() -> None:
    dialogue = own(
        (
            Question("q1", "Who moved?", "Ana", "one", evidence=("1",), asked_after="3"),
            Question("q2", "Who keeps bees?", "Ben", "one", evidence=("3",)),
            Question("q3", "Blank gold", "", "one", asked_after="4"),
        )
    )
    assert judges(dialogue) == {"1": [], "3": ["Who moved?"], "4": []}


def test_questions_without_gold_or_of_the_past_train_no_answerer() -> None:
    dialogue = own(
        (
            Question("q1", "Who lives in Oslo?", "Ana", "one", evidence=("1",)),
            Question("q2", "No gold", None, "none"),
            Question("q3", "Blank gold", "  ", "none"),
            Question("q4", "Who moved?", "Ana", "one", asked_after="3"),
        )
    )
    (only,) = tasks([dialogue], make_world(), "answerer", "add-everything")
    assert only.task.id == "mine/q1"
    assert completion(only) == "Use: 1\nAnswer: Ana"


def test_data_without_an_oracle_name_the_remedy() -> None:
    with pytest.raises(MemR1Error, match="mine 1: no oracle operations.*stages.bank=add-everything or manager"):
        tasks([own(())], make_world(), "manager")
    assert len(tasks([own((), oracle=True)], make_world(), "manager")) == 3
