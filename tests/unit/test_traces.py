"""A teacher's traces: what is cloned, what is left out, and what is refused.

Not covered: training on them (tests/e2e).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memr1.envs.answering import AnswerTask, play_answers
from memr1.envs.deciding import DecisionTask, LinkedQuestion, play_decisions
from memr1.envs.episode import Failure, Speaker, drive
from memr1.errors import MemR1Error
from memr1.memory.bank import MemoryBank
from memr1.memory.types import Provenance
from memr1.rewards.base import make_reward
from memr1.training.metrics import rollout_metrics
from memr1.training.runlog import RunLog
from memr1.training.traces import read_traces
from memr1.trajectory import Trajectory
from tests.unit.scripted import ScriptedEngine, entry, is_answerer, make_world, tokenizer

CODEC = make_world().agents.codec
ENTRIES = tuple(entry(n, f"Fact {n}", provenance=Provenance(turn_ids=(str(n),))) for n in (1, 2, 3, 4))
TASK = AnswerTask("t", "Where?", "Oslo", "one", ENTRIES, ("1", "3", "99"), {"m1": ("1",), "m3": ("3",)})


def play(
    *completions: str, evidence_reward: float = 0.0, task: AnswerTask = TASK, setting: str = "seed=0"
) -> list[Trajectory]:
    replies = iter(completions)
    engine = ScriptedEngine(lambda p, r: next(replies))
    speaker = Speaker("answerer", 1.0, trainable=True)
    episode = play_answers(
        task, make_world(setting), speaker, make_reward("em_set"), list(range(len(completions))), evidence_reward
    )
    (played,) = drive([episode], engine)
    assert not isinstance(played, Failure), played
    return played


# -- selection ---------------------------------------------------------------------------------------------------


def test_selected_memories_are_measured_against_the_evidence_that_was_shown() -> None:
    both, one, wrong, none, unread = play(
        "Use: 1, 3\nAnswer: Oslo",
        "Use: 1, 2\nAnswer: Oslo",
        "Use: 2, 4, 4\nAnswer: Oslo",
        "Use: none\nAnswer: Oslo",
        "?",
    )
    measured = [
        (t.outcome["selection_precision"], t.outcome["selection_recall"]) for t in (both, one, wrong, none, unread)
    ]
    assert measured == [(1.0, 1.0), (0.5, 0.5), (0.0, 0.0), (None, 0.0), (None, 0.0)]
    metrics = rollout_metrics([both, one, wrong, none, unread])
    assert metrics["selection/precision"] == pytest.approx(0.5)
    assert metrics["selection/recall"] == pytest.approx(0.3)
    unknown = play("Use: 1\nAnswer: Oslo", task=AnswerTask("t", "Where?", "Oslo", "one", ENTRIES))
    assert (unknown[0].outcome["selection_precision"], unknown[0].outcome["selection_recall"]) == (None, None)
    assert "selection/recall" not in rollout_metrics(unknown)


def test_the_evidence_reward_is_the_f1_of_the_selection_beside_the_answer() -> None:
    texts = ("Use: 1, 3\nAnswer: Oslo", "Use: 1\nAnswer: Rome", "Use: none\nAnswer: Oslo", "?")
    rewards = [t.reward for t in play(*texts, evidence_reward=0.5)]
    assert rewards == [1.5, pytest.approx(0.5 * 2 / 3), 1.0, 0.0]
    assert [t.reward for t in play(*texts)] == [1.0, 0.0, 1.0, 0.0]
    lost = AnswerTask("t", "Where?", "Oslo", "one", ENTRIES[1:2], evidence=("1",))
    assert play("Use: 1\nAnswer: Oslo", task=lost, evidence_reward=0.5)[0].reward_parts == {"em_set": 1.0}


def test_an_answerer_without_distillation_selects_nothing() -> None:
    (played,) = play("Answer: Oslo", setting="agents.distillation=false")
    assert played.reward == 1.0 and played.outcome["selected"] == []
    assert "Reply with one line" in played.steps[0].prompt_text


# -- traces of a run ---------------------------------------------------------------------------------------------


def saved(folder: Path, trajectories: list[Trajectory]) -> Path:
    with RunLog(folder) as log:
        log.rollouts(1, trajectories)
    return folder


def text(ids: tuple[int, ...]) -> str:
    return str(tokenizer().decode(list(ids), skip_special_tokens=True))


def test_of_a_run_the_paid_and_readable_steps_of_the_role_are_cloned(tmp_path: Path) -> None:
    played = play("Use: 1\nAnswer: Oslo", "Use: 1\nAnswer: Rome", "?", "Use: 1, 3\nAnswer: Oslo")
    run = saved(tmp_path / "run", played)
    traces = read_traces(str(run), "answerer", CODEC, 1.0)
    assert [text(t.completion_ids) for t in traces] == ["Use: 1\nAnswer: Oslo", "Use: 1, 3\nAnswer: Oslo"]
    assert {t.prompt_ids for t in traces} == {played[0].steps[0].sequence.prompt_ids}
    assert all(t.completion_ids[-1] == tokenizer().eos_token_id and all(t.loss_mask) for t in traces)
    assert len(read_traces(str(run), "answerer", CODEC, 0.0)) == 3  # never what could not be read
    with pytest.raises(MemR1Error, match=r"no trace of the manager with a reward of at least 1"):
        read_traces(str(run), "manager", CODEC, 1.0)


def test_a_right_decision_that_adds_is_cloned_though_pressure_is_taken_off_its_reward(tmp_path: Path) -> None:
    world = make_world("memory.pressure=0.17", "memory.on_reject=skip")
    bank = MemoryBank("w", world.embedder)
    question = LinkedQuestion("Where does Ana live?", "Rome", "c")
    task = DecisionTask("t", bank.snapshot(), ("Ana lives in Rome",), None, "D1:1", "Ana", (question,))
    decisions = iter(["ADD Ana lives in Rome", "NOOP", "ADD Ana lives in Rome\nDELETE 9"])

    def script(prompt: str, request: Any) -> str:
        if is_answerer(prompt):
            return f"Use: none\nAnswer: {'Rome' if 'Ana lives in Rome' in prompt else 'unknown'}"
        return next(decisions)

    learner = Speaker("manager", 1.0, trainable=True)
    episode = play_decisions(task, world, learner, Speaker("answerer"), make_reward("em_set"), (1, 2, 3))
    (played,) = drive([episode], ScriptedEngine(script))
    assert not isinstance(played, Failure), played
    assert [t.reward for t in played] == pytest.approx([0.83, 0.0, 0.83])
    traces = read_traces(str(saved(tmp_path / "run", played)), "manager", world.agents.codec, 1.0)
    assert [text(t.completion_ids) for t in traces] == ["ADD Ana lives in Rome"]  # the last named an unknown entry


def test_a_run_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    run = saved(tmp_path / "run", play("Use: 1\nAnswer: Oslo"))
    path = run / "rollouts" / "step_000001.jsonl"
    record = json.loads(path.read_text())
    record["steps"][0]["prompt_tokens"] += 1
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(MemR1Error, match=r"step_000001.jsonl:1: its prompt had .* take traces of the same model"):
        read_traces(str(run), "answerer", CODEC, 1.0)
    with pytest.raises(MemR1Error, match="holds no rollouts"):
        read_traces(str(tmp_path), "answerer", CODEC, 1.0)


# -- traces of another model -------------------------------------------------------------------------------------

CHAT = [{"role": "system", "content": "Answer."}, {"role": "user", "content": "Where?"}]


def lines(folder: Path, *records: dict[str, Any]) -> str:
    path = folder / "teacher.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)


def test_of_a_file_any_model_s_completions_are_cloned(tmp_path: Path) -> None:
    path = lines(
        tmp_path,
        {"role": "answerer", "messages": CHAT, "completion": "Use: none\nAnswer: Oslo"},
        {"role": "manager", "messages": CHAT, "completion": "NOOP"},
        {"role": "answerer", "messages": CHAT, "completion": "bad", "reward": 0.4},
        {"role": "answerer", "messages": CHAT, "completion": "good", "reward": 1},
    )
    traces = read_traces(path, "answerer", CODEC, 0.5)
    assert [text(t.completion_ids) for t in traces] == ["Use: none\nAnswer: Oslo", "good"]
    assert traces[0].prompt_ids == CODEC.encode(CHAT)[0]
    assert [text(t.completion_ids) for t in read_traces(path, "manager", CODEC, 0.5)] == ["NOOP"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"role": "judge", "messages": CHAT, "completion": "x"}, "teacher.jsonl:1: role is 'judge'"),
        ({"role": "manager", "messages": "hello", "completion": "x"}, "messages: expected a list"),
        ({"role": "manager", "messages": [{"role": "user"}], "completion": "x"}, "messages: expected a list"),
        ({"role": "manager", "messages": CHAT, "completion": " "}, "completion: expected a text"),
        ({"role": "manager", "messages": CHAT, "completion": "x", "reward": "1"}, "reward: expected a number"),
        (
            {"role": "manager", "messages": [{"role": "user", "content": "x" * 5000}], "completion": "x"},
            "raise rollout",
        ),
    ],
)
def test_a_line_that_cannot_be_cloned_is_refused_by_place_and_field(
    tmp_path: Path, record: dict[str, Any], message: str
) -> None:
    with pytest.raises(MemR1Error, match=message):
        read_traces(lines(tmp_path, record), "manager", CODEC, 1.0)
    with pytest.raises(MemR1Error, match="no such file"):
        read_traces(str(tmp_path / "absent.jsonl"), "manager", CODEC, 1.0)


def test_a_selection_counts_each_memory_once() -> None:
    (played,) = play("Use: 1, 1, 1, 2\nAnswer: Oslo")
    assert played.outcome["selection_precision"] == 0.5
