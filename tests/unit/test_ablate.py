"""The plan of an ablation: which stages, which weights, which folder each row of the table comes from; and the table.

Not covered: running it (tests/e2e/test_ablate.py).
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from memr1.config import Config
from memr1.config_file import load_config
from memr1.data.types import Dialogue
from memr1.errors import MemR1Error
from memr1.evaluation.evaluate import measured_on
from memr1.evaluation.predictions import Prediction
from memr1.evaluation.rows import summarize, summarize_seeds
from memr1.evaluation.statistics import bootstrap_interval
from memr1.training.ablate import Benchmark, Study, _home, _lacking, plan
from memr1.training.report_ablation import table_cells, write_table
from memr1.training.runlog import RunLog
from memr1.training.worlds import held_out_worlds

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
    assert [a.key for a in arms] == [("neither", "", ""), ("answerer only", "em_squad", "ppo")]
    assert arms[0].config.run_dir == plan(config(WARM + LEARN), Study())[0].config.run_dir


def test_every_seed_has_all_arms_and_a_folder() -> None:
    arms = plan(config(LEARN), Study(seeds=(3, 5)))
    assert [a.key for a in arms[:5]] == [a.key for a in arms[5:]]
    assert [a.config.seed for a in arms] == [3] * 5 + [5] * 5
    assert str(arms[1].config.run_dir) == "out/study/seed_3/manager_only"


def test_controls_and_baselines_stand_beside_the_arms() -> None:
    study = Study(objectives=("grpo", "reinforce"), baselines=("bm25", "oracle-warm"), controls=True)
    arms = plan(config(WARM + LEARN), study)
    both = next(a for a in arms if a.name == "both")
    shuffled, wiped, nothing, *baselines = arms[-5:]
    assert shuffled.name == "both, rewards shuffled" and shuffled.config.run_dir.name == "both_rewards_shuffled-grpo"
    assert [s.shuffle_rewards for s in shuffled.config.stages] == [False, False, True, True]
    assert not any(s.shuffle_rewards for a in arms if a is not shuffled for s in a.config.stages)
    assert (wiped.name, wiped.system, wiped.config) == ("both, bank wiped", "wiped", both.config)
    names = ("no-memory", "bm25", "oracle-warm")
    assert [(a.name, a.system, a.config) for a in (nothing, *baselines)] == [(n, n, both.config) for n in names]
    assert both.objective == "grpo"
    named = plan(config(LEARN), Study(baselines=("bm25", "no-memory"), controls=True))
    assert [a.name for a in named[-2:]] == ["no-memory", "bm25"]


def test_answers_that_are_judged_are_made_once_and_by_a_judge_that_is_there() -> None:
    with pytest.raises(MemR1Error, match="--judge needs a model that judges; set judge.url and judge.model"):
        plan(config(LEARN), Study(judge=True))
    settings = [f"stages=[{LEARN}]", "judge.url=http://127.0.0.1:1/v1", "judge.model=wise-1"]
    assert not any(a.config.evaluation.at_end for a in plan(load_config(None, settings), Study(judge=True)))
    assert all(a.config.evaluation.at_end for a in plan(load_config(None, settings), Study()))


# -- what was measured before, and on what -----------------------------------------------------------------------


def test_what_was_measured_on_other_data_or_settings_is_measured_again(tmp_path: Path) -> None:
    small = load_config(None, ["name=study", f"output={tmp_path}", f"stages=[{LEARN}]", "evaluation.num_worlds=1"])
    digests = {
        "small": measured_on(small, held_out_worlds(small)),
        "more worlds": measured_on(small, held_out_worlds(_evaluated_with(small, num_worlds=2))),
        "more shown": measured_on(_evaluated_with(small, retrieval_top_k=3), held_out_worlds(small)),
        "another gold": measured_on(small, [_first_gold(world, "?") for world in held_out_worlds(small)]),
    }
    assert len(set(digests.values())) == 4
    assert measured_on(_evaluated_with(small, systems=("bm25",)), held_out_worlds(small)) == digests["small"]
    run = plan(small, Study())[4].config
    row = replace(summarize([answered(0)]), measured_on=digests["small"])
    with RunLog(run.run_dir) as log:
        log.evaluation(5, "evaluation", row.to_dict())
    assert _lacking(("trained", "bm25"), run, Benchmark("factworld", digests["small"])) == ("bm25",)
    assert _lacking(("trained",), run, Benchmark("factworld-judge=wise.0", digests["small"])) == ("trained",)
    for other in ("more worlds", "more shown", "another gold"):
        assert _lacking(("trained",), run, Benchmark("factworld", digests[other])) == ("trained",)
    with RunLog(run.run_dir) as log:  # its predictions replaced those of the row before
        log.evaluation(5, "evaluation", replace(row, measured_on=digests["more worlds"]).to_dict())
    assert _lacking(("trained",), run, Benchmark("factworld", digests["small"])) == ("trained",)


def _evaluated_with(config: Config, **changes: Any) -> Config:
    return replace(config, evaluation=replace(config.evaluation, **changes))


def _first_gold(world: Dialogue, gold: str) -> Dialogue:
    first, *others = world.questions
    return replace(world, questions=(replace(first, answer=gold), *others))


# -- the table ---------------------------------------------------------------------------------------------------


def answered(n: int, answer: str = "Rome", **changes: Any) -> Prediction:
    asked = Prediction("factworld", "trained", "d", f"q{n}", f"kind {n % 2}", None, "Where?", "Rome", answer)
    return replace(asked, reached="prompt", **changes)


def test_a_score_without_an_interval_stands_alone_in_the_table() -> None:
    metrics = {"em_set": asdict(bootstrap_interval([0.0, 1.0])), "f1": asdict(bootstrap_interval([0.4]))}
    gain = {"difference": 0.051, "low": 0.01, "high": 0.09}
    both = {"arm": "both", "reward": "f1", "objective": "grpo", "metrics": metrics, "n": 9, "seeds": [0]}
    row = {**both, "over_neither": gain, "both_over_it": None, "over_no_memory": None}
    header, body = table_cells([row])
    assert header == ["arm", "reward", "objective", "em_set", "f1", "over neither", "questions"]
    assert body == [["both", "f1", "grpo", "50.0 [0.0, 100.0]", "40.0", "+5.1 [+1.0, +9.0]", "9"]]
    several = {**row, "seeds": [0, 1, 2], "over_neither": {**gain, "low": None}}
    assert table_cells([several])[1][0][-2:] == ["+5.1", "3 x 3"]
    wiped = {**row, "over_neither": None, "over_no_memory": {**gain, "difference": -0.02}}
    judged = {**row, "metrics": metrics | {"judge": asdict(bootstrap_interval([1.0]))}}
    header, body = table_cells([row, wiped, judged])
    assert header[5:] == ["judge", "over neither", "over no-memory", "questions"]
    assert [line[5:8] for line in body] == [
        ["–", "+5.1 [+1.0, +9.0]", ""], ["–", "", "-2.0 [+1.0, +9.0]"], ["100.0 [2.5, 100.0]", "+5.1 [+1.0, +9.0]", ""]
    ]  # fmt: skip


def test_answers_of_several_seeds_are_one_row() -> None:
    seeds = [[answered(n, "Rome" if n < right else "Oslo") for n in range(4)] for right in (4, 2)]
    row = summarize_seeds(seeds)
    assert (row.n, row.metrics["em_set"].mean, row.metrics["em_set"].n) == (8, 0.75, 4)
    assert row.failures["not used"] == 2
    assert [(c.category, c.n, c.metrics["em_set"].mean) for c in row.categories] == [
        ("kind 0", 4, 0.75),
        ("kind 1", 4, 0.75),
    ]
    assert summarize_seeds(seeds[:1]) == summarize(seeds[0])
    judged = [[replace(p, judged=1.0 if n else None) for n, p in enumerate(run)] for run in seeds]
    judged[1][1] = replace(judged[1][1], judged=None)
    verdicts = summarize_seeds(judged, ("judge",)).metrics["judge"]
    assert (verdicts.n, verdicts.mean) == (2, 1.0), "a measure is taken over the questions that all seeds have it for"
    with pytest.raises(MemR1Error, match="seeds of trained answered different questions"):
        summarize_seeds([seeds[0], seeds[1][:3]])


def test_the_page_of_an_ablation_has_its_table_figures_categories_and_failures(tmp_path: Path) -> None:
    study = config(LEARN)
    nothing = {"over_neither": None, "both_over_it": None, "over_no_memory": None}
    rows = [
        {"arm": arm, "reward": "", "objective": "", "seeds": [1, 2], **nothing}
        | summarize_seeds(
            [[answered(n, "Rome" if n < right else "Oslo") for n in range(4)] for _ in range(2)]
        ).to_dict()
        for arm, right in (("neither", 1), ("both", 3))
    ]
    page = write_table(rows, study, tmp_path).read_text()
    assert page.count("data:image/png") == 2 and "the choice of questions and of seeds" in page
    text = (tmp_path / "ablation.md").read_text()
    assert "| both |  |  | 75.0 [" in text and "| 4 x 2 |" in text
    assert "By category (em_set):" in text and "| neither | 75.0 | 0.0 | 0.0 | 75.0 | 0.0 |" in text
    for name in ("evaluation-factworld.png", "failures-factworld.png"):
        assert f"(plots/{name})" in text and (tmp_path / "plots" / name).is_file()
