"""memr1.config: what a config file may say, and what is said about one that is wrong.

Not covered: what the fields do; each has its tests where it is used.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from memr1.config import Config
from memr1.config_checks import CHOICES, validate
from memr1.config_file import load_config, to_yaml
from memr1.errors import MemR1Error
from memr1.evaluation.systems import SYSTEMS

ROOT = Path(__file__).parents[2]


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def message(path: Path | None, *overrides: str) -> str:
    with pytest.raises(MemR1Error) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_an_unknown_key_names_the_file_the_dotted_field_and_the_nearest_key(tmp_path: Path) -> None:
    path = written(tmp_path, "rollout: {group_sise: 8}\n")
    assert message(path) == f"{path}: rollout.group_sise is not a field of RolloutConfig; did you mean group_size?"


def test_an_unknown_key_like_no_other_lists_the_fields(tmp_path: Path) -> None:
    said = message(written(tmp_path, "checkpoint: {zzz: 8}\n"))
    assert "checkpoint.zzz is not a field of CheckpointConfig; its fields are: every_steps, keep" in said


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("data: {factworld: {num_wrlds: 3}}", "data.factworld.num_wrlds"),
        ("model: {lora: {rnk: 3}}", "model.lora.rnk"),
        ("stages: [{role: manager, step: 3}]", "stages.0.step"),
        ("stges: []", "stges"),
    ],
)
def test_unknown_keys_are_found_at_every_depth(tmp_path: Path, text: str, field: str) -> None:
    path = written(tmp_path, text)
    assert message(path).startswith(f"{path}: {field} is not a field of")
    assert "did you mean" in message(path)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=x", "seed: expected int, found 'x'"),
        ("seed=1.5", "seed: expected int, found 1.5"),
        ("seed=true", "seed: expected int, found True"),
        ("tensorboard=1", "tensorboard: expected bool, found 1"),
        ("name=3", "name: expected str, found 3"),
        ("algo.kl_coef=abc", "algo.kl_coef: expected float, found 'abc'"),
        ("algo.kl_coef=true", "algo.kl_coef: expected float, found True"),
        ("learner.betas=[0.9]", "learner.betas: expected 2 values, found 1"),
        ("learner.betas=0.9", "learner.betas: expected a list, found 0.9"),
        ("stages=3", "stages: expected a list, found 3"),
        ("stages=[3]", "stages.0: expected a mapping of StageConfig fields, found 3"),
        ("rollout=3", "rollout: expected a mapping of RolloutConfig fields, found 3"),
        ("rollout=null", "rollout: expected a mapping of RolloutConfig fields, found None"),
        ("seed=null", "seed: expected int, found None"),
        ("evaluation.systems=trained", "evaluation.systems: expected a list, found 'trained'"),
        ("evaluation.systems=[1]", "evaluation.systems.0: expected str, found 1"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_its_field(override: str, said: str) -> None:
    assert said in message(None, override)


@pytest.mark.parametrize("field", sorted(CHOICES))
def test_every_choice_is_checked_and_listed(field: str) -> None:
    stage = field.startswith("stages.")
    key = field.split(".")[-1]
    for good in CHOICES[field]:
        others = ["data.path=d.json", "algo.aggregation=sequence-mean"]  # what some choices need
        role = "role: manager, " if key == "episode" else ""
        data = [f"stages=[{{{role}{key}: {good}}}]"] if stage else [*others, f"{field}={good}"]
        assert load_config(None, data)
    wrong = CHOICES[field][0] + "x"
    said = message(None, f"stages=[{{{key}: {wrong}}}]" if stage else f"{field}={wrong}")
    where = f"stages.0.{key}" if stage else field
    assert said.startswith(f"config: {where}: {wrong!r} is not one of")
    assert f"did you mean {CHOICES[field][0]}?" in said


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rollout.group_size=1", "rollout.group_size: must be at least 2, is 1: GRPO compares"),
        ("rollout.prompts_per_step=0", "rollout.prompts_per_step: must be at least 1, is 0"),
        ("rollout.answer_max_new_tokens=0", "rollout.answer_max_new_tokens: must be at least 1"),
        ("rollout.temperature=0", "rollout.temperature: must be above 0, is 0.0"),
        ("rollout.temperature=.nan", "rollout.temperature: must be above 0, is nan"),
        ("rollout.max_prompt_tokens=10", "rollout.max_prompt_tokens: must be at least 64"),
        ("learner.zero_stage=4", "learner.zero_stage: must be 0, 1, 2 or 3"),
        ("rollout.push_timeout_s=0", "rollout.push_timeout_s: must be above 0, is 0"),
        ("learner.num_learners=0", "learner.num_learners: must be at least 1"),
        ("memory.answerer_top_k=0", "memory.answerer_top_k: must be at least 1"),
        ("algo.clip_low=1", "algo.clip_low: must be in [0, 1)"),
        ("algo.dual_clip=1", "algo.dual_clip: must be 0 or above 1, is 1.0"),
        ("algo.ratio=sequence", "algo.ratio: sequence needs algo.aggregation=sequence-mean"),
        ("checkpoint.keep=0", "checkpoint.keep: must be at least 1"),
        ("data.kind=jsonl", "data.path: jsonl needs a file"),
        ("stages=[{steps: 0}]", "stages.0.steps: must be at least 1, is 0; remove the stage instead"),
        ("stages=[{learning_rate: 0}]", "stages.0.learning_rate: must be above 0"),
        ("stages=[{objective: ppo, steps: 2}]", "algo.critic.warmup_steps: is 2 and stages.0.steps is 2: the policy"),
        ("stages=[{objective: reinforce, epochs: 2}]", "stages.0.epochs: must be 1 with reinforce, is 2"),
        ("learner.offload_optimizer=true", "learner.offload_optimizer: needs learner.zero_stage of at least 1"),
        ("algo.critic.backbone=mine", "algo.critic.backbone: 'mine' is not one of ('own', 'policy')"),
        ("algo.critic.gae_lambda=1.5", "algo.critic.gae_lambda: must be in [0, 1], is 1.5"),
        ("algo.critic.learning_rate=0", "algo.critic.learning_rate: must be above 0"),
        ("stages=[{group_size: 1}]", "stages.0.group_size: must be 0 or at least 2, is 1"),
        ("learner.max_tokens_per_microbatch=0", "learner.max_tokens_per_microbatch: must be at least 1"),
        ("rollout.max_tokens_per_batch=0", "rollout.max_tokens_per_batch: must be at least 1"),
        ("stages=[{prompts_per_step: -1}]", "stages.0.prompts_per_step: must be at least 0, is -1"),
        ("rollout.resample_rounds=-1", "rollout.resample_rounds: must be at least 0"),
        ("algo.kl_coef=-0.1", "algo.kl_coef: must be at least 0"),
        ("evaluation.retrieval_top_k=-1", "evaluation.retrieval_top_k: must be at least 0"),
        ("evaluation.systems=[traned]", "evaluation.systems: no system 'traned'; did you mean trained?"),
        ("data.factworld.num_worlds=0", "data.factworld.num_worlds is 0"),
        ("model.lora.rank=0", "lora: rank >= 1"),
    ],
)
def test_values_out_of_range_name_the_field_and_the_remedy(tmp_path: Path, override: str, said: str) -> None:
    path = written(tmp_path, "seed: 1\n")
    assert message(path, override).startswith(f"{path}: {said}")


def test_more_learners_than_sequences_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "learner: {num_learners: 4}\nrollout: {prompts_per_step: 2, group_size: 2}\n")
    assert load_config(path, ["stages=[{objective: grpo}]"]).learner.num_learners == 4
    said = message(path, "stages=[{objective: sft, examples_per_step: 3}]")
    assert said.startswith(f"{path}: learner.num_learners: is 4, and a step of stages.0 has 3 sequences")
    said = message(path, "stages=[{objective: reinforce, group_size: 1}]")
    assert "a step of stages.0 has 2 sequences: some learners would never have any" in said
    said = message(path, "stages=[{objective: grpo, prompts_per_step: 1}]")
    assert "a step of stages.0 has 2 sequences: some learners would never have any" in said
    assert load_config(path, ["rollout.prompts_per_step=1", "stages=[{objective: grpo, prompts_per_step: 2}]"])


def test_dropout_of_adapters_is_for_supervised_stages() -> None:
    dropout = "model.lora.dropout=0.1"
    assert load_config(None, [dropout, "stages=[{objective: sft}]"]).model.lora.dropout == 0.1
    assert load_config(None, [dropout, "stages=[{objective: grpo}]", "model.weights=full"]), "there are no adapters"
    for objective in ("grpo", "reinforce", "ppo"):
        stages = f"stages=[{{objective: sft}}, {{objective: {objective}}}]"
        with pytest.raises(MemR1Error, match=rf"config: model.lora.dropout: is 0.1, and stages.1 is {objective}"):
            load_config(None, [dropout, stages])


def test_ratios_of_sequences_are_for_episodes_of_one_step() -> None:
    gspo = ["algo.ratio=sequence", "algo.aggregation=sequence-mean"]
    assert load_config(None, [*gspo, "stages=[{role: manager}]"])
    with pytest.raises(MemR1Error, match=r"config: algo.ratio: sequence does not go with the replay of stages.0"):
        load_config(None, [*gspo, "stages=[{role: manager, episode: replay}]"])


@pytest.mark.parametrize("override", ["seed", "=3", "name=[", "seed.x=1", "stages.5.steps=1", "name={a: [}", ".=1"])
def test_a_malformed_override_is_one_clear_error(override: str) -> None:
    assert override.split("=")[0].split(".")[0] in message(None, override)


def test_overrides_reach_into_lists_and_replace_lists(tmp_path: Path) -> None:
    path = written(tmp_path, "stages: [{role: answerer, steps: 9}, {role: manager, steps: 8}]\n")
    config = load_config(path, ["stages.0.steps=3", "stages.1.objective=sft"])
    assert [(s.role, s.objective, s.steps) for s in config.stages] == [("answerer", "grpo", 3), ("manager", "sft", 8)]
    config = load_config(path, ["stages=[{role: manager, steps: 2}]"])
    assert [(s.role, s.steps) for s in config.stages] == [("manager", 2)]
    assert load_config(path, ["evaluation.systems=[trained]"]).evaluation.systems == ("trained",)


def test_the_last_override_of_a_field_wins() -> None:
    assert load_config(None, ["seed=1", "rollout.group_size=4", "seed=2"]).seed == 2


def test_numbers_in_scientific_notation_are_numbers(tmp_path: Path) -> None:
    path = written(tmp_path, "stages: [{learning_rate: 2e-4}, {learning_rate: 5e-05}]\nalgo: {kl_coef: 1}\n")
    config = load_config(path, ["learner.weight_decay=1e-2"])
    assert [s.learning_rate for s in config.stages] == [2e-4, 5e-5]
    assert (config.algo.kl_coef, type(config.algo.kl_coef)) == (1.0, float)
    assert config.learner.weight_decay == 0.01


def test_lora_modules_are_one_name_or_a_list_of_names() -> None:
    assert load_config(None, ["model.lora.target_modules=all-linear"]).model.lora.target_modules == "all-linear"
    config = load_config(None, ["model.lora.target_modules=[q_proj, v_proj]"])
    assert config.model.lora.target_modules == ("q_proj", "v_proj")


RUNS = sorted(p for p in (ROOT / "configs").rglob("*.yaml") if p.name != "serve.yaml")  # that one is Ray Serve's


@pytest.mark.parametrize("path", [None, *RUNS], ids=lambda p: p.name if p else "-")
def test_the_resolved_config_reads_back_equal(tmp_path: Path, path: Path | None) -> None:
    config = load_config(path, ["stages.0.learning_rate=3e-05"] if path else ["model.lora.target_modules=[q_proj]"])
    again = load_config(written(tmp_path, to_yaml(config)))
    assert again == config
    assert to_yaml(again) == to_yaml(config)


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.name)
def test_every_shipped_config_trains_something_and_evaluates_known_systems(path: Path) -> None:
    config = load_config(path)
    assert sum(s.steps for s in config.stages) >= 1
    assert set(config.evaluation.systems) <= set(SYSTEMS)


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "just text", "\x00\x01", "a: ${nothing}"])
def test_a_file_that_is_no_mapping_is_named(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    assert message(path).startswith(f"{path}: ")


def test_a_missing_file_and_an_empty_one(tmp_path: Path) -> None:
    assert message(tmp_path / "no.yaml") == f"{tmp_path / 'no.yaml'}: no such config file. See configs/ for examples."
    assert load_config(written(tmp_path, "")) == Config()


def test_a_config_cannot_be_changed() -> None:
    config = load_config(None, ["stages=[{}]"])
    for obj, name in ((config, "seed"), (config.rollout, "group_size"), (config.stages[0], "steps")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(obj, name, 5)


def test_defaults_are_valid() -> None:
    validate(Config())


def test_the_gpu_section_counts_only_where_the_model_runs_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from memr1.models import registry

    path = written(tmp_path, "rollout: {group_size: 4}\non_gpu: {rollout: {prompts_per_step: 32, group_size: 16}}\n")
    assert load_config(path).rollout.prompts_per_step == Config().rollout.prompts_per_step
    monkeypatch.setattr(
        registry, "pick_device", lambda device="auto": torch.device("cpu" if device == "cpu" else "cuda")
    )
    on_gpu = load_config(path).rollout
    assert (on_gpu.prompts_per_step, on_gpu.group_size) == (32, 16)
    assert load_config(path, ["rollout.group_size=8"]).rollout.group_size == 8
    assert load_config(path, ["model.device=cpu"]).rollout.group_size == 4


def test_a_wrong_key_in_the_gpu_section_is_refused_on_every_machine(tmp_path: Path) -> None:
    path = written(tmp_path, "on_gpu: {rollout: {group_sise: 16}}\n")
    assert "on_gpu.rollout.group_sise is not a field of RolloutConfig; did you mean group_size?" in message(path)


def test_playing_ahead_needs_a_bound_of_one_and_the_correction() -> None:
    assert load_config(None, ["rollout.max_staleness=1"]).rollout.max_staleness == 1
    with pytest.raises(MemR1Error, match=r"rollout\.max_staleness: must be 0 or 1, is 2"):
        load_config(None, ["rollout.max_staleness=2"])
    with pytest.raises(MemR1Error, match=r"rollout\.max_staleness: 1 needs algo\.importance_cap above 0"):
        load_config(None, ["rollout.max_staleness=1", "algo.importance_cap=0"])
