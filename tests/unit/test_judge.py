"""The judge against a real server on this machine: verdicts, prose, failures, leniency, as a column and as a reward."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from memr1.config_file import load_config, to_yaml
from memr1.envs.answering import AnswerTask, play_answers
from memr1.envs.episode import Speaker, drive
from memr1.errors import MemR1Error
from memr1.evaluation.judging import judge_predictions
from memr1.evaluation.predictions import Prediction
from memr1.evaluation.rows import Row, summarize
from memr1.evaluation.table import table_cells
from memr1.rewards.base import AnswerReward, RewardResult, make_reward
from memr1.rollout import endpoint as endpoint_module
from memr1.rollout.endpoint import EndpointConfig
from memr1.rollout.judge import PROMPT_ID, TRIES, VAGUE, Leniency, LLMJudge, read_grade
from tests.unit.scripted import ScriptedEngine, make_world
from tests.unit.test_endpoint import Reply, Server, said

Script = Callable[[str, str, str], str]
"""(question, gold, answer) -> the judge's reply."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(endpoint_module, "LONGEST_PAUSE_S", 0.01)
    made = Server()
    yield made
    made.close()


@pytest.fixture
def judge(server: Server) -> Iterator[LLMJudge]:
    made = LLMJudge(EndpointConfig(server.url, "wise-1", attempts=2, concurrency=4))
    yield made
    made.close()


def scripted(server: Server, reply: Script) -> None:
    def script(body: dict[str, Any], number: int) -> Reply:
        content = body["messages"][0]["content"]
        parts = re.search(r"\nQuestion: (.*)\nReference: (.*)\nAnswer: (.*)\n\nReply", content)
        assert parts is not None
        return said(reply(*parts.groups()))

    server.script = script


def by_words(question: str, gold: str, answer: str) -> str:
    """A judge that accepts an answer that holds a word of the gold."""
    good = set(gold.lower().split()) & set(answer.lower().split())
    return '{"grade": "CORRECT"}' if good else '{"grade": "WRONG"}'


def generous(question: str, gold: str, answer: str) -> str:
    return '{"grade": "CORRECT"}'


def test_a_verdict_is_asked_greedily_and_once(server: Server, judge: LLMJudge) -> None:
    scripted(server, by_words)
    assert judge("Where?", "in Rome", "Rome") == (1.0, None)
    assert judge("Where?", "in Oslo", "Rome") == (0.0, None)
    assert judge("Where?", "in Rome", "Rome") == (1.0, None)
    assert len(server.bodies) == 2
    assert [(b["model"], b["temperature"]) for b in server.bodies] == [("wise-1", 0.0)] * 2


def test_prose_is_asked_again_and_then_an_error(server: Server, judge: LLMJudge) -> None:
    replies = iter(["I would say it is correct.", 'Sure! {"grade": "correct"}'])
    scripted(server, lambda *_: next(replies))
    assert judge("Where?", "Rome", "Rome") == (1.0, None)
    assert [b["seed"] for b in server.bodies] == [0, 1]
    scripted(server, lambda *_: "It depends.")
    value, error = judge("Where?", "Oslo", "Rome")
    assert value is None and error == f"{TRIES} replies could not be read; the last was 'It depends.'"
    assert len(server.bodies) == 2 + TRIES
    scripted(server, by_words)
    assert judge("Where?", "Oslo", "Rome") == (0.0, None)  # an error is not remembered


def test_an_error_of_ours_is_raised_once_and_not_remembered(server, judge, monkeypatch) -> None:
    scripted(server, by_words)

    def broken(*_: Any) -> Any:
        raise ValueError("broken")

    with monkeypatch.context() as patch, pytest.raises(ValueError, match="broken"):
        patch.setattr(judge._endpoint, "chat", broken)
        judge("Where?", "Rome", "Rome")
    assert judge("Where?", "Rome", "Rome") == (1.0, None)


def test_a_server_that_fails_is_an_error_and_not_a_wrong_answer(server: Server, judge: LLMJudge) -> None:
    server.script = lambda body, number: (503, {}, "busy")
    value, error = judge("Where?", "Rome", "Rome")
    assert value is None and "no answer in 2 attempts" in (error or "")
    server.script = lambda body, number: (401, {}, "who are you?") if number < 4 else said('{"grade": "WRONG"}')
    assert judge("Where?", "Rome", "Rome")[0] is None
    assert judge("Where?", "Rome", "Rome") == (0.0, None)


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ('{"grade": "CORRECT"}', 1.0),
        ('```json\n{"grade": "wrong"}\n```', 0.0),
        ("CORRECT", None),
        ('{"grade": "CORRECT"} or {"grade": "WRONG"}', None),
        ('{"grade": "PARTLY"}', None),
        ('{"label": "CORRECT"}', None),
        ("{grade: CORRECT}", None),
        ("", None),
    ],
)
def test_only_one_clear_grade_is_a_verdict(reply: str, grade: float | None) -> None:
    assert read_grade(reply) == grade


QUESTIONS = [(f"Where is {n}?", gold) for n, gold in enumerate(("in Rome", "Oslo", "Bergen", "the old harbour"))]


def test_leniency_is_measured_on_answers_that_are_wrong_on_purpose(server: Server, judge: LLMJudge) -> None:
    scripted(server, generous)
    found = judge.leniency(QUESTIONS)
    assert (found.swapped, found.vague, found.questions) == (1.0, 1.0, 4)
    tried = [b["messages"][0]["content"] for b in server.bodies]
    assert sum(f"Answer: {VAGUE}" in t for t in tried) == 4
    assert sum("Reference: in Rome\nAnswer: Oslo" in t for t in tried) == 1  # the next gold that differs
    strict = LLMJudge(judge.config)
    scripted(server, by_words)
    assert (strict.leniency(QUESTIONS).swapped, strict.leniency(QUESTIONS).vague) == (0.0, 0.25)  # "the" is shared
    assert judge.leniency(QUESTIONS, most=2).questions == 2
    assert judge.leniency([("Where?", "Rome"), ("Who?", "Rome")]).swapped is None
    assert judge.leniency([]).questions == 0
    strict.close()


def test_leniency_counts_the_questions_that_both_wrong_answers_have_a_verdict_on(
    server: Server, judge: LLMJudge
) -> None:
    scripted(server, lambda question, gold, answer: "hm" if gold == "Oslo" and answer == VAGUE else generous(*"qga"))
    found = judge.leniency(QUESTIONS)
    assert (found.swapped, found.vague, found.questions) == (1.0, 1.0, 3)
    scripted(server, lambda *_: "hm")
    dumb = LLMJudge(judge.config)
    assert dumb.leniency(QUESTIONS) == Leniency(None, None, 0)
    dumb.close()


def predicted(i: int, answer: str | None, gold: str | None = "Rome") -> Prediction:
    return Prediction("b", "s", "d", f"q{i}", "c", None, f"Where is {i}?", gold, answer)


def test_the_judge_is_the_last_column_and_its_failures_are_counted(server: Server, judge: LLMJudge) -> None:
    def reply(question: str, gold: str, answer: str) -> str:
        return "hm" if answer == "odd" else by_words(question, gold, answer)

    scripted(server, reply)
    given = [predicted(0, "in Rome"), predicted(1, "Oslo"), predicted(2, None), predicted(3, "odd")]
    judged, about = judge_predictions([*given, predicted(4, "x", gold=None), predicted(5, "Paris", "Paris")], judge)
    assert [p.judged for p in judged] == [1.0, 0.0, 0.0, None, None, 1.0]
    assert "could not be read" in (judged[3].judge_error or "") and judged[2].judge_error is None
    assert (about.model, about.prompt, about.errors) == ("wise-1", PROMPT_ID, 1)
    row = replace(summarize(judged, measures=("judge",)), judge=about)
    assert (row.metrics["judge"].mean, row.metrics["judge"].n) == (0.5, 4)
    assert row.metrics["em_set"].n == 5
    header, _ = table_cells([row])
    assert header == ["system", "n", "em_strict", "em_squad", "em_set", "f1", "bleu1", "judge", "no answer"]
    assert Row.from_dict(row.to_dict()) == row
    assert str(about) == (
        f"judge wise-1, prompt {PROMPT_ID}: accepts 0 % of swapped and 0 % of vague wrong answers (n = 5); "
        "1 answers without a verdict"
    )


def test_a_judge_pays_alone_or_in_a_sum_and_its_failure_drops_the_trajectory(server: Server, judge: LLMJudge) -> None:
    scripted(server, by_words)
    alone, mixed = make_reward("judge", judge), make_reward("0.25*em_set+0.75*judge", judge)
    assert alone("in Rome", "Rome", "Where?").value == 1.0
    assert alone(None, "Rome", "Where?").value == 0.0
    result = mixed("in Rome", "Rome", "Where?")
    assert (result.value, result.parts) == (0.75, {"em_set": 0.0, "judge": 1.0})
    scripted(server, lambda *_: "hm")
    failed = alone("Oslo", "Rome", "Where?")
    assert failed.value is None and (failed.error or "").startswith("no verdict of the judge: 3 replies")


def test_a_judge_works_on_the_answers_of_all_episodes_at_once(server: Server, judge: LLMJudge) -> None:
    together = threading.Barrier(4)

    def wait(question: str, gold: str, answer: str) -> str:
        together.wait(20)  # comes through only when four requests are there at the same time
        return by_words(question, gold, answer)

    scripted(server, wait)
    answers = iter(["in Rome", "Oslo", "in Oslo", "Bergen"])
    engine = ScriptedEngine(lambda prompt, request: f"Use: none\nAnswer: {next(answers)}")
    tasks = [AnswerTask(f"t{n}", f"Where is {n}?", gold, "c", ()) for n, gold in enumerate(("Rome", "Oslo"))]
    world, speaker, reward = make_world(), Speaker("answerer", 1.0, trainable=True), make_reward("judge", judge)
    first, second = drive([play_answers(t, world, speaker, reward, seeds=(1, 2)) for t in tasks], engine)
    assert [t.reward for t in (*first, *second)] == [1.0, 0.0, 1.0, 0.0]
    assert len(engine.batches) == 1 and server.most_running == 4


def test_a_reward_that_raises_fails_its_group_with_what_it_said_and_the_others_are_paid() -> None:
    class Touchy(AnswerReward):
        def __call__(self, answer: str | None, gold: Any, question: str = "") -> RewardResult:
            if gold == "Oslo":
                raise ZeroDivisionError("no such gold")
            return super().__call__(answer, gold, question)

    engine = ScriptedEngine(lambda prompt, request: "Use: none\nAnswer: Rome")
    tasks = [AnswerTask(f"t{n}", "Where?", gold, "c", ()) for n, gold in enumerate(("Rome", "Oslo", "Bergen"))]
    world, speaker = make_world(), Speaker("answerer")
    played = drive([play_answers(t, world, speaker, Touchy({"em_set": 1.0}), seeds=(1,)) for t in tasks], engine)
    assert [p[0].reward if isinstance(p, list) else str(p.error) for p in played] == [1.0, "no such gold", 0.0]


def test_config_takes_sums_and_wants_a_model_for_a_judge() -> None:
    stage = "stages=[{role: answerer, objective: grpo, reward: 0.5*em_set+0.5*judge}]"
    judged = load_config(None, [stage, "judge.url=http://localhost:1/v1", "judge.model=wise-1"])
    assert judged.stages[0].reward == "0.5*em_set+0.5*judge" and judged.judge is not None
    assert "url: http://localhost:1/v1" in to_yaml(judged)
    with pytest.raises(MemR1Error, match=r"stages.0.reward: judge needs a model that judges; set judge.url"):
        load_config(None, [stage])
    for spec, message in (
        ("em_sett", "'em_sett' is not one of .*; did you mean em_set?"),
        ("em_set+f1", "weights of em_set\\+f1 add up to 2; make them 1"),
        ("half*em_set+0.5*f1", "'half' is no weight"),
    ):
        with pytest.raises(MemR1Error, match=message):
            load_config(None, [f"stages=[{{role: answerer, objective: grpo, reward: {spec}}}]"])
