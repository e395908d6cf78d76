"""Training tuples: made once, read back exactly, linked as the paper says, counted; no test conversation among them.

Not covered: facts extracted by a model (test_extracting.py), the tasks of generated worlds (test_tasks.py).
"""

from __future__ import annotations

import io
import json
import logging
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from memr1.config import Config
from memr1.data.jsonl import write_jsonl
from memr1.data.types import Dialogue, Fact, OracleOp, Question, Session, Turn
from memr1.envs.answering import retrieve
from memr1.envs.deciding import DecisionTask
from memr1.envs.ingesting import ingest_without_model, replay
from memr1.errors import MemR1Error
from memr1.memory.bank import MemoryBank
from memr1.training import data_build
from memr1.training.ablate import Study, ablate
from memr1.training.data_report import last_evidence
from memr1.training.tasks import TrainTask, build_tasks, task_prompt
from memr1.training.traces import read_traces
from memr1.training.tuples import settings_of
from memr1.training.worlds import evaluation_dialogues, training_dialogues
from tests.unit.scripted import ScriptedEngine, fact_worlds, make_config, make_world

DAY = datetime(2024, 3, 2, 10, 0)


def talk(name: str = "mine", *, turns: int = 8, questions: tuple[Question, ...] = ()) -> Dialogue:
    """Ana and Ben in turn; each turn holds one fact, but for turn 3."""
    told = tuple(
        Turn(str(n), "Ana" if n % 2 else "Ben", f"Word {n}.", () if n == 3 else (Fact(f"Fact {n}"),))
        for n in range(1, turns + 1)
    )
    return Dialogue(name, ("Ana", "Ben"), (Session("s1", DAY, "2 March 2024", told),), questions)


def asked(number: int, *evidence: str, answer: str | None = "yes") -> Question:
    return Question(f"q{number}", f"Is {number} so?", answer, "one", 1, evidence)


QUESTIONS = (
    asked(1, "2", "5"),
    asked(2, "8"),
    asked(3, "1", "8"),
    asked(4, "2", "3"),
    asked(5),
    asked(6, "8", answer=None),
    asked(7, "3", "8"),
)


def config_of(folder: Path, dialogues: list[Dialogue], *overrides: str) -> Config:
    write_jsonl(dialogues, folder / "mine.jsonl")
    data = ("data.kind=jsonl", f"data.path={folder / 'mine.jsonl'}", f"output={folder / 'runs'}")
    stages = "stages=[{role: manager, bank: add-everything}, {role: answerer, bank: add-everything}]"
    return make_config(*data, stages, *overrides)


def build(config: Config) -> tuple[dict[str, Any], str]:
    heard = io.StringIO()
    return data_build.build(config, Console(file=heard, width=200)), heard.getvalue()


def made(
    config: Config, role: str, engine: ScriptedEngine | None = None, bank: str = "add-everything"
) -> list[TrainTask]:
    world = replace(make_world(), config=config)
    return build_tasks(
        training_dialogues(config), world, engine or ScriptedEngine(lambda p, r: "ADD"), role=role, bank=bank
    )


# -- temporal banks and links ------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 3, 50])
def test_a_temporal_bank_holds_the_facts_of_the_turns_in_its_window(window: int) -> None:
    for moment in replay(talk(), make_world(), "add-everything", window):
        now = int(moment.turn.id)
        earlier = [n for n in range(max(1, now - window), now) if n != 3]
        assert [e.text for e in moment.bank.entries()] == [f"Fact {n}" for n in earlier]
        assert moment.behind == {str(n) for n in earlier}


def test_a_window_as_long_as_the_dialogue_changes_nothing() -> None:
    for policy in ("oracle", "add-everything"):
        for dialogue in (w.dialogue for w in fact_worlds(3)):
            length = sum(1 for _ in dialogue.turns())
            for whole, windowed in zip(
                replay(dialogue, make_world(), policy),
                replay(dialogue, make_world(), policy, length),
                strict=True,
            ):
                assert whole.bank.entries() == windowed.bank.entries()
                assert whole.ops == windowed.ops and whole.behind == windowed.behind


def test_an_oracle_in_a_window_adds_what_it_would_have_updated_and_deletes_nothing_that_is_not_there() -> None:
    def fact(text: str, event: str, target: str | None = None) -> tuple[Fact, ...]:
        return (Fact(text, OracleOp(event, text if event in ("ADD", "UPDATE") else "", target)),)

    turns = (
        Turn("1", "Ana", "a", fact("Ana lives in Oslo.", "ADD")),
        Turn("2", "Ana", "b", fact("Ana has a dog.", "ADD")),
        Turn("3", "Ana", "c", fact("Ana lives in Rome.", "UPDATE", "Ana lives in Oslo.")),
        Turn("4", "Ana", "d", fact("Ana has no dog.", "DELETE", "Ana has a dog.")),
    )
    dialogue = Dialogue("d", ("Ana",), (Session("s", None, "", turns),))
    events = [[str(o.event) for o in m.ops] for m in replay(dialogue, make_world(), "oracle", 1)]
    assert events == [["ADD"], ["ADD"], ["ADD"], ["NOOP"]]
    events = [[str(o.event) for o in m.ops] for m in replay(dialogue, make_world(), "oracle", 2)]
    assert events == [["ADD"], ["ADD"], ["UPDATE"], ["DELETE"]]


def test_a_question_is_linked_to_the_turn_that_completes_its_evidence_if_the_earlier_is_in_the_bank(
    tmp_path: Path,
) -> None:
    def linked(window: int) -> dict[str, list[str]]:
        config = config_of(tmp_path, [talk(questions=QUESTIONS)], f"data.window={window}", "memory.manager_top_k=1")
        tasks = [t.task for t in made(config, "manager") if isinstance(t.task, DecisionTask)]
        return {t.turn_id: [q.text for q in t.questions] for t in tasks if t.questions}

    assert linked(0)["5"] == ["Is 1 so?"]
    assert set(linked(0)["8"]) >= {"Is 2 so?", "Is 3 so?"} and "Is 7 so?" not in linked(0)["8"]
    assert linked(2) == {"8": ["Is 2 so?"]}  # turn 2 lies three turns before 5, turn 1 seven before 8
    report, _ = build(config_of(tmp_path, [talk(questions=QUESTIONS)], "data.window=2"))
    assert report["manager, bank: add-everything"]["questions not linked"] == {
        "an earlier turn of its evidence holds no fact": 1,
        "earlier evidence is outside the window": 2,
        "no answer": 1,
        "no evidence": 1,
        "the last turn of its evidence holds no fact": 1,
    }
    assert report["manager, bank: add-everything"]["questions linked to a turn"] == 1


CUT = "its turn has more than rollout.questions_per_decision"


@pytest.mark.parametrize("most", [1, 2])
def test_the_report_counts_what_a_decision_is_asked_and_what_is_cut(tmp_path: Path, most: int) -> None:
    questions = (asked(1, "8"), asked(2, "8"), asked(3, "1", "8"))
    config = config_of(tmp_path, [talk(questions=questions)], f"rollout.questions_per_decision={most}")
    (task,) = [t.task for t in made(config, "manager") if isinstance(t.task, DecisionTask) and t.task.questions]
    report = build(config)[0]["manager, bank: add-everything"]
    assert report["questions linked to a turn"] == len(task.questions) == most
    assert report["questions not linked"] == {CUT: 3 - most}


def test_the_report_counts_no_question_at_the_end_as_linked_where_others_are_asked_after_turns(tmp_path: Path) -> None:
    questions = (replace(asked(1, "2"), asked_after="5"), asked(2, "8"))
    config = config_of(tmp_path, [talk(questions=questions)])
    tasks = [t.task for t in made(config, "manager") if isinstance(t.task, DecisionTask)]
    assert {t.turn_id: [q.text for q in t.questions] for t in tasks if t.questions} == {"5": ["Is 1 so?"]}
    report = build(config)[0]["manager, bank: add-everything"]
    assert report["questions linked to a turn"] == 1
    assert list(report["questions not linked"].values()) == [1]


def test_tasks_of_an_embedder_in_a_folder_are_not_those_of_other_weights_there(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    world = replace(make_world(), config=make_config(f"memory.embedder={tmp_path}"))
    settings = []
    for content in ("a", "ab"):
        weights.write_text(content)
        settings.append(settings_of(world, "answerer", "add-everything", None))
    assert settings[0] != settings[1] == settings_of(world, "answerer", "add-everything", None)


# -- retrieval ---------------------------------------------------------------------------------------------------


def test_each_speaker_gets_an_equal_part_of_the_retrieval_budget() -> None:
    world = make_world("memory.answerer_top_k=5", "memory.per_speaker=true")
    bank = ingest_without_model(talk(turns=30), world, "add-everything")
    ranked = [h.entry for h in bank.search("Is fact 7 so?", 100)]
    ana = [e for e in ranked if e.provenance.speaker == "Ana"][:3]
    ben = [e for e in ranked if e.provenance.speaker == "Ben"][:2]
    found = retrieve(bank, "Is fact 7 so?", world)
    assert found == [e for e in ranked if e in ana or e in ben]
    plain = make_world("memory.answerer_top_k=5")
    assert retrieve(bank, "Is fact 7 so?", plain) == ranked[:5]
    assert retrieve(MemoryBank("empty", world.embedder), "Anything?", world) == []


# -- what is kept ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["manager", "answerer"])
def test_tasks_read_back_are_the_tasks_that_were_made(tmp_path: Path, role: str) -> None:
    dialogues = [replace(w.dialogue, id=f"own-{i}") for i, w in enumerate(fact_worlds(2))]
    config = config_of(tmp_path, dialogues)
    for bank in ("oracle", "add-everything"):
        first, second = made(config, role, bank=bank), made(config, role, bank=bank)
        assert len(first) == len(second) > 10
        for a, b in zip(first, second, strict=True):
            assert a.demonstration == b.demonstration
            if isinstance(a.task, DecisionTask) and isinstance(b.task, DecisionTask):
                banks = [MemoryBank.from_snapshot(t.snapshot, make_world().embedder) for t in (a.task, b.task)]
                assert banks[0].entries() == banks[1].entries()
                assert list(banks[0].log) == list(banks[1].log)
                assert replace(a.task, snapshot=b.task.snapshot) == b.task
            else:
                assert a.task == b.task
    assert len(list((tmp_path / "runs" / ".cache" / "tuples").iterdir())) == 4


def test_an_interrupted_build_goes_on_with_the_dialogues_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, [talk(f"d{i}", questions=QUESTIONS) for i in range(4)])
    calls: list[str] = []
    whole = build_tasks

    def counted(dialogues: list[Dialogue], *args: Any, **kwargs: Any) -> list[TrainTask]:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(dialogues[0].id)
        return whole(dialogues, *args, **kwargs)

    monkeypatch.setattr(data_build, "build_tasks", counted)
    with pytest.raises(KeyboardInterrupt):
        build(config)
    folder = tmp_path / "runs" / ".cache" / "tuples"
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert calls == ["d0", "d1"] and len(before) == 2
    monkeypatch.setattr(data_build, "build_tasks", whole)
    build(config)
    after = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert len(after) == 8 and {name: after[name] for name in before} == before


def test_only_the_dialogue_that_changed_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build(config_of(tmp_path, [talk("d0", questions=QUESTIONS), talk("d1", questions=QUESTIONS)]))
    folder = tmp_path / "runs" / ".cache" / "tuples"
    before = {p.name: p.read_text() for p in folder.iterdir()}
    with caplog.at_level(logging.WARNING):
        build(config_of(tmp_path, [talk("d0", questions=QUESTIONS), talk("d1", questions=QUESTIONS[:1])]))
    after = {p.name: p.read_text() for p in folder.iterdir()}
    assert before.keys() == after.keys()
    assert {name[:2] for name in before if before[name] != after[name]} == {"d1"}
    assert "d1 has changed since it was written" in caplog.text and "d0 has changed" not in caplog.text


def test_banks_of_a_trained_manager_are_not_kept_and_those_of_the_base_are(tmp_path: Path) -> None:
    config = config_of(tmp_path, [talk(questions=QUESTIONS)])
    fresh = ScriptedEngine(lambda p, r: "ADD")
    fresh.versions["manager"] = 0
    made(config, "answerer", fresh, bank="manager")
    asked_first = len(fresh.batches)
    made(config, "answerer", fresh, bank="manager")
    assert len(fresh.batches) == asked_first == 7
    trained = ScriptedEngine(lambda p, r: "ADD")
    for _ in range(2):
        made(config, "answerer", trained, bank="manager")
    assert len(trained.batches) == 14


def test_generated_worlds_are_counted_and_not_kept(tmp_path: Path) -> None:
    config = make_config("stages=[{role: manager}, {role: answerer, bank: manager}]", f"output={tmp_path}")
    report, said = build(config)
    assert not (tmp_path / ".cache").exists()
    assert report["manager, bank: oracle"]["decisions with a demonstration"] > 10
    assert "their tasks are only counted here" in said
    assert "answerer: its banks are made by the manager that is trained before" in said


def test_a_report_stands_beside_what_is_kept(tmp_path: Path) -> None:
    report, said = build(config_of(tmp_path, [talk(questions=QUESTIONS)]))
    assert json.loads((tmp_path / "runs" / ".cache" / "report.json").read_text()) == report
    assert report["dialogues"]["questions"] == 7 and report["dialogues"]["questions without evidence"] == 1
    assert report["answerer, bank: add-everything"]["questions"] == 6
    assert "turns that complete some evidence" in said


def test_prompts_for_a_teacher_become_its_traces(tmp_path: Path) -> None:
    config = config_of(tmp_path, [talk(questions=QUESTIONS)])
    data_build.build(config, Console(file=io.StringIO()), tmp_path / "prompts.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    (tmp_path / "traces.jsonl").write_text("".join(json.dumps(r | {"completion": "NOOP"}) + "\n" for r in lines))
    world = replace(make_world(), config=config)
    for role, count in (("manager", 7), ("answerer", 6)):
        traces = read_traces(str(tmp_path / "traces.jsonl"), role, world.agents.codec, 1.0)
        prompts = [task_prompt(t.playable, world).ids for t in made(config, role)]
        assert [t.prompt_ids for t in traces] == prompts and len(prompts) == count


# -- splits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "split"), [("conv-30", "validation"), ("conv-41", "test"), ("conv-50", "test")])
def test_nobody_trains_on_a_held_out_conversation(tmp_path: Path, name: str, split: str) -> None:
    with pytest.raises(MemR1Error, match=rf"{name} belongs to LoCoMo's {split} split and must not be trained on"):
        training_dialogues(config_of(tmp_path, [talk("mine"), talk(name)]))
    marked = [replace(talk("mine"), metadata={"split": "train"}), replace(talk(name), metadata={"split": split})]
    assert [d.id for d in training_dialogues(config_of(tmp_path, marked))] == ["mine"]


@pytest.mark.parametrize("source", ["longmemeval", "msc", "automemorybench"])
def test_nobody_trains_on_a_dataset_for_evaluation_that_was_exported(tmp_path: Path, source: str) -> None:
    exported = replace(talk("other"), metadata={"dataset": source})
    with pytest.raises(MemR1Error, match=rf"other comes from {source} \(metadata.dataset\), .*for evaluation only"):
        training_dialogues(config_of(tmp_path, [talk("mine"), exported]))
    own = replace(talk("mine"), metadata={"dataset": "ours", "split": "train"})
    held_out = replace(exported, metadata={"dataset": source, "split": "test"})
    assert [d.id for d in training_dialogues(config_of(tmp_path, [own, held_out]))] == ["mine"]


def test_nobody_evaluates_on_what_was_trained_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = config_of(tmp_path, [talk("a"), talk("b", turns=4)])
    path = str(config.data.path)
    with pytest.raises(MemR1Error, match=r"mine.jsonl: the run trains on a, .* metadata.split, .* --split train"):
        evaluation_dialogues(config, "jsonl", path, "test")
    assert [d.id for d in evaluation_dialogues(config, "jsonl", path, "train")] == ["a", "b"]
    write_jsonl([talk("renamed")], tmp_path / "others.jsonl")
    with pytest.raises(MemR1Error, match="the run trains on renamed"):
        evaluation_dialogues(config, "jsonl", str(tmp_path / "others.jsonl"), "validation")
    write_jsonl([talk("a", turns=5)], tmp_path / "others.jsonl")  # another dialogue, whatever it is called
    assert len(evaluation_dialogues(config, "jsonl", str(tmp_path / "others.jsonl"), "test")) == 1
    Path(path).unlink()
    evaluation_dialogues(config, "jsonl", str(tmp_path / "others.jsonl"), "test")
    assert "others.jsonl: not compared with the training data, which cannot be read" in caplog.text


def test_an_ablation_that_cannot_be_evaluated_is_not_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(tmp_path, [talk("a")], "agents.extractor=utterance")
    monkeypatch.setattr("memr1.training.run.train", None)
    with pytest.raises(MemR1Error, match="the run trains on a"):
        ablate(config, Study(), "test", Console(file=io.StringIO()))


# -- the real conversation ---------------------------------------------------------------------------------------


def test_the_published_counts_come_out_of_conv_26(shared_data: Path, tmp_path: Path) -> None:
    stages = "stages=[{role: manager, bank: add-everything}, {role: answerer, bank: add-everything}]"
    config = make_config(
        *("data.kind=locomo", f"data.path={shared_data / 'locomo' / 'locomo3.json'}", "data.window=50", stages),
        *("agents.extractor=utterance", "memory.answerer_top_k=60", "memory.per_speaker=true"),
        *(f"output={tmp_path}", "rollout.max_prompt_tokens=100000", "memory.manager_top_k=5"),
    )
    report, _ = build(config)
    dialogues = report["dialogues"]
    assert (dialogues["dialogues"], dialogues["sessions"], dialogues["turns"]) == (1, 19, 419)
    assert dialogues["questions"] == sum(dialogues["questions by category"].values()) == 152
    assert (dialogues["turns of evidence"], dialogues["turns that complete some evidence"]) == (133, 113)
    manager = report["manager, bank: add-everything"]
    assert manager["decisions"] == 419 and manager["entries in the largest bank"] == 50
    assert manager["questions linked to a turn"] == 127
    assert manager["questions not linked"] == {"earlier evidence is outside the window": 23, "no evidence": 2}
    answerer = report["answerer, bank: add-everything"]
    assert answerer["questions"] == 152 and answerer["entries retrieved"] == 60
    (dialogue,) = training_dialogues(config)
    tasks = [t.task for t in made(config, "manager") if isinstance(t.task, DecisionTask)]
    bearing = {
        q.id
        for q in dialogue.questions
        for t in tasks
        if t.turn_id == last_evidence(dialogue, q) and q.text in {x.text for x in t.questions}
    }
    assert len(bearing) == manager["questions linked to a turn"]


@pytest.mark.parametrize(
    ("settings", "linked", "cut"),
    [
        (("agents.extractor=utterance", "data.window=24"), 122, 0),
        (("agents.extractor=gold", "data.window=50"), 91, 0),
        (("agents.extractor=gold", "data.window=24", "rollout.questions_per_decision=4"), 78, 11),
    ],
)
def test_the_questions_of_conv_26_that_train_a_manager(
    shared_data: Path, tmp_path: Path, settings: tuple[str, ...], linked: int, cut: int
) -> None:
    config = make_config(
        *("data.kind=locomo", f"data.path={shared_data / 'locomo' / 'locomo3.json'}", f"output={tmp_path}"),
        *("stages=[{role: manager, bank: add-everything}]", "memory.manager_top_k=5", *settings),
    )
    report = build(config)[0]["manager, bank: add-everything"]
    reasons = report["questions not linked"]
    assert (report["questions linked to a turn"], reasons.get(CUT, 0)) == (linked, cut)
    assert linked + sum(reasons.values()) == 152
    if "agents.extractor=gold" in settings:
        assert reasons["the last turn of its evidence holds no fact"] == 38
        assert reasons["an earlier turn of its evidence holds no fact"] == 10
