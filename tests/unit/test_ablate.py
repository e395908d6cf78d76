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
from memr1.training.ablate import Study, _home, plan, table_cells

WARM = "{role: answerer, objective: sft}, {role: manager, objective: sft}, "
LEARN = "{role: answerer, steps: 3, reward: em_squad}, {role: manager, steps: 2}"


def config(stages: str) -> Config:
    return load_config(None, ["name=study", "output=out", f"stages=[{stages}]"])


def test_the_arms_are_those_of_the_paper_in_its_order() -> None:
    arms = plan(config(LEARN), Study())
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
    arms = plan(config(WARM + LEARN), Study())
    assert all([s.name for s in a.config.stages[:2]] == ["answerer-sft", "manager-sft"] for a in arms)
    assert [len(a.config.stages) for a in arms] == [2, 3, 3, 4, 4]
    assert {a.system for a in arms} == {"trained"}
    assert plan(config("{role: answerer, objective: sft}, " + LEARN), Study())[1].system == "trained"
    assert plan(config("{role: answerer, objective: sft}, " + LEARN), Study())[0].system == "answerer-only"


def test_each_reward_gives_the_trained_arms_anew_and_the_untrained_once() -> None:
    arms = plan(config(LEARN), Study(rewards=("em_set", "f1")))
    assert [(a.name, a.reward) for a in arms] == [("neither", "")] + [
        (name, reward)
        for reward in ("em_set", "f1")
        for name in ("manager only", "answerer only", "both, without distillation", "both")
    ]
    assert all(s.reward == a.reward for a in arms for s in a.config.stages)
    assert len({a.config.run_dir for a in arms}) == 9
    assert plan(config(LEARN), Study())[4].reward == "em_squad, em_set"


def test_a_selection_is_paid_only_where_there_is_one() -> None:
    arms = plan(config("{role: answerer, evidence_reward: 0.1}, {role: manager}"), Study())
    assert [a.config.stages[0].evidence_reward for a in arms[1:]] == [0.0, 0.1, 0.0, 0.1]


def test_what_cannot_be_ablated_or_trained_is_refused() -> None:
    with pytest.raises(MemR1Error, match="no stage trains the manager on rewards"):
        plan(config("{role: answerer}, {role: manager, objective: sft}"), Study())
    with pytest.raises(MemR1Error, match="em_sett"):
        plan(config(LEARN), Study(rewards=("em_sett",)))
    with pytest.raises(MemR1Error, match="did you mean mem0-rules"):
        plan(config(LEARN), Study(baselines=("mem0-rule",)))
    with pytest.raises(MemR1Error, match="names one twice"):
        plan(config(LEARN), Study(seeds=(1, 1)))
    with pytest.raises(MemR1Error, match="no 'manager'; choose from neither, manager_only"):
        plan(config(LEARN), Study(arms=("manager",)))
    with pytest.raises(MemR1Error, match="add it to the arms"):
        plan(config(LEARN), Study(arms=("manager_only",), controls=True))


def test_what_could_not_be_evaluated_after_hours_of_training_is_refused_before() -> None:
    with pytest.raises(MemR1Error, match="oracle-warm needs a supervised stage of the answerer"):
        plan(config(LEARN), Study(baselines=("oracle-warm",)))
    with pytest.raises(MemR1Error, match=r"needs agents.extractor=gold"):
        said = load_config(None, ["agents.extractor=utterance", f"stages=[{LEARN}]"])
        plan(said, Study(baselines=("oracle-trained",)))
    with pytest.raises(MemR1Error, match="rewards: f1, f1 names one twice"):
        plan(config(LEARN), Study(rewards=("f1", "f1")))
    with pytest.raises(MemR1Error, match="another arm with distillation"):
        plan(config(LEARN), Study(arms=("both_without_distillation",)))


def test_the_untrained_is_evaluated_where_prompts_and_seed_are_its_own() -> None:
    study = Study(arms=("manager_only", "both_without_distillation"), seeds=(1, 2))
    arms = plan(config(LEARN), study)
    for neither in (a for a in arms if a.name == "neither"):
        home = _home(neither, arms)
        assert home.agents.distillation and home.seed == neither.config.seed


def test_a_part_of_the_arms_has_the_untrained_beside_it() -> None:
    arms = plan(config(WARM + LEARN), Study(arms=("answerer_only",), objectives=("ppo",)))
    assert [a.row for a in arms] == [("neither", "", ""), ("answerer only", "em_squad", "ppo")]
    assert arms[0].config.run_dir == plan(config(WARM + LEARN), Study())[0].config.run_dir


def test_every_seed_has_all_arms_and_a_folder() -> None:
    arms = plan(config(LEARN), Study(seeds=(3, 5)))
    assert [a.row for a in arms[:5]] == [a.row for a in arms[5:]]
    assert [a.config.seed for a in arms] == [3] * 5 + [5] * 5
    assert str(arms[1].config.run_dir) == "out/study/seed_3/manager_only"


def test_controls_and_baselines_stand_beside_the_arms() -> None:
    study = Study(objectives=("grpo", "reinforce"), baselines=("bm25", "oracle-warm"), controls=True)
    arms = plan(config(WARM + LEARN), study)
    both = next(a for a in arms if a.name == "both")
    shuffled, wiped, *baselines = arms[-4:]
    assert shuffled.name == "both, rewards shuffled" and shuffled.config.run_dir.name == "both_rewards_shuffled-grpo"
    assert [s.shuffle_rewards for s in shuffled.config.stages] == [False, False, True, True]
    assert not any(s.shuffle_rewards for a in arms if a is not shuffled for s in a.config.stages)
    assert (wiped.name, wiped.system, wiped.config) == ("both, bank wiped", "wiped", both.config)
    assert [(a.name, a.system, a.config) for a in baselines] == [(n, n, both.config) for n in ("bm25", "oracle-warm")]
    assert both.objective == "grpo"


def test_a_score_without_an_interval_stands_alone_in_the_table() -> None:
    metrics = {"em_set": asdict(bootstrap_interval([0.0, 1.0])), "f1": asdict(bootstrap_interval([0.4]))}
    gain = {"difference": 0.051, "low": 0.01, "high": 0.09}
    row = {"arm": "both", "reward": "f1", "objective": "grpo", "metrics": metrics, "questions": 9, "seeds": [0]}
    cells = table_cells([{**row, "over_neither": gain, "both_over_it": None}])[1][0]
    assert cells == ["both", "f1", "grpo", "50.0 [0.0, 100.0]", "40.0", "–", "+5.1 [+1.0, +9.0]", "", "9"]
    several = table_cells([{**row, "seeds": [0, 1, 2], "over_neither": {**gain, "low": None}, "both_over_it": None}])[
        1
    ][0]
    assert several[-3:] == ["+5.1", "", "9 x 3"]
