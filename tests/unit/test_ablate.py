"""The plan of an ablation: which stages, which weights, which folder each row of the table comes from.

Not covered: running it (tests/e2e/test_ablate.py).
"""

from __future__ import annotations

from dataclasses import asdict

import pytest

from memr1.config import Config
from memr1.config_file import load_config
from memr1.errors import MemR1Error
from memr1.evaluation.statistics import bootstrap_interval
from memr1.training.ablate import _result_table, plan

WARM = "{role: answerer, objective: sft}, {role: manager, objective: sft}, "
LEARN = "{role: answerer, steps: 3, reward: em_squad}, {role: manager, steps: 2}"


def config(stages: str) -> Config:
    return load_config(None, ["name=study", "output=out", f"stages=[{stages}]"])


def test_the_arms_are_those_of_the_paper_in_its_order() -> None:
    arms = plan(config(LEARN))
    assert [(a.name, a.system, [s.name for s in a.config.stages]) for a in arms] == [
        ("neither", "untrained", []),
        ("manager only", "manager-only", ["manager-grpo"]),
        ("answerer only", "answerer-only", ["answerer-grpo"]),
        ("both, without distillation", "trained", ["answerer-grpo", "manager-grpo"]),
        ("both", "trained", ["answerer-grpo", "manager-grpo"]),
    ]
    assert [a.config.agents.distillation for a in arms] == [True, True, True, False, True]
    assert [a.config.evaluation.systems for a in arms] == [(a.system,) for a in arms]
    assert [a.config.stages[-1].reward for a in arms[1:]] == ["em_set", "em_squad", "em_set", "em_set"]
    assert {a.config.cache_dir for a in arms} == {config(LEARN).cache_dir}
    folders = [str(a.config.run_dir) for a in arms]
    assert folders[1] == "out/study/manager_only" and folders[3] == "out/study/both_without_distillation"
    assert len(set(folders)) == 5


def test_supervised_stages_are_in_every_arm() -> None:
    arms = plan(config(WARM + LEARN))
    assert all([s.name for s in a.config.stages[:2]] == ["answerer-sft", "manager-sft"] for a in arms)
    assert [len(a.config.stages) for a in arms] == [2, 3, 3, 4, 4]
    assert {a.system for a in arms} == {"trained"}
    assert plan(config("{role: answerer, objective: sft}, " + LEARN))[1].system == "trained"
    assert plan(config("{role: answerer, objective: sft}, " + LEARN))[0].system == "answerer-only"


def test_each_reward_gives_the_trained_arms_anew_and_the_untrained_once() -> None:
    arms = plan(config(LEARN), rewards=("em_set", "f1"))
    assert [(a.name, a.reward) for a in arms] == [("neither", "")] + [
        (name, reward)
        for reward in ("em_set", "f1")
        for name in ("manager only", "answerer only", "both, without distillation", "both")
    ]
    assert all(s.reward == a.reward for a in arms for s in a.config.stages)
    assert len({a.config.run_dir for a in arms}) == 9
    assert plan(config(LEARN))[4].reward == "em_squad, em_set"


def test_a_selection_is_paid_only_where_there_is_one() -> None:
    arms = plan(config("{role: answerer, evidence_reward: 0.1}, {role: manager}"))
    assert [a.config.stages[0].evidence_reward for a in arms[1:]] == [0.0, 0.1, 0.0, 0.1]


def test_what_cannot_be_ablated_or_trained_is_refused() -> None:
    with pytest.raises(MemR1Error, match="no stage trains the manager on rewards"):
        plan(config("{role: answerer}, {role: manager, objective: sft}"))
    with pytest.raises(MemR1Error, match="em_sett"):
        plan(config(LEARN), rewards=("em_sett",))


def test_a_score_without_an_interval_stands_alone_in_the_table() -> None:
    metrics = {"em_set": asdict(bootstrap_interval([0.0, 1.0])), "f1": asdict(bootstrap_interval([0.4]))}
    row = {"arm": "both", "reward": "f1", "objective": "grpo", "metrics": metrics, "questions": 1}
    cells = [next(iter(column.cells)) for column in _result_table([row]).columns]
    assert cells == ["both", "f1", "grpo", "50.0 [0.0, 100.0]", "40.0", "–", "1"]
