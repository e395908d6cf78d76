"""What a configuration must fulfil beyond its types: choices, ranges, and what goes together."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any

from memr1.config import Config
from memr1.errors import MemR1Error
from memr1.evaluation.systems import get_system
from memr1.rewards.base import make_reward

CHOICES: dict[str, tuple[str, ...]] = {
    "backend": ("ray", "local"),
    "model.weights": ("lora", "full"),
    "data.kind": ("factworld", "locomo", "jsonl"),
    "memory.index": ("exact", "chroma"),
    "rollout.engine": ("transformers", "vllm"),
    "rollout.weight_transfer": ("auto", "objects", "collective"),
    "memory.on_reject": ("abort", "skip"),
    "agents.extractor": ("gold", "utterance", "llm"),
    "agents.protocol": ("lines", "json"),
    "algo.advantage": ("grpo", "dr-grpo", "rloo"),
    "algo.ratio": ("token", "sequence"),
    "algo.aggregation": ("token-mean", "sequence-mean", "trajectory-mean"),
    "algo.kl_in": ("loss", "reward"),
    "algo.critic.backbone": ("own", "policy"),
    "placement.gpus": ("shared", "apart"),
    "placement.strategy": ("spread", "pack", "strict-spread", "strict-pack"),
    "stages.role": ("answerer", "manager"),
    "stages.objective": ("sft", "grpo", "reinforce", "ppo"),
    "stages.schedule": ("constant", "linear", "cosine"),
    "stages.episode": ("decision", "replay"),
    "stages.bank": ("oracle", "manager", "add-everything"),
}


AT_LEAST_ONE: dict[str, tuple[str, ...]] = {
    "rollout": (
        "num_runners",
        "prompts_per_step",
        "answer_max_new_tokens",
        "manager_max_new_tokens",
        "questions_per_decision",
        "max_tokens_per_batch",
    ),
    "learner": ("num_learners", "max_tokens_per_microbatch"),
    "memory": ("manager_top_k", "answerer_top_k"),
    "evaluation": ("num_worlds",),
    "checkpoint": ("every_steps", "keep"),
}


def validate(config: Config, source: str = "config") -> None:
    """Check values and combinations; MemR1Error names the field and the remedy."""

    def need(ok: bool, name: str, message: str) -> None:
        if not ok:
            raise MemR1Error(f"{source}: {name}: {message}")

    def check_choices(obj: Any, prefix: str, key_prefix: str) -> None:
        for f in dataclasses.fields(obj):
            value = getattr(obj, f.name)
            key = f"{key_prefix}{f.name}"
            if key in CHOICES:
                near = difflib.get_close_matches(str(value), CHOICES[key], n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                need(value in CHOICES[key], f"{prefix}{f.name}", f"{value!r} is not one of {CHOICES[key]}{hint}")
            elif dataclasses.is_dataclass(value):
                check_choices(value, f"{prefix}{f.name}.", f"{key_prefix}{f.name}.")

    check_choices(config, "", "")
    judge: Any = None if config.judge is None else object()  # it is asked nothing here
    for i, stage in enumerate(config.stages):
        try:
            make_reward(stage.reward, judge)
        except MemR1Error as error:
            raise MemR1Error(f"{source}: stages.{i}.{error}") from None
        check_choices(stage, f"stages.{i}.", "stages.")
        need(stage.steps >= 1, f"stages.{i}.steps", f"must be at least 1, is {stage.steps}; remove the stage instead")
        need(stage.learning_rate > 0, f"stages.{i}.learning_rate", f"must be above 0, is {stage.learning_rate}")
        need(stage.examples_per_step >= 1, f"stages.{i}.examples_per_step", "must be at least 1")
        need(
            stage.role != "answerer" or config.agents.answerer_endpoint is None,
            f"stages.{i}.role",
            "an answerer that speaks through agents.answerer_endpoint cannot be trained; remove one of the two",
        )
        need(
            stage.episode == "decision" or (stage.role == "manager" and stage.objective != "sft"),
            f"stages.{i}.episode",
            "replay is for managers that learn from rewards; demonstrations are single decisions",
        )
        need(stage.replay_turns >= 0, f"stages.{i}.replay_turns", f"must be at least 0, is {stage.replay_turns}")
        need(
            stage.traces is None or stage.objective == "sft",
            f"stages.{i}.traces",
            f"are cloned, so they need objective=sft, not {stage.objective}",
        )
        need(
            stage.traces is None or "://" not in stage.traces,
            f"stages.{i}.traces",
            "are read where the runners are; copy them to a path that every node has",
        )
        need(stage.evidence_reward >= 0, f"stages.{i}.evidence_reward", "must be at least 0")
        need(
            stage.evidence_reward == 0 or (stage.role == "answerer" and config.agents.distillation),
            f"stages.{i}.evidence_reward",
            "pays the selection of an answerer; it needs role=answerer and agents.distillation=true",
        )
        need(
            not stage.shuffle_rewards
            or (stage.objective != "sft" and (stage.group_size or config.rollout.group_size) > 1),
            f"stages.{i}.shuffle_rewards",
            "deals rewards anew within a group; it needs another objective than sft, and a group_size above 1",
        )
        need(stage.epochs >= 1, f"stages.{i}.epochs", f"must be at least 1, is {stage.epochs}")
    _validate_algo(config, need)
    for name in config.evaluation.systems:
        try:
            get_system(name)
        except MemR1Error as error:
            raise MemR1Error(f"{source}: {error}") from None
    r = config.rollout
    compares = not config.stages or any(s.objective == "grpo" and s.group_size == 0 for s in config.stages)
    need(
        r.group_size >= (2 if compares else 1),
        "rollout.group_size",
        f"must be at least 2, is {r.group_size}: GRPO compares a rollout with others of its group",
    )
    for section, names in AT_LEAST_ONE.items():
        for name in names:
            value = getattr(getattr(config, section), name)
            need(value >= 1, f"{section}.{name}", f"must be at least 1, is {value}")
    need(r.parts_per_runner >= 1, "rollout.parts_per_runner", f"must be at least 1, is {r.parts_per_runner}")
    need(r.push_timeout_s > 0, "rollout.push_timeout_s", f"must be above 0, is {r.push_timeout_s}")
    need(r.resample_rounds >= 0, "rollout.resample_rounds", f"must be at least 0, is {r.resample_rounds}")
    need(r.max_staleness in (0, 1), "rollout.max_staleness", f"must be 0 or 1, is {r.max_staleness}")
    need(
        r.max_staleness == 0 or config.algo.importance_cap > 0,
        "rollout.max_staleness",
        "1 needs algo.importance_cap above 0: without the correction, groups played with older weights bias the update",
    )
    need(
        r.weight_transfer != "collective" or r.engine == "transformers",
        "rollout.weight_transfer",
        "collective needs rollout.engine=transformers; vLLM loads its weights from the CPU",
    )
    need(
        0 < r.vllm_memory_fraction <= 1,
        "rollout.vllm_memory_fraction",
        f"must be above 0 and at most 1, is {r.vllm_memory_fraction}",
    )
    need(r.temperature > 0, "rollout.temperature", f"must be above 0, is {r.temperature}; evaluation is greedy anyway")
    need(r.max_prompt_tokens >= 64, "rollout.max_prompt_tokens", f"must be at least 64, is {r.max_prompt_tokens}")
    need(
        config.agents.extractor_endpoint is None or config.agents.extractor == "llm",
        "agents.extractor_endpoint",
        "needs agents.extractor=llm; nothing else asks a model for facts",
    )
    generated = config.data.kind == "factworld"
    need(generated or config.data.path is not None, "data.path", f"{config.data.kind} needs a file to read")
    need(config.data.window >= 0, "data.window", f"must be at least 0, is {config.data.window}")
    need(config.seed >= 0, "seed", f"must be at least 0, is {config.seed}")
    need(config.model.dtype in ("auto", "float32", "bfloat16"), "model.dtype", "must be auto, float32 or bfloat16")
    shown = config.evaluation.retrieval_top_k
    need(shown >= 0, "evaluation.retrieval_top_k", f"must be at least 0, is {shown}; 0 takes memory.answerer_top_k")
    need(bool(config.evaluation.systems), "evaluation.systems", "names no system; see `memr1 eval --list-systems`")
    for i, stage in enumerate(config.stages):
        need(stage.warmup_steps >= 0, f"stages.{i}.warmup_steps", f"must be at least 0, is {stage.warmup_steps}")
        need(
            stage.prompts_per_step >= 0,
            f"stages.{i}.prompts_per_step",
            f"must be at least 0, is {stage.prompts_per_step}; 0 takes rollout.prompts_per_step",
        )
        need(
            stage.group_size == 0 or stage.group_size >= (2 if stage.objective == "grpo" else 1),
            f"stages.{i}.group_size",
            f"must be 0 or at least 2, is {stage.group_size}",
        )
        plays = (stage.prompts_per_step or r.prompts_per_step) * (stage.group_size or r.group_size)
        sequences = stage.examples_per_step if stage.objective == "sft" else plays
        need(
            sequences >= config.learner.num_learners,
            "learner.num_learners",
            f"is {config.learner.num_learners}, and a step of stages.{i} has {sequences} sequences: some learners "
            "would never have any. Take fewer, or larger batches",
        )
    need(config.learner.zero_stage in (0, 1, 2, 3), "learner.zero_stage", "must be 0, 1, 2 or 3")
    need(
        config.learner.zero_stage > 0 or not config.learner.offload_optimizer,
        "learner.offload_optimizer",
        "needs learner.zero_stage of at least 1",
    )
    need(0 <= config.memory.pressure < 1, "memory.pressure", f"must be in [0, 1), is {config.memory.pressure}")
    for name in ("runners", "learners", "embedders"):
        claim = getattr(config.placement, name)
        for resource in ("cpus", "gpus"):
            amount = getattr(claim, resource)
            key = f"placement.{name}.{resource}"
            need(amount is None or amount >= 0, key, f"must be at least 0, is {amount}")
            whole = amount is None or amount <= 1 or amount == int(amount)
            need(whole, key, f"must be whole above 1, is {amount}: Ray takes fractions of one only")
    need(config.stuck_after_s >= 0, "stuck_after_s", f"must be at least 0, is {config.stuck_after_s}")
    need(config.placement.wait_s >= 0, "placement.wait_s", f"must be at least 0, is {config.placement.wait_s}")
    for name in ("max_runners", "num_embedders"):
        amount = getattr(config.placement, name)
        need(amount >= 0, f"placement.{name}", f"must be at least 0, is {amount}")
    need(
        config.learner.max_grad_norm > 0, "learner.max_grad_norm", f"must be above 0, is {config.learner.max_grad_norm}"
    )


def _validate_algo(config: Config, need: Callable[[bool, str, str], None]) -> None:
    """The part of `validate` that concerns objectives and their settings."""
    algo, critic = config.algo, config.algo.critic
    need(0 <= algo.clip_low < 1, "algo.clip_low", f"must be in [0, 1), is {algo.clip_low}")
    for name in ("clip_high", "kl_coef", "importance_cap"):
        value = getattr(algo, name)
        need(value >= 0, f"algo.{name}", f"must be at least 0, is {value}")
    need(algo.dual_clip == 0 or algo.dual_clip > 1, "algo.dual_clip", f"must be 0 or above 1, is {algo.dual_clip}")
    need(
        algo.ratio == "token" or algo.aggregation == "sequence-mean",
        "algo.ratio",
        "sequence needs algo.aggregation=sequence-mean: GSPO gives every sequence one weight",
    )
    need(critic.learning_rate > 0, "algo.critic.learning_rate", f"must be above 0, is {critic.learning_rate}")
    need(critic.warmup_steps >= 0, "algo.critic.warmup_steps", f"must be at least 0, is {critic.warmup_steps}")
    need(critic.clip >= 0, "algo.critic.clip", f"must be at least 0, is {critic.clip}")
    for name in ("discount", "gae_lambda"):
        value = getattr(critic, name)
        need(0 <= value <= 1, f"algo.critic.{name}", f"must be in [0, 1], is {value}")
    dropout = config.model.lora.dropout if config.model.weights == "lora" else 0.0
    for i, stage in enumerate(config.stages):
        need(
            stage.objective == "sft" or dropout == 0,
            "model.lora.dropout",
            f"is {dropout}, and stages.{i} is {stage.objective}: log-probabilities of the trainer would not be those "
            "that the rollout sampled from. Set it to 0, or give the sft stages a run of their own",
        )
        need(
            stage.episode == "decision" or algo.ratio == "token",
            "algo.ratio",
            f"sequence does not go with the replay of stages.{i}: it is rewarded as a whole, and GSPO's ratio is that "
            "of what is rewarded",
        )
        if stage.objective == "ppo":
            need(
                critic.warmup_steps < stage.steps,
                "algo.critic.warmup_steps",
                f"is {critic.warmup_steps} and stages.{i}.steps is {stage.steps}: the policy would never be updated",
            )
            need(
                algo.ratio == "token",
                "algo.ratio",
                f"sequence does not go with the ppo of stages.{i}: a critic gives every token its own advantage",
            )
        elif stage.objective != "sft":
            need(
                stage.objective == "grpo" or stage.epochs == 1,
                f"stages.{i}.epochs",
                f"must be 1 with reinforce, is {stage.epochs}: nothing would bound the passes after the first",
            )
            need(
                algo.kl_in == "loss",
                "algo.kl_in",
                f"reward goes with ppo only, and stages.{i} is {stage.objective}; set it to loss",
            )
