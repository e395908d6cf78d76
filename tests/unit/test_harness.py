"""The harness: every system runs, sees what it says it sees, and uses the weights it says it uses.

Not covered: statistics and tables (test_statistics.py).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from memr1.config import Config
from memr1.config_file import load_config
from memr1.data.jsonl import write_jsonl
from memr1.data.load import SPLITS
from memr1.data.types import Dialogue, Fact, OracleOp, Question, Session, Turn
from memr1.envs.episode import Episode, Speaker, World
from memr1.errors import MemR1Error
from memr1.evaluation import harness, remember
from memr1.evaluation.evaluate import evaluate, evaluate_run, is_evaluated, measured_on, table_name, weights_folder
from memr1.evaluation.failures import failure, reached
from memr1.evaluation.harness import Kept, evaluate_system
from memr1.evaluation.memories import MEMORIES
from memr1.evaluation.memories.base import Footprint, Memory
from memr1.evaluation.predictions import Prediction, load_predictions
from memr1.evaluation.remember import RememberingEngine
from memr1.evaluation.rows import Row, summarize
from memr1.evaluation.systems import SYSTEMS, TRAINED, UNTRAINED, WARM, get_system
from memr1.memory.types import MemoryEntry
from memr1.rollout.endpoint import EndpointConfig
from memr1.rollout.engine import Completion, GenerationRequest, SamplingParams
from memr1.rollout.judge import PROMPT_ID, Item, Leniency, Verdict
from memr1.training.checkpoints import TrainState
from memr1.training.runlog import RunLog, read_evaluation
from tests.unit.scripted import BASE, ScriptedEngine, fact_worlds, is_answerer, make_world, shown_entries

DIALOGUES = [w.dialogue for w in fact_worlds(2)]
QUESTIONS = [q for d in DIALOGUES for q in d.questions if q.asked_after is None]


def obedient(prompt: str, request: GenerationRequest) -> str:
    """A manager that adds every fact and an answerer that repeats the last memory it sees."""
    if is_answerer(prompt):
        entries = shown_entries(prompt.replace("<|im_end|>", "\n"))
        return f"Use: {len(entries)}\nAnswer: {list(entries.values())[-1]}" if entries else "Use: none\nAnswer: unknown"
    lines = prompt.replace("<|im_end|>", "\n").splitlines()
    return "\n".join("ADD " + line.split(": ", 1)[1] for line in lines if line.startswith("New fact"))


def run(
    name: str, *overrides: str, dialogues: list[Dialogue] = DIALOGUES
) -> tuple[list[Prediction], list[Footprint], ScriptedEngine]:
    engine = ScriptedEngine(obedient)
    world = make_world("rollout.manager_max_new_tokens=120", "rollout.answer_max_new_tokens=200", *overrides)
    predictions, footprints = evaluate_system(name, dialogues, world, engine, "factworld")
    return predictions, footprints, engine


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_answers_every_final_question_once(name: str) -> None:
    predictions, footprints, engine = run(name)
    assert [p.question_id for p in predictions] == [q.id for q in QUESTIONS]
    assert [p.gold for p in predictions] == [q.answer for q in QUESTIONS]
    assert all(p.answer and p.error is None and p.system == name for p in predictions)
    assert all(p.prompt_tokens > 0 and p.completion_tokens > 0 and p.seconds > 0 for p in predictions)
    system = get_system(name)
    answerers = {r.policy for batch in engine.batches for r in batch if len(batch) == len(QUESTIONS)}
    assert answerers == {"base" if system.answerer == UNTRAINED else "answerer"}
    deciders = {r.policy for batch in engine.batches[:-1] for r in batch}
    if system.managed:
        assert deciders == {"base" if system.manager == UNTRAINED else "manager"}
    elif system.memory == "linked-notes":
        assert deciders == {"base"}
    else:
        assert deciders == set() and len(engine.batches) == 1
    assert len(footprints) == len(DIALOGUES) and all(f.seconds > 0 for f in footprints)
    assert all((f.upkeep.tokens > 0) == (system.managed or system.memory == "linked-notes") for f in footprints)


def test_no_memory_shows_nothing() -> None:
    predictions, _, _ = run("no-memory")
    assert {p.retrieved for p in predictions} == {()}
    assert {p.answer for p in predictions} == {"unknown"}
    assert {p.evidence_recall for p in predictions} == {0.0, None}


@pytest.mark.parametrize("name", ["bm25", "embedding", "hybrid", "add-everything"])
def test_turns_and_entries_share_one_budget(name: str) -> None:
    predictions, _, _ = run(name, "memory.answerer_top_k=6")
    assert max(len(p.retrieved) for p in predictions) == 6


@pytest.mark.parametrize("name", ["bm25", "embedding"])
def test_retrieval_over_turns_shows_k_of_them_best_first(name: str) -> None:
    predictions, _, _ = run(name, "evaluation.retrieval_top_k=3")
    turns = {f"{t.speaker}: {t.text}" for d in DIALOGUES for _, t in d.turns()}
    assert {len(p.retrieved) for p in predictions} <= {1, 2, 3}
    assert max(len(p.retrieved) for p in predictions) == 3
    assert all(set(p.retrieved) <= turns for p in predictions)


def test_evidence_recall_is_the_share_of_evidence_turns_shown() -> None:
    dialogue = Dialogue(
        "d",
        ("Ana",),
        (
            Session(
                "s",
                None,
                "",
                tuple(Turn(f"D1:{i}", "Ana", t) for i, t in enumerate(("red apple", "blue sky", "hm"))),
            ),
        ),
        (
            Question("q1", "red apple blue sky", "x", "c", evidence=("D1:0", "D1:1")),
            Question("q2", "apple", "x", "c", evidence=("D1:0", "D1:1")),
            Question("q3", "apple", "x", "c"),
            Question("q4", "later", "x", "c", asked_after="D1:1"),
        ),
    )
    predictions, _, _ = run("embedding", "evaluation.retrieval_top_k=2", dialogues=[dialogue])
    assert [p.question_id for p in predictions] == ["q1", "q2", "q3"]
    assert predictions[0].evidence_recall == 1.0
    assert predictions[2].evidence_recall is None
    predictions, _, _ = run("embedding", "evaluation.retrieval_top_k=1", dialogues=[dialogue])
    assert [p.evidence_recall for p in predictions] == [0.5, 0.5, None]


def test_full_context_shows_all_turns_and_keeps_the_newest_when_cut() -> None:
    whole, _, _ = run("full-context", "rollout.max_prompt_tokens=20000")
    turns = [f"{t.speaker}: {t.text}" for _, t in DIALOGUES[0].turns()]
    assert list(whole[0].retrieved) == turns[::-1]
    assert not whole[0].prompt_cut
    assert whole[0].answer == turns[0]  # this script repeats the last line shown: the oldest turn
    budget = whole[0].prompt_tokens // 2
    cut, _, _ = run("full-context", f"rollout.max_prompt_tokens={budget}")
    assert cut[0].prompt_cut and cut[0].prompt_tokens <= budget
    assert list(cut[0].retrieved) == turns[::-1][: len(cut[0].retrieved)]
    assert 0 < len(cut[0].retrieved) < len(turns)
    assert cut[0].answer == cut[0].retrieved[-1]
    for p in cut:  # recall counts what was shown, not what was cut
        question = next(q for q in QUESTIONS if q.id == p.question_id)
        dialogue = next(d for d in DIALOGUES if d.id == p.dialogue_id)
        shown = {t.id for _, t in dialogue.turns() if f"{t.speaker}: {t.text}" in p.retrieved}
        expected = len(shown & set(question.evidence)) / len(set(question.evidence)) if question.evidence else None
        assert p.evidence_recall == expected


def test_a_perfect_bank_has_just_the_live_entries() -> None:
    predictions, footprints, _ = run("oracle-trained", "memory.answerer_top_k=60")
    live = [w.live_entries(w.dialogue.sessions[-1].turns[-1].id) for w in fact_worlds(2)]
    assert [f.entries for f in footprints] == [f.sizes[-1] for f in footprints] == list(map(len, live))
    for f, world in zip(footprints, fact_worlds(2), strict=True):
        ends = [s.turns[-1].id for s in world.dialogue.sessions]
        assert list(f.sizes) == [len(world.live_entries(end)) for end in ends]
    assert set(predictions[0].retrieved) == set(live[0])


def test_footprints_tell_what_the_manager_did() -> None:
    told = [len(w.fact_turns) for w in fact_worlds(2)]
    _, footprints, engine = run("trained")
    for f, turns in zip(footprints, told, strict=True):
        done = f.upkeep
        assert (done.decisions, done.unreadable) == (turns, 0)
        assert done.operations["ADD"] + done.rejected == turns  # one fact a turn, added or a duplicate
        assert f.entries == f.sizes[-1] == done.operations["ADD"]
    assert sum(len(batch) for batch in engine.batches[:-1]) == sum(told)


def test_unreadable_decisions_are_counted_and_change_nothing() -> None:
    world = make_world()
    engine = ScriptedEngine(lambda prompt, _: "Use: none\nAnswer: x" if is_answerer(prompt) else "I think so")
    predictions, footprints = evaluate_system("trained", DIALOGUES, world, engine, "factworld")
    told = [len(w.fact_turns) for w in fact_worlds(2)]
    assert [(f.entries, f.upkeep.decisions, f.upkeep.unreadable) for f in footprints] == [(0, n, n) for n in told]
    row = summarize(predictions, footprints)
    assert row.memory is not None and (row.memory.unreadable, row.memory.entries) == (1.0, 0.0)
    named = sum(bool(q.evidence) for q in QUESTIONS)
    assert row.failures["not stored"] == named and row.failures["not used"] == row.failures["not retrieved"] == 0
    assert Row.from_dict(row.to_dict()) == row


def test_wrong_answers_are_put_down_to_where_their_evidence_was_lost() -> None:
    talk = Dialogue(
        "d",
        ("Ana",),
        (Session("s", None, "", tuple(Turn(f"D1:{i}", "Ana", t) for i, t in enumerate(("red apple", "blue sky")))),),
        (
            Question("used", "red apple", "Ana: red apple", "c", evidence=("D1:0",)),
            Question("unused", "red apple", "x", "c", evidence=("D1:0",)),
            Question("unseen", "red apple", "x", "c", evidence=("D1:0", "D1:1")),
            Question("untold", "red apple", "x", "c"),
        ),
    )
    predictions, _, _ = run("embedding", "evaluation.retrieval_top_k=1", dialogues=[talk])
    assert [failure(p) for p in predictions] == [None, "not used", "not retrieved", "no evidence"]
    predictions, _, _ = run("no-memory", dialogues=[talk])
    assert [failure(p) for p in predictions] == ["not stored"] * 3 + ["no evidence"]


def test_a_revocation_that_was_carried_out_needs_no_entry() -> None:
    assert reached(("D2:1",), {}, {"D2:1"}, []) == "prompt"
    assert reached(("D1:1", "D2:1"), {}, {"D2:1"}, []) == "nothing"


def test_a_deletion_excuses_a_lack_only_where_the_dataset_deletes() -> None:
    """A manager that deletes at the second turn, whatever it says: that Ana gave up chess, or took up sailing."""

    def script(prompt: str, request: GenerationRequest) -> str:
        if is_answerer(prompt):
            return "Use: none\nAnswer: unknown"
        return "DELETE 1" if "1. " in prompt else "ADD Ana plays chess"

    def lost(fact: Fact) -> str | None:
        told = [Fact("Ana plays chess", OracleOp("ADD", "Ana plays chess")), fact]
        turns = tuple(Turn(f"D1:{n}", "Ana", f.text, (f,)) for n, f in enumerate(told))
        question = Question("q", "What does Ana do?", "sailing", "c", evidence=("D1:1",))
        talk = Dialogue("d", ("Ana",), (Session("s", None, "", turns),), (question,))
        (found,), footprints = evaluate_system("trained", [talk], make_world(), ScriptedEngine(script), "factworld")
        assert footprints[0].upkeep.operations == {"ADD": 1, "DELETE": 1}
        return failure(found)

    assert lost(Fact("Ana gave up chess", OracleOp("DELETE", "", "Ana plays chess"))) == "not used"
    assert lost(Fact("Ana sails", OracleOp("ADD", "Ana sails"))) == "not stored"
    assert lost(Fact("Ana sails")) == "not stored"


def test_an_entry_that_merges_two_facts_holds_the_evidence_of_both() -> None:
    def manager(second: str) -> str | None:
        def script(prompt: str, request: GenerationRequest) -> str:
            if is_answerer(prompt):
                return "Use: none\nAnswer: unknown"
            return second if "1. " in prompt else "ADD Ana plays chess"

        facts = ("Ana plays chess", "Ana sails")
        turns = tuple(Turn(f"D1:{n}", "Ana", text, (Fact(text),)) for n, text in enumerate(facts))
        question = Question("q", "What does Ana play?", "chess", "c", evidence=("D1:0",))
        talk = Dialogue("d", ("Ana",), (Session("s", None, "", turns),), (question,))
        (found,), _ = evaluate_system("trained", [talk], make_world(), ScriptedEngine(script), "factworld")
        assert found.evidence_recall == (1.0 if failure(found) == "not used" else 0.0)
        return failure(found)

    assert manager("UPDATE 1 Ana plays chess and sails") == "not used"
    assert manager("UPDATE 1 Ana sails") == "not stored"


def test_a_prompt_that_cannot_fit_is_that_system_s_error_and_not_the_end() -> None:
    long = Question("q0", "why " * 400, "x", "c")
    dialogue = Dialogue("d", ("Ana",), DIALOGUES[0].sessions, (long, *DIALOGUES[0].questions))
    predictions, _, _ = run("no-memory", "rollout.max_prompt_tokens=900", dialogues=[dialogue])
    assert predictions[0].answer is None
    assert "rollout.max_prompt_tokens=900" in (predictions[0].error or "")
    assert all(p.error is None for p in predictions[1:])


def test_an_unknown_system_is_told_its_neighbour() -> None:
    with pytest.raises(MemR1Error, match="no system 'full_context'; did you mean full-context?"):
        get_system("full_context")
    with pytest.raises(MemR1Error, match="there are: no-memory, bm25"):
        get_system("zzz")


# -- a run's table ------------------------------------------------------------------------------------------------


class FakePool:
    """A pool of one scripted runner that remembers which weights it was given."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.loaded: list[tuple[str, tuple[str, ...]]] = []

    def map(self, method: str, items: Any, *, system: str, benchmark: str) -> list[Any]:
        assert method == "evaluate"
        return [evaluate_system(system, items, self.world, ScriptedEngine(obedient), benchmark)]

    def load_policies(self, folder: str, roles: tuple[str, ...]) -> None:
        self.loaded.append((Path(folder).parent.name, roles))


STATE = TrainState(
    step=9,
    stage=4,
    stage_ends={
        "0-answerer-sft": "step_000002",
        "1-manager-sft": "step_000004",
        "2-answerer-grpo": "step_000006",
        "3-manager-grpo": "step_000009",
    },
)


def table(
    tmp_path: Path,
    systems: list[str],
    *overrides: str,
    state: TrainState = STATE,
    dialogues: list[Dialogue] = DIALOGUES,
) -> tuple[list[str], FakePool, str, Config]:
    config = load_config(None, [*BASE, f"output={tmp_path}", "name=r", *overrides])
    pool, said = FakePool(make_world(*overrides)), io.StringIO()
    with RunLog(config.run_dir) as log:
        console = Console(file=said, width=200)
        rows = evaluate(config, pool, state, log, console, "factworld", dialogues, systems)  # type: ignore[arg-type]
    return [r.system for r in rows], pool, said.getvalue(), config


def test_each_system_gets_the_weights_of_its_stage(tmp_path: Path) -> None:
    names = ["trained", "warm-started", "warm-manager", "warm-answerer", "bm25", "untrained", "oracle-warm"]
    rows, pool, _, _ = table(tmp_path, names)
    assert rows == names
    assert pool.loaded == [
        ("step_000009", ("manager",)),
        ("step_000009", ("answerer",)),
        ("step_000004", ("manager",)),
        ("step_000002", ("answerer",)),
        ("step_000004", ("manager",)),
        ("step_000009", ("answerer",)),
        ("step_000009", ("manager",)),
        ("step_000002", ("answerer",)),
        ("step_000009", ("answerer",)),
        ("step_000002", ("answerer",)),
    ]
    assert weights_folder(tmp_path, STATE, "manager", UNTRAINED) is None
    assert weights_folder(tmp_path, STATE, "manager", TRAINED) == tmp_path / "checkpoints/step_000009/policies"
    assert weights_folder(tmp_path, STATE, "manager", WARM) == tmp_path / "checkpoints/step_000004/policies"


def test_rows_and_predictions_are_kept_in_the_run_folder(tmp_path: Path) -> None:
    _, _, _, config = table(tmp_path, ["bm25", "trained"])
    logged = read_evaluation(config.run_dir)
    assert [(r["system"], r["step"], r["n"]) for r in logged] == [("bm25", 9, 14), ("trained", 9, 14)]
    assert {r["measured_on"] for r in logged} == {measured_on(config, DIALOGUES)}
    kept = load_predictions(config.run_dir / "predictions" / "factworld" / "trained.jsonl")
    assert [p.question_id for p in kept] == [q.id for q in QUESTIONS]


def test_the_table_says_whose_prompts_were_cut(tmp_path: Path) -> None:
    _, _, said, _ = table(tmp_path, ["bm25", "full-context"], "rollout.max_prompt_tokens=1200")
    cut = f"full-context: {len(QUESTIONS)} of {len(QUESTIONS)} prompts were cut to fit rollout.max_prompt_tokens."
    assert cut in said and said.count("prompts were cut") == 1


def test_oracle_systems_are_left_out_where_there_is_no_oracle(tmp_path: Path) -> None:
    bare = [
        Dialogue(
            d.id,
            d.speakers,
            tuple(
                Session(s.id, s.time, s.time_text, tuple(Turn(t.id, t.speaker, t.text) for t in s.turns))
                for s in d.sessions
            ),
            d.questions,
        )
        for d in DIALOGUES
    ]
    rows, _, said, _ = table(tmp_path, ["bm25", "oracle-trained"], dialogues=bare)
    assert rows == ["bm25"]
    assert "oracle-trained: left out, there are no oracle operations for the facts of agents.extractor=gold" in said
    rows, _, said, _ = table(tmp_path, ["bm25", "oracle-trained"], "agents.extractor=utterance")
    assert rows == ["bm25"] and "agents.extractor=utterance" in said


def test_systems_that_the_run_made_no_weights_for_are_left_out(tmp_path: Path) -> None:
    only_rl = TrainState(step=3, stage=1, stage_ends={"0-answerer-grpo": "step_000003"})
    rows, pool, said, _ = table(tmp_path, ["warm-started", "trained"], state=only_rl)
    assert rows == ["trained"]
    assert "warm-started: left out, the run has no finished supervised stage of the manager" in said
    assert {step for step, _ in pool.loaded} == {"step_000003"}


def test_a_table_without_any_row_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        MemR1Error, match=r"no system can be evaluated on factworld; trained: the run has no finished stage"
    ):
        table(tmp_path, ["trained"], state=TrainState())


def test_rows_of_other_questions_or_settings_get_a_table_of_their_own() -> None:
    assert table_name("locomo", "test", False, False, ()) == "locomo"
    assert table_name("locomo", "validation", True, True, ()) == "locomo-validation-adversarial-corrected"
    harmless = ("model.threads=2", "judge.url=http://localhost/v1", "judge.model=wise-1", "evaluation.systems=[bm25]")
    assert table_name("factworld", "test", False, False, harmless) == "factworld"
    changed = ("memory.answerer_top_k=20", *harmless, "agents.answerer_endpoint.url=http://a/v1")
    name = table_name("factworld", "test", False, False, changed)
    assert name == "factworld-agents.answerer_endpoint.url=http_a_v1-memory.answerer_top_k=20"
    judges = [
        EndpointConfig(f"http://{host}/v1", model) for host, model in (("a", "wise"), ("b", "wise"), ("a", "kind"))
    ]
    wise, moved, kind = (table_name("locomo", "test", judge=judge) for judge in judges)
    assert wise == moved == f"locomo-judge=wise.{PROMPT_ID}" and kind == f"locomo-judge=kind.{PROMPT_ID}"


def test_disputed_labels_give_a_second_row_without_them(tmp_path: Path) -> None:
    first, *others = [q for q in DIALOGUES[0].questions if q.asked_after is None]
    disputed = replace(DIALOGUES[0], questions=(replace(first, note="audit TEMPORAL_ERROR"), *others))
    rows, _, _, config = table(tmp_path, ["bm25"], dialogues=[disputed])
    assert rows == ["bm25", "bm25"]
    found = read_evaluation(config.run_dir)
    assert [(r["benchmark"], r["n"]) for r in found] == [
        ("factworld", len(others) + 1), ("factworld-undisputed", len(others))
    ]  # fmt: skip
    assert found[0]["memory"] == found[1]["memory"]  # what building cost a question depends on no label
    kept = load_predictions(config.run_dir / "predictions" / "factworld-undisputed" / "bm25.jsonl")
    assert first.id not in {p.question_id for p in kept}


def test_answers_without_a_verdict_are_counted_in_the_row_that_they_are_in(tmp_path: Path) -> None:
    class Speechless:
        """A judge whose server fails at one question."""

        config = EndpointConfig("http://127.0.0.1:1/v1", "wise-1")

        def verdicts(self, items: list[Item]) -> list[Verdict]:
            return [(None, "no server") if question == first.text else (1.0, None) for question, _, _ in items]

        def leniency(self, questions: list[tuple[str, str]]) -> Leniency:
            return Leniency(None, None, 0)

    first, *others = [q for q in DIALOGUES[0].questions if q.asked_after is None]
    disputed = replace(DIALOGUES[0], questions=(replace(first, note="audit TEMPORAL_ERROR"), *others))
    config = load_config(None, [*BASE, f"output={tmp_path}", "name=r"])
    with RunLog(config.run_dir) as log:
        quiet: Any = Console(file=io.StringIO())
        pool: Any = FakePool(make_world())
        judge: Any = Speechless()
        whole, sure = evaluate(config, pool, STATE, log, quiet, "locomo", [disputed], ["bm25"], judge=judge)
    assert whole.judge is not None and whole.judge.errors == 1
    assert sure.judge is not None and sure.judge.errors == 0


def test_answers_are_kept_though_their_judge_is_interrupted(tmp_path: Path) -> None:
    class Endless:
        def verdicts(self, items: list[Item]) -> list[Verdict]:
            raise KeyboardInterrupt

    config = load_config(None, [*BASE, f"output={tmp_path}", "name=r"])
    pool: Any = FakePool(make_world())
    judge: Any = Endless()
    with RunLog(config.run_dir) as log, pytest.raises(KeyboardInterrupt):
        quiet = Console(file=io.StringIO())
        evaluate(config, pool, STATE, log, quiet, "locomo", DIALOGUES, ["bm25"], judge=judge)
    kept = load_predictions(config.run_dir / "predictions" / "locomo" / "bm25.jsonl")
    assert [p.question_id for p in kept] == [q.id for q in QUESTIONS] and read_evaluation(config.run_dir) == []


def test_the_day_of_asking_is_shown_and_not_searched_for() -> None:
    asked = replace(DIALOGUES[0].questions[0], asked_on="9 March 2030", asked_after=None)
    prompts: list[str] = []

    def script(prompt: str, request: GenerationRequest) -> str:
        prompts.append(prompt)
        return obedient(prompt, request)

    dialogue = replace(DIALOGUES[0], questions=(asked,))
    found, _ = evaluate_system("bm25", [dialogue], make_world(), ScriptedEngine(script), "factworld")
    plain, _, _ = run("bm25", dialogues=[replace(dialogue, questions=(replace(asked, asked_on=None),))])
    assert f"Question: {asked.text} (asked on 9 March 2030)" in prompts[0]
    assert found[0].retrieved == plain[0].retrieved


def test_a_stopped_evaluation_keeps_its_rows_and_is_not_finished(tmp_path: Path) -> None:
    config = load_config(None, [*BASE, f"output={tmp_path}", "name=r"])
    pool, answers = FakePool(make_world()), iter([False, True])
    with RunLog(config.run_dir) as log:
        quiet = Console(file=io.StringIO())
        rows = evaluate(
            config, pool, STATE, log, quiet, "factworld", DIALOGUES, ["bm25", "trained"], lambda: next(answers)
        )  # type: ignore[arg-type]
    assert [r.system for r in rows] == ["bm25"]
    assert not is_evaluated(config, STATE)


@pytest.mark.parametrize("split", [True, False])
def test_a_run_on_a_file_is_evaluated_on_its_validation_split_or_says_why_not(tmp_path: Path, split: bool) -> None:
    worlds = [replace(w.dialogue, metadata={}) for w in fact_worlds(3)]
    if split:
        worlds = [replace(d, metadata={"split": s}) for d, s in zip(worlds, SPLITS, strict=True)]
    write_jsonl(worlds, tmp_path / "own.jsonl")
    own = ("data.kind=jsonl", f"data.path={tmp_path / 'own.jsonl'}", "evaluation.systems=[bm25]")
    config = load_config(None, [*BASE, *own, f"output={tmp_path}", "name=r", "evaluation.num_worlds=1"])
    pool: Any = FakePool(make_world())
    said = io.StringIO()
    with RunLog(config.run_dir) as log:
        (row,) = evaluate_run(config, pool, STATE, log, Console(file=said, width=200))
    assert row.benchmark == ("jsonl-validation" if split else "factworld")
    kept = load_predictions(config.run_dir / "predictions" / row.benchmark / "bm25.jsonl")
    assert ({p.dialogue_id for p in kept} == {worlds[1].id}) == split
    assert ("no validation data: " in said.getvalue()) == (not split)
    assert is_evaluated(config, STATE)
    assert not is_evaluated(replace(config, evaluation=replace(config.evaluation, num_worlds=2)), STATE)
    assert not is_evaluated(config, replace(STATE, step=10))


def test_answers_to_the_same_prompt_are_computed_once_and_are_the_same() -> None:
    world = make_world("rollout.manager_max_new_tokens=120", "rollout.answer_max_new_tokens=200")
    kept, engine = Kept(), ScriptedEngine(obedient)
    alone = [evaluate_system(n, DIALOGUES, world, ScriptedEngine(obedient), "factworld")[0] for n in ANSWERED_ALIKE]
    together = [evaluate_system(n, DIALOGUES, world, engine, "factworld", kept)[0] for n in ANSWERED_ALIKE]
    for a, b in zip(alone, together, strict=True):
        assert [replace(p, seconds=0.0) for p in a] == [replace(p, seconds=0.0) for p in b]
    answered = [r.prompt_ids for batch in engine.batches for r in batch if r.policy == "answerer"]
    assert len(set(answered)) == len(answered) < 2 * len(QUESTIONS)  # `trained` adds everything, too: the same bank


ANSWERED_ALIKE = ("add-everything", "trained")


def test_only_greedy_answers_of_the_same_weights_are_remembered() -> None:
    class Versioned(ScriptedEngine):
        version = 1

        def weight_versions(self) -> dict[str, int]:
            return {"answerer": self.version}

    inner = Versioned(lambda prompt, request: "Use: none\nAnswer: x")
    engine = RememberingEngine(inner, {})
    greedy = GenerationRequest((65, 66), "answerer", SamplingParams(9))
    longer = GenerationRequest((65, 66), "answerer", SamplingParams(12))
    sampled = GenerationRequest((65, 66), "answerer", SamplingParams(9, temperature=1.0))
    first = engine.generate([greedy, sampled])
    assert engine.generate([sampled, greedy])[1] == first[0] and sum(map(len, inner.batches)) == 3
    engine.generate([longer])
    assert sum(map(len, inner.batches)) == 4
    inner.version = 2
    engine.generate([greedy])
    assert sum(map(len, inner.batches)) == 5
    assert engine.generate([]) == []


def test_a_remembered_answer_reports_the_seconds_that_it_took_and_retrieval_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0

    class Slow(ScriptedEngine):
        """Takes two seconds for each completion."""

        def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
            nonlocal now
            now += 2.0 * len(requests)
            return super().generate(requests)

    def retrieve(question: str) -> list[MemoryEntry]:
        nonlocal now
        now += 3.0
        return []

    def build(dialogue: Dialogue, world: World, manager: Speaker) -> Episode[Memory]:
        yield from ()
        return Memory(retrieve)

    for module in (harness, remember):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setitem(MEMORIES, "bm25", build)
    world, kept, engine = make_world(), Kept(), Slow(obedient)
    first, again = (evaluate_system("bm25", DIALOGUES, world, engine, "factworld", kept)[0] for _ in range(2))
    assert len(engine.batches) == 1
    assert {round(p.seconds, 9) for p in (*first, *again)} == {5.0}
