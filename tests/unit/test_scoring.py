"""The scorer against the plain forward of transformers, on several architectures. Layouts are in test_packing.py."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from memr1.learner.packing import TrainSequence, plan_microbatches
from memr1.learner.scoring import CompletionScorer, attention_mask, shared_prefixes_are_exact, to_tensors
from memr1.models.attention import attention_kinds
from tests.unit.small_models import ATTENTION_MODELS, VOCAB, build, plain_logprobs

SEQUENCES = [
    TrainSequence((5, 9, 11, 40, 3, 8, 20, 31, 7, 50), (6, 17, 33, 1), (True,) * 4),
    TrainSequence((5, 9, 11, 40, 3, 8, 20, 31, 7, 50), (44,), (True,)),
    TrainSequence((12, 13), (14, 15, 16, 17, 18, 19, 20, 21, 22), (True,) * 9),
]


def scored(scorer: CompletionScorer, temperature: float, share: bool) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(log-probabilities, entropies) of SEQUENCES, in their order."""
    (batches,) = plan_microbatches(
        SEQUENCES, num_ranks=1, max_tokens_per_microbatch=10**6, pad_id=2, share_prefixes=share
    ).ranks
    found = {}
    for batch in batches:
        logprobs, entropy = scorer(**to_tensors(batch, "cpu"), temperature=temperature)
        for s in set(batch.sequence_ids.tolist()):
            own = torch.from_numpy(batch.sequence_ids == s)
            found[tuple(batch.targets[own.numpy()].tolist())] = (logprobs[own], entropy[own])
    return [found[s.completion_ids] for s in SEQUENCES]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("architecture", [*ATTENTION_MODELS, "granite", "gpt2", "mamba"])
def test_scores_equal_log_softmax_of_the_plain_forward(architecture: str, temperature: float) -> None:
    model = build(architecture)
    found = scored(CompletionScorer(model), temperature, share=architecture != "mamba")
    for s, (logprobs, entropy) in zip(SEQUENCES, found, strict=True):
        expected = plain_logprobs(model, s.prompt_ids, s.completion_ids, temperature)
        assert torch.allclose(logprobs, expected, atol=1e-4)
        ids = torch.tensor([s.prompt_ids + s.completion_ids])
        logits = model(input_ids=ids, use_cache=False).logits[0, len(s.prompt_ids) - 1 : -1]
        assert torch.allclose(
            entropy, torch.distributions.Categorical(logits=logits / temperature).entropy(), atol=1e-4
        )
        assert not entropy.requires_grad


@pytest.mark.parametrize(
    ("architecture", "lean"), [*[(a, a != "gemma2") for a in ATTENTION_MODELS], ("granite", False)]
)
def test_models_that_cap_or_scale_their_logits_are_scored_by_their_full_forward(architecture: str, lean: bool) -> None:
    assert CompletionScorer(build(architecture)).lean is lean


def test_a_soft_cap_is_noticed_even_where_the_logits_are_too_small_to_show_it() -> None:
    model = build("gemma2")
    with torch.no_grad():
        model.lm_head.weight.mul_(1e-3)
    assert not CompletionScorer(model).lean


def test_the_lean_path_projects_scored_positions_only_and_equals_the_full_path() -> None:
    model = build("llama")
    scorer = CompletionScorer(model)
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda _m, args, _out: seen.append(args[0].numel() // args[0].shape[-1]))
    lean = scored(scorer, 0.7, share=True)
    assert sum(seen) == sum(len(s.completion_ids) for s in SEQUENCES) == 14
    scorer.lean = False
    full = scored(scorer, 0.7, share=True)
    assert sum(seen) == 14 + 2 * (10 + 3)  # both rows in one batch, as wide as the longer one
    for (a, _), (b, _) in zip(lean, full, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_shared_prompts_and_the_lean_path_are_found_exact_in_both_precisions(
    architecture: str, dtype: torch.dtype
) -> None:
    scorer = CompletionScorer(build(architecture).to(dtype))
    assert scorer.lean
    assert scorer.packs
    assert shared_prefixes_are_exact(scorer, pad_id=2)


@pytest.mark.parametrize("architecture", ["gemma2", "mistral", "gpt2"])
def test_shared_prompts_are_exact_with_sliding_windows_and_learned_positions(architecture: str) -> None:
    assert shared_prefixes_are_exact(CompletionScorer(build(architecture)), pad_id=2)


def test_a_recurrent_model_falls_back_to_plain_rows_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        scorer = CompletionScorer(build("mamba"))
    assert "MambaForCausalLM does not take a custom attention mask" in caplog.text
    assert not shared_prefixes_are_exact(scorer, pad_id=2)
    pair = [TrainSequence((5, 6, 7), completion, (True, True)) for completion in ((8, 9), (10, 11))]
    (batches,) = plan_microbatches(pair, num_ranks=1, max_tokens_per_microbatch=64, pad_id=2).ranks
    with pytest.raises(ValueError, match="share_prefixes=False"):
        scorer(**to_tensors(batches[0], "cpu"))


def test_a_model_that_ignores_the_mask_is_caught_by_the_probe(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import memr1.learner.scoring as scoring

    scorer = CompletionScorer(build("llama"))

    def causal_only(segments: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return attention_mask(torch.zeros_like(segments), *args, **kwargs)

    monkeypatch.setattr(scoring, "attention_mask", causal_only)
    assert not shared_prefixes_are_exact(scorer, pad_id=2)
    assert "shared prompts change log-probabilities" in caplog.text


def test_attention_kinds_tell_what_a_cache_and_a_mask_can_describe() -> None:
    full, sliding = "full_attention", "sliding_attention"
    expected = {
        "llama": {full}, "qwen2": {full}, "gpt2": {full}, "mistral": {sliding}, "gemma2": {full, sliding},
        "mamba": set(),
    }  # fmt: skip
    assert {name: set(attention_kinds(build(name))) for name in expected} == expected


def test_attention_mask_lets_a_completion_see_the_prompt_and_itself_only() -> None:
    segments = torch.tensor([[0, 0, 1, 1, 2, -1]])
    seen = attention_mask(segments, torch.float32)[0, 0] == 0
    assert seen.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 1],
    ]
    positions = torch.tensor([[0, 1, 2, 3, 2, 0]])
    near = attention_mask(segments, torch.float32, position_ids=positions, window=2)[0, 0] == 0
    assert near[:5].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 1, 0, 0, 1, 0],
    ]


def test_nothing_to_score_gives_empty_results_that_still_reach_the_weights() -> None:
    model = build("llama")
    model.requires_grad_(True)
    scorer = CompletionScorer(model)
    empty = torch.zeros(0, dtype=torch.long)
    one = torch.zeros((1, 1), dtype=torch.long)
    logprobs, entropy = scorer(one, one, one, empty, empty, empty)
    assert logprobs.shape == entropy.shape == (0,)
    (logprobs.sum() * 0.0).backward()
    assert float(model.lm_head.weight.grad.abs().sum()) == 0.0


def test_every_token_of_the_vocabulary_is_covered() -> None:
    model = build("llama")
    scorer = CompletionScorer(model)
    (batches,) = plan_microbatches(
        [TrainSequence((5, 6), (t,), (True,)) for t in range(VOCAB)],
        num_ranks=1, max_tokens_per_microbatch=10**6, pad_id=2,
    ).ranks  # fmt: skip
    with torch.no_grad():
        logprobs, _ = scorer(**to_tensors(batches[0], "cpu"))
    assert float(logprobs.exp().sum()) == pytest.approx(1.0, abs=1e-5)
