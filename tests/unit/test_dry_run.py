"""What `memr1 train --dry-run` promises: the run's own prompts, a plan, estimates that hold, and no silent stand-in.

Not covered: what a learner holds (test_learner.py); activations, which are an upper bound by formula.
"""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import DynamicCache

from memr1.config import MAX_REFILL, Config, StageConfig
from memr1.config_file import load_config
from memr1.data.factworld import generate_dialogues
from memr1.errors import MemR1Error
from memr1.models.architectures import describe
from memr1.models.registry import load_causal_lm
from memr1.rollout.channel import Meeting
from memr1.rollout.runner import Runner
from memr1.training.dry_run import Gpus, dry_run, plan, read_gpus
from memr1.training.estimate import learner_bytes, runner_bytes, step_tokens
from memr1.training.tasks import build_tasks, task_prompt
from tests.unit.scripted import ScriptedEngine, make_world


def small(*overrides: str) -> Config:
    base = Path(__file__).parents[2] / "configs" / "train_local.yaml"
    tiny = ("model.name=tiny-random", "model.device=cpu", "memory.embedder=hash", "data.factworld.num_worlds=2")
    return load_config(base, ["name=never_started", "rollout.max_prompt_tokens=4096", *tiny, *overrides])


def report(config: Config, gpus: Gpus | None = None) -> str:
    heard = io.StringIO()
    dry_run(config, gpus or Gpus(0), Console(file=heard, width=400))
    return heard.getvalue()


def test_the_prompts_are_those_that_the_run_will_send() -> None:
    config = small()
    said = report(config)
    world = make_world(
        "memory.answerer_top_k=5", "memory.manager_top_k=3", "rollout.questions_per_decision=4", "memory.pressure=0.05"
    )
    dialogues = generate_dialogues(config.data.factworld)
    silent = ScriptedEngine(lambda prompt, request: "NOOP")
    for role in ("manager", "answerer"):
        made = build_tasks(dialogues, world, silent, role=role, bank="oracle")
        prompts = sorted((task_prompt(t.task, world) for t in made), key=lambda p: len(p.ids))
        for prompt in (prompts[len(prompts) // 2], prompts[-1]):
            assert f"--- {len(prompt.ids)} tokens\n{prompt.text.rstrip()}" in said
    assert "Ray on CPUs: 1 runners that play episodes, 1 learners that train" in said
    assert f"name: never_started\noutput: {config.output}" in said
    assert not config.run_dir.exists()


def test_every_stand_in_is_named() -> None:
    said = report(small("model.name=Qwen/Qwen2.5-3B-Instruct", "agents.extractor=llm", "stages.2.bank=manager"))
    assert "3.09 B weights" in said and "known from the table of known models" in said
    unchecked = said.split("# Not checked here\n")[1]
    assert "the tokenizer of Qwen/Qwen2.5-3B-Instruct, which is not here" in unchecked
    assert "facts extracted by the model; in the prompts those of agents.extractor=gold stand in" in unchecked
    assert "the weights of the model" in unchecked
    unknown = report(small("model.name=nobody/nothing-7B"))
    assert "memory and window: model.name: the shape of nobody/nothing-7B is not known here" in unknown
    assert "# Memory" not in unknown


def test_one_process_holds_the_base_once() -> None:
    def gib(said: str) -> float:
        (line,) = [line for line in said.splitlines() if "1 learners and 1 runners: " in line]
        return float(line.rsplit(": ", 1)[1].removesuffix(" GiB"))

    options = ("model.name=Qwen/Qwen2.5-3B-Instruct", "model.device=cuda")
    apart, together = (gib(report(small(*options, f"backend={b}"), Gpus(1))) for b in ("ray", "local"))
    assert apart - together == pytest.approx(3.086e9 * 2 / 2**30, abs=0.11)  # both are printed to 0.1


def test_a_replay_is_planned_for_all_its_decisions_and_questions() -> None:
    config = small("stages=[{role: manager, episode: replay, steps: 1}]", "rollout.prompts_per_step=1")
    said = report(config)
    assert (
        "# Prompts of the manager (replay), of 2 made from 2 dialogues" in said and "# Prompts of the answerer" in said
    )
    worlds = generate_dialogues(config.data.factworld)
    decisions = max(sum(bool(t.facts) for _, t in d.turns()) for d in worlds)
    rounds, limit = 1 + MAX_REFILL * config.rollout.resample_rounds, config.rollout.manager_max_new_tokens
    assert f"{rounds * config.rollout.group_size * decisions * limit:,} trained in all" in said


def test_what_would_stop_the_run_stops_the_dry_run() -> None:
    with pytest.raises(MemR1Error, match="set rollout.max_prompt_tokens to at most 8064"):
        report(small("rollout.max_prompt_tokens=8192"))
    with pytest.raises(MemR1Error, match=r"no such file|not found|there is no"):
        report(small("data.kind=locomo", "data.path=/nowhere/locomo10.json"))
    with pytest.raises(MemR1Error, match=r"learner.num_learners is 4 and the cluster has 2 GPUs"):
        report(small("model.device=cuda", "learner.num_learners=4"), Gpus(2))
    with pytest.raises(MemR1Error, match=r"would hold .* GiB and has 0\.1; lower learner.max_tokens_per_microbatch"):
        report(small("model.device=cuda", "learner.max_tokens_per_microbatch=65536"), Gpus(1, 0.1))


def test_gpus_are_written_as_a_number_or_a_number_of_a_size() -> None:
    assert read_gpus("4x80") == Gpus(4, 80.0)
    assert read_gpus("8") == Gpus(8)
    with pytest.raises(MemR1Error, match="write a number of GPUs"):
        read_gpus("four")


@pytest.mark.parametrize(
    ("gpus", "runners", "learners", "devices"),
    [
        (8, 4, 4, {"a learner's GPU": (1, 0), "a runners' GPU": (0, 1)}),
        (4, 4, 2, {"a learner's GPU": (1, 0), "a runners' GPU": (0, 2)}),
        (4, 4, 4, {"a GPU": (1, 1)}),
        (1, 2, 1, {"a GPU": (1, 2)}),
        (0, 2, 2, {"a learner's GPU": (1, 0), "a runners' GPU": (0, 1)}),  # unknown: one for each
    ],
)
def test_the_plan_places_every_actor(gpus: int, runners: int, learners: int, devices: dict) -> None:
    config = small("model.device=cuda", f"rollout.num_runners={runners}", f"learner.num_learners={learners}")
    assert plan(config, Gpus(gpus)).devices == devices


def test_zero_divides_what_its_stage_divides() -> None:
    arch = describe("Qwen/Qwen2.5-7B-Instruct")
    n = arch.parameters
    for stage, shares in {0: (1, 1, 1), 1: (8, 1, 1), 2: (8, 8, 1), 3: (8, 8, 8)}.items():
        config = load_config(None, ["model.weights=full", f"learner.zero_stage={stage}", "learner.num_learners=8"])
        told = learner_bytes(arch, config, width=2)
        found = (told["optimizer"], told["gradients"], told["trained weights"])
        assert found == tuple(b * n // s for b, s in zip((12, 4, 2), shares, strict=True))


def test_a_critic_of_its_own_takes_what_the_policy_takes() -> None:
    arch = describe("Qwen/Qwen2.5-3B-Instruct")
    ppo = "stages=[{role: answerer, objective: ppo}]"
    own, shared, none = (
        learner_bytes(arch, load_config(None, changes), width=2)["critic"]
        for changes in ([ppo], [ppo, "algo.critic.backbone=policy"], ["stages=[{role: answerer}]"])
    )
    assert (own, shared, none) == (arch.adapter_parameters * 16, 0, 0)


def test_a_runner_of_whole_models_holds_the_base_only_where_somebody_asks_it() -> None:
    arch = describe("Qwen/Qwen2.5-3B-Instruct")

    def copies(*changes: str) -> float:
        config = load_config(None, ["model.weights=full", *changes])
        return runner_bytes(arch, config, width=2)["weights"] / (2 * arch.parameters)

    for systems, count in {
        "trained,bm25": 2,
        "untrained": 3,
        "answerer-only": 3,
        "manager-only": 3,
        "linked-notes": 3,
    }.items():
        assert copies(f"evaluation.systems=[{systems}]") == count, systems
    extracting = ("agents.extractor=llm", "evaluation.systems=[trained]")
    assert copies(*extracting) == 3
    server = ("agents.extractor_endpoint.url=http://localhost:1/v1", "agents.extractor_endpoint.model=m")
    assert copies(*extracting, *server) == 2


@pytest.mark.parametrize("weights", ["lora", "full"])
def test_a_runner_holds_the_weights_that_a_dry_run_tells(weights: str) -> None:
    config = small(f"model.weights={weights}", "evaluation.systems=[trained]")
    runner = Runner(config)
    assert not runner.open_channel(Meeting("127.0.0.1", 1, 2, 0.1), 1)  # nobody is there
    held = {id(p): p for module in runner.policies._modules.values() for p in module.parameters()}
    size = sum(p.numel() * p.element_size() for p in held.values())
    assert runner_bytes(describe("tiny-random", config.model.lora), config, width=4)["weights"] == size


def test_a_key_value_cache_is_as_large_as_transformers_makes_it() -> None:
    model = load_causal_lm("tiny-random", device="cpu")
    cache = DynamicCache(config=model.config)
    model(input_ids=torch.ones((3, 20), dtype=torch.long), past_key_values=cache, use_cache=True)
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    config = load_config(None, ["rollout.max_tokens_per_batch=60"])
    assert runner_bytes(describe("tiny-random"), config, width=4)["key-value cache"] == held


def test_tokens_of_a_step_are_counted_by_rollout() -> None:
    sizes = ("prompts_per_step=5", "group_size=6", "questions_per_decision=2")
    limits = ("answer_max_new_tokens=7", "manager_max_new_tokens=11")
    config = load_config(None, [f"rollout.{setting}" for setting in (*sizes, *limits)])
    sft = step_tokens(StageConfig("manager", "sft", examples_per_step=3), config, 100, 200, 9)
    assert (sft.prefilled, sft.generated, sft.trained) == (0, 0, 27)
    answering = step_tokens(StageConfig("answerer", group_size=4), config, 100, 200, 9)
    assert (answering.prefilled, answering.generated, answering.trained) == (500, 5 * 4 * 7, 5 * 4 * 7)
    deciding = step_tokens(StageConfig("manager"), config, 100, 200, 9)
    assert deciding.prefilled == 5 * 100 + 5 * 6 * 2 * 200
    assert (deciding.generated, deciding.trained) == (5 * 6 * 11 + 5 * 6 * 2 * 7, 5 * 6 * 11)
