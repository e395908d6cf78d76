"""What a run takes, before it is started: bytes on each device, tokens and operations in each step. Pure arithmetic.

Weights, gradients and optimizer states are exact for what memr1 holds; activations and key-value caches are upper
bounds for full batches. What libraries and the allocator take on top (1 to 3 GiB on a GPU) is not in it.
"""

from __future__ import annotations

from dataclasses import dataclass

from memr1.config import MAX_REFILL, Config, StageConfig
from memr1.evaluation.systems import get_system
from memr1.models.architectures import Architecture

Bytes = dict[str, int]
"""What is held -> bytes."""


def learner_bytes(arch: Architecture, config: Config, width: int, scored_share: float = 1.0) -> Bytes:
    """Bytes of one learner rank.

    width: bytes of a weight, 2 or 4. scored_share: share of the tokens of a micro-batch that are completions.
    Mixed precision with AdamW takes 2 + 4 + 12 bytes for a trained weight, and the ZeRO stages divide the 12, the 4 of
    the gradient and the 2 of the weight by the ranks, in this order (ZeRO, arXiv 1910.02054, section 3.1, where
    gradients take 2: here those of micro-batches are added up in float32).
    """
    learner, ranks = config.learner, config.learner.num_learners
    optimizer_ranks, gradient_ranks, weight_ranks = (ranks if learner.zero_stage >= s else 1 for s in (1, 2, 3))
    measures_kl = not config.stages or any(s.objective != "sft" for s in config.stages)
    reference = 2 if config.algo.kl_coef > 0 and measures_kl else 1
    if config.model.weights == "lora":
        trained, trained_width = arch.adapter_parameters, 4  # adapters are float32 whatever the base is
        frozen = arch.parameters * width + (reference - 1) * trained * 4
    else:
        trained, trained_width = arch.parameters, width
        frozen = (reference - 1) * arch.parameters * width
    states = 8 if trained_width == 4 else 12  # Adam's two moments, and a float32 copy of low-precision weights
    weights, gradients = trained * trained_width // weight_ranks, trained * 4 // gradient_ranks
    optimizer = 0 if learner.offload_optimizer else trained * states // optimizer_ranks
    own_critic = config.algo.critic.backbone == "own" and any(s.objective == "ppo" for s in config.stages)
    critic = weights + gradients + optimizer  # as large as what is trained, and trained as it is
    if config.model.weights == "lora" and learner.zero_stage == 3:
        critic += arch.parameters * width  # two engines cannot cut one base into shards
    tokens = learner.max_tokens_per_microbatch
    layer = tokens * _layer_numbers(arch) * width
    kept = tokens * arch.hidden * width * arch.layers + layer if learner.gradient_checkpointing else layer * arch.layers
    return {
        "frozen weights": frozen,
        "trained weights": weights,
        "gradients": gradients,
        "optimizer": optimizer,
        "critic": critic * own_critic,
        "activations": kept + tokens * tokens * width,  # and the attention mask of a packed row
        # logits as the model gives them, and their log-softmax and gradient in float32
        "logits": int(tokens * scored_share) * arch.vocabulary * (width + 8),
    }


def runner_bytes(arch: Architecture, config: Config, width: int) -> Bytes:
    """Bytes of one runner: the weights of both roles, and the key-value cache of a full batch."""
    tokens = config.rollout.max_tokens_per_batch
    if config.model.weights == "lora":
        weights = arch.parameters * width + 2 * arch.adapter_parameters * 4
    else:
        extracts = config.agents.extractor == "llm" and config.agents.extractor_endpoint is None
        base = extracts or any(get_system(name).asks_base for name in config.evaluation.systems)
        weights = (2 + base) * arch.parameters * width
    return {
        "weights": weights,
        "key-value cache": tokens * arch.layers * arch.kv_width * width,
        "activations": tokens * _layer_numbers(arch) * width,
    }


def _layer_numbers(arch: Architecture) -> int:
    """Numbers that the backward pass of one layer wants of a token: inputs of norms and projections, queries, keys and
    values, and four of the width of the gated feed-forward."""
    return 8 * arch.hidden + arch.kv_width + 4 * arch.inner


@dataclass(frozen=True)
class StepTokens:
    """Tokens of one optimizer step, at most."""

    prefilled: int
    """Prompt tokens that are read: a group's prompt once."""
    generated: int
    trained: int
    """Completion tokens with a gradient."""


def step_tokens(
    stage: StageConfig,
    config: Config,
    prompt: int,
    answer_prompt: int,
    demonstration: int,
    decisions: int = 1,
    questions: int | None = None,
) -> StepTokens:
    """Tokens of a step of a stage.

    prompt: tokens of a prompt of the stage's role. answer_prompt: of the answerer, who judges decisions.
    demonstration: completion tokens of a demonstration; used by supervised stages.
    decisions, questions: of one episode of the manager; `rollout.questions_per_decision` questions where None.
    """
    rollout = config.rollout
    if stage.objective == "sft":
        return StepTokens(0, 0, stage.examples_per_step * demonstration)
    prompts = (stage.prompts_per_step or rollout.prompts_per_step) * (1 + MAX_REFILL * rollout.resample_rounds)
    plays = prompts * (stage.group_size or rollout.group_size)
    if stage.role == "answerer":
        written = plays * rollout.answer_max_new_tokens
        return StepTokens(prompts * prompt, written, written)
    written = plays * decisions * rollout.manager_max_new_tokens
    # after its first decision, every member of a replay has a bank, and so a prompt, of its own
    read = prompts * prompt + plays * (decisions - 1) * prompt
    judged = plays * (rollout.questions_per_decision if questions is None else questions)
    return StepTokens(read + judged * answer_prompt, written + judged * rollout.answer_max_new_tokens, written)


def forward_operations(arch: Architecture, tokens: int, pairs: int, scored: int, adapter: bool = False) -> int:
    """Floating-point operations of a forward pass; a multiplication and an addition are two.

    tokens: that pass the layers. pairs: of a query and a key that attention computes, over all rows. scored: tokens
    with logits. adapter: whether an adapter is computed beside the weights (a merged one costs nothing).
    Norms, activations and the softmax are not counted, as is usual (PaLM, arXiv 2204.02311, appendix B).
    """
    weights = arch.linear_parameters + (arch.adapter_parameters if adapter else 0)
    attention = 4 * pairs * arch.query_width * arch.layers  # scores, and the sum of the values
    return 2 * tokens * weights + attention + 2 * scored * arch.hidden * arch.vocabulary


def update_operations(arch: Architecture, tokens: int, pairs: int, scored: int, lora: bool) -> int:
    """Floating-point operations of a forward and a backward pass; arguments as in `forward_operations`.

    The backward pass takes as much again for the gradient of the activations, and again for that of the weights, which
    with LoRA are those of the adapter alone; without it, of all linear layers and the head.
    """
    forward = forward_operations(arch, tokens, pairs, scored, adapter=lora)
    weights = arch.adapter_parameters if lora else arch.linear_parameters
    head = 0 if lora else 2 * scored * arch.hidden * arch.vocabulary
    return 2 * forward + 2 * tokens * weights + head


def packed_pairs(prompt: int, completions: int, completion: int) -> int:
    """Pairs of one row of the update that holds a prompt and its completions: the whole square, masked or not."""
    return (prompt + completions * completion) ** 2
