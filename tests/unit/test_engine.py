"""The transformers engine against plain forward passes and `generate`. Loading weights is in test_weight_update.py."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers.cache_utils import DynamicCache

from memr1.errors import MemR1Error
from memr1.learner.packing import TrainSequence, plan_microbatches
from memr1.learner.scoring import CompletionScorer, to_tensors
from memr1.models.adapters import PolicyModel
from memr1.rollout import decode, prefill
from memr1.rollout.engine import Completion, GenerationRequest, SamplingParams
from memr1.rollout.kv_cache import RoomyCache, _RoomyLayer
from memr1.rollout.prefill import common_prefix_length, families
from memr1.rollout.transformers_engine import TransformersEngine
from tests.unit.small_models import ATTENTION_MODELS, VOCAB, build, plain_logprobs

EOS = (1, 7, 23, 41)
PAD = 2


def make_engine(architecture: str = "llama", **options: Any) -> TransformersEngine:
    """An engine whose `answerer` differs from its base in every adapted layer."""
    policies = PolicyModel.create(build(architecture), ("manager", "answerer"))
    torch.manual_seed(1)
    noisy = {n: w + torch.randn_like(w) * 0.2 for n, w in policies.weights("answerer").items()}
    policies.load_weights("answerer", noisy)
    return TransformersEngine(policies, EOS, PAD, **options)


def request(prompt: tuple[int, ...], *, n: int = 12, t: float = 0.0, seed: int = 0, policy: str = "answerer") -> Any:
    return GenerationRequest(prompt, policy, SamplingParams(n, t, seed))


def mixed_requests(temperature: float | None) -> list[GenerationRequest]:
    """Prompts of 3 to 34 tokens, five behind a common beginning of 20, two of them asked for three times.

    temperature: None takes 0 and 1 in turn.
    """
    rng = random.Random(3)
    beginning = tuple(rng.randrange(3, VOCAB) for _ in range(20))
    prompts = [beginning + tuple(rng.randrange(3, VOCAB) for _ in range(n)) for n in (1, 3, 8, 8, 14)]
    prompts += [tuple(rng.randrange(3, VOCAB) for _ in range(n)) for n in (3, 9)]
    requests = [
        request(p, n=10 + i, t=float(i % 2) if temperature is None else temperature, seed=i)
        for i, p in enumerate(prompts + prompts[:2] + prompts[:2])
    ]
    rng.shuffle(requests)
    return requests


def same(a: list[Completion], b: list[Completion]) -> None:
    for x, y in zip(a, b, strict=True):
        assert x.ids == y.ids
        assert x.finish_reason == y.finish_reason
        assert x.logprobs == pytest.approx(y.logprobs, abs=1e-4)


# -- batching ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", [*ATTENTION_MODELS, "gpt2"])
def test_what_a_request_gets_does_not_depend_on_its_batch(architecture: str) -> None:
    engine, requests = make_engine(architecture), mixed_requests(None)
    together = engine.generate(requests)
    same(together, [engine.generate([r])[0] for r in requests])
    same(together, engine.generate(requests[::-1])[::-1])
    engine.max_tokens_per_batch = 60
    same(together, engine.generate(requests))


@pytest.mark.parametrize("architecture", ATTENTION_MODELS)
def test_a_common_beginning_of_prompts_changes_nothing(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(architecture)
    requests = [r for r in mixed_requests(1.0) if len(r.prompt_ids) > 20]
    monkeypatch.setattr(prefill, "MIN_COMMON_PREFIX_TOKENS", 1)
    with_prefix = engine.generate(requests)
    computed = engine.pop_timings()["prefill_tokens"]
    monkeypatch.setattr(prefill, "MIN_COMMON_PREFIX_TOKENS", 10**9)
    same(with_prefix, engine.generate(requests))
    assert engine.pop_timings()["prefill_tokens"] == 5 * 20 + 34
    # layers with a sliding window would count the padding behind the beginning, so they do without
    assert computed == (134 if architecture in ("mistral", "gemma2") else 20 + 34)


def family_requests() -> list[GenerationRequest]:
    """Behind one beginning: five families of two to four prompts with beginnings of their own, and three loners; greedy
    and sampled in turn."""
    rng = random.Random(5)

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, VOCAB) for _ in range(n))

    beginning, prompts = tokens(20), []
    for size in (2, 3, 4, 2, 3):
        memories = tokens(rng.randrange(22, 30))
        prompts += [beginning + memories + tokens(rng.randrange(1, 6)) for _ in range(size)]
    prompts += [beginning + tokens(n) for n in (2, 30, 40)]
    requests = [request(p, n=8, t=float(i % 2), seed=i) for i, p in enumerate(prompts + prompts[:3])]
    rng.shuffle(requests)
    return requests


@pytest.mark.parametrize("architecture", ATTENTION_MODELS)
def test_families_of_prompts_are_computed_once_and_change_nothing(architecture: str) -> None:
    engine, requests = make_engine(architecture), family_requests()
    together = engine.generate(requests)
    computed = engine.pop_timings()["prefill_tokens"]
    same(together, [engine.generate([r])[0] for r in requests])
    distinct = {r.prompt_ids for r in requests}
    if architecture in ("mistral", "gemma2"):  # sliding windows
        assert computed == sum(map(len, distinct))
    else:
        found = families(sorted(distinct))
        own = sum(len(f[0]) - 20 if len(f) == 1 else common_prefix_length(f) - 20 for f in found)
        own += sum(len(p) - common_prefix_length(f) for f in found if len(f) > 1 for p in f)
        assert computed == 2 * 20 + own < 0.5 * sum(map(len, distinct))  # two batches: families and loners
    engine.pop_timings()
    engine.max_tokens_per_batch = 60 * 9  # two or three families at a time, each of them whole
    same(together, engine.generate(requests))
    if architecture not in ("mistral", "gemma2"):
        assert engine.pop_timings()["prefill_tokens"] < 0.6 * sum(map(len, distinct))
    engine.max_tokens_per_batch = 120  # less than a family takes
    same(together, engine.generate(requests))


def test_families_are_used_only_where_they_save_work_and_hardly_widen_the_cache() -> None:
    common, long, short = (tuple(range(n, n + 400)) for n in (1000, 2000, 3000))
    alike = [[common[:40] + long[:200] + (i,) for i in range(4)], [common[:40] + short[:190] + (i,) for i in range(4)]]
    assert prefill._families_pay(alike, shared=40)
    # prefixes of 300 and remainders of 200 would be padded to rows of 500, where no prompt is longer than 310
    uneven = [
        [common[:40] + long[:60] + (i, *range(200)) for i in range(8)],
        [common[:40] + short[:300] + (i, *range(9)) for i in range(8)],
    ]
    assert not prefill._families_pay(uneven, shared=40)
    assert not prefill._families_pay(alike[:1], shared=40)
    assert not prefill._families_pay([*alike, [common]], shared=40)


def test_families_join_while_that_saves_tokens() -> None:
    a, b = tuple(range(100, 140)), tuple(range(200, 240))
    first, second, third = (*a, 1, 1), (*a, 1, 2), (*a, 2)
    assert families([b, third, first, second]) == [[first, second, third], [b]]
    # a neighbour that shares 16 of the 41 tokens that two share would spoil the family: 2 x 16 < 41
    neighbour = (*a[:16], 999)
    assert families([neighbour, first, second, b]) == [[first, second], [neighbour], [b]]
    assert families([(3, 4)]) == [[(3, 4)]]
    beginning = tuple(range(300, 330))
    assert families([beginning + a, beginning + b]) == [[beginning + a], [beginning + b]], (
        "what all share is no family's"
    )


def test_dropping_finished_rows_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, requests = make_engine(), mixed_requests(1.0)
    monkeypatch.setattr(decode, "COMPACT_BELOW", 0.0)
    never = engine.generate(requests)
    monkeypatch.setattr(decode, "COMPACT_BELOW", 1.0)
    always = engine.generate(requests)
    same(never, always)
    assert len({len(c.ids) for c in never}) > 2  # rows did finish at different times


def test_batches_stay_within_the_token_budget_also_when_short_prompts_have_much_to_write() -> None:
    engine = make_engine(max_tokens_per_batch=100)
    requests = [
        request((3,) * 5, n=40),
        *[request((4, i), n=1) for i in range(2)],
        *[request((5,) * (6 + i), n=1) for i in range(12)],
    ]
    prompts: dict[tuple[int, ...], list[int]] = {}
    for i, r in enumerate(requests):
        prompts.setdefault(r.prompt_ids, []).append(i)
    batches = engine._batches(requests, prompts)
    for batch in batches:
        members = [prompts[p] for family in batch for p in family]
        rows = sum(len(m) for m in members)
        width = max(len(requests[i].prompt_ids) + requests[i].sampling.max_new_tokens for m in members for i in m)
        assert rows * width <= 100
    assert sorted(p for batch in batches for family in batch for p in family) == sorted(prompts)


def test_identical_greedy_requests_are_decoded_once() -> None:
    engine = make_engine()
    one = engine.generate([request((5, 6, 7))])
    alone = engine.pop_timings()
    assert engine.generate([request((5, 6, 7))] * 4) == one * 4
    together = engine.pop_timings()
    for counted in ("prefill_tokens", "decode_computed_tokens"):
        assert together[counted] == alone[counted]
    assert together["decode_tokens"] == 4 * alone["decode_tokens"]


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_members_of_a_group_are_sampled_as_they_would_be_alone_and_computed_together_until_they_part(
    temperature: float,
) -> None:
    engine = make_engine(decode=lambda ids: "".join(f"<{i}>" for i in ids))
    group = [request((5, 6, 7, 8), n=3 + s % 9, t=temperature, seed=s) for s in range(24)]
    group += [request((9, 6), n=8, t=temperature + 0.5 * (s % 2), seed=s) for s in range(6)] + [request((9, 6))] * 2
    stopping = [replace(r, sampling=replace(r.sampling, stop=("<30>", "<31>"))) for r in group[:8]]
    requests = [*group, *stopping]
    alone = [engine.generate([r])[0] for r in requests]
    apart = engine.pop_timings()
    same(engine.generate(requests), alone)
    together = engine.pop_timings()
    assert together["decode_tokens"] == apart["decode_tokens"]
    assert together["decode_computed_tokens"] < (0.6 if temperature < 1 else 0.95) * apart["decode_computed_tokens"]


# -- what is generated ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", [*ATTENTION_MODELS, "gpt2"])
def test_greedy_generation_equals_generate_of_transformers(architecture: str) -> None:
    engine, requests = make_engine(architecture), mixed_requests(0.0)
    found = engine.generate(requests)
    with engine.policies.use("answerer") as model:
        for r, completion in zip(requests, found, strict=True):
            prompt = torch.tensor([r.prompt_ids])
            whole = model.generate(
                input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
                max_new_tokens=r.sampling.max_new_tokens, eos_token_id=list(EOS), pad_token_id=PAD,
            )  # fmt: skip
            assert list(completion.ids) == whole[0, len(r.prompt_ids) :].tolist()


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.6])
@pytest.mark.parametrize("architecture", [*ATTENTION_MODELS, "gpt2"])
def test_logprobs_are_those_of_a_plain_forward_at_the_sampling_temperature(
    architecture: str, temperature: float
) -> None:
    engine, requests = make_engine(architecture), mixed_requests(temperature)
    found = engine.generate(requests)
    with engine.policies.use("answerer") as model, torch.no_grad():
        for r, c in zip(requests, found, strict=True):
            expected = plain_logprobs(model, r.prompt_ids, c.ids, temperature or 1.0)
            assert c.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("architecture", ATTENTION_MODELS)
def test_the_trainer_gives_sampled_tokens_the_logprobs_of_the_rollout(architecture: str, temperature: float) -> None:
    engine, requests = make_engine(architecture), mixed_requests(temperature)
    sequences = [
        TrainSequence(r.prompt_ids, c.ids, (True,) * len(c.ids), 1.0, c.logprobs)
        for r, c in zip(requests, engine.generate(requests), strict=True)
    ]
    (batches,) = plan_microbatches(sequences, num_ranks=1, max_tokens_per_microbatch=150, pad_id=PAD).ranks
    scored = 0
    with engine.policies.use("answerer") as model, torch.no_grad():
        scorer = CompletionScorer(model)
        for batch in batches:
            logprobs, _ = scorer(**to_tensors(batch, "cpu"), temperature=temperature)
            assert batch.rollout_logprobs is not None
            assert np.abs(logprobs.numpy() - batch.rollout_logprobs).max() < 1e-4
            scored += len(logprobs)
    assert scored == sum(len(s.completion_ids) for s in sequences)


def test_the_built_in_random_model_generates_what_transformers_generates(tiny_random: Any) -> None:
    policies = PolicyModel.create("tiny-random", ("answerer",), dtype="float32", device="cpu")
    engine = TransformersEngine(policies, (258,), 259)
    prompt = tuple(b"<|im_start|>user\nWhere does Ada live?")
    (found,) = engine.generate([request(prompt, n=24)])
    with policies.use("answerer") as model:
        whole = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24, pad_token_id=259)
    assert list(found.ids) == whole[0, len(prompt) :].tolist()


def test_the_end_token_is_included_and_the_reason_is_told() -> None:
    found = make_engine().generate(mixed_requests(1.0) + mixed_requests(0.8))
    reasons = {c.finish_reason for c in found}
    assert reasons == {"stop", "length"}
    for c in found:
        assert (c.ids[-1] in EOS) == (c.finish_reason == "stop")
        assert not set(c.ids[:-1]) & set(EOS)
        assert len(c.logprobs) == len(c.ids)


def test_every_request_has_its_own_limit() -> None:
    engine = make_engine()
    engine.eos_ids = (VOCAB,)  # never sampled
    requests = [request((5, 6, 7), n=n, t=1.0, seed=11) for n in (1, 2, 5, 9)]
    found = engine.generate(requests)
    assert [len(c.ids) for c in found] == [1, 2, 5, 9]
    assert all(c.finish_reason == "length" for c in found)
    assert all(found[-1].ids[: len(c.ids)] == c.ids for c in found)
    greedy = engine.generate([request((5, 6, 7), n=n) for n in (4, 2, 4)])
    assert [len(c.ids) for c in greedy] == [4, 2, 4]


def test_an_end_token_at_the_limit_counts_as_a_stop() -> None:
    engine = make_engine()
    (free,) = engine.generate([request((5, 6, 7), n=4)])
    engine.eos_ids = (free.ids[2],)
    cut = free.ids.index(free.ids[2]) + 1
    (found,) = engine.generate([request((5, 6, 7), n=cut)])
    assert (found.ids, found.finish_reason) == (free.ids[:cut], "stop")


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_follow_the_distribution_of_the_model(temperature: float) -> None:
    from scipy.stats import chi2

    engine, n = make_engine(max_tokens_per_batch=10**6), 6000
    prompt = (5, 9, 11)
    found = engine.generate([request(prompt, n=1, t=temperature, seed=s) for s in range(n)])
    with engine.policies.use("answerer") as model, torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt])).logits[0, -1]
    p = (logits / temperature).softmax(-1).double().numpy()
    counts = np.bincount([c.ids[0] for c in found], minlength=VOCAB)
    big = p * n >= 5
    expected = np.append(p[big] * n, p[~big].sum() * n)
    observed = np.append(counts[big], counts[~big].sum())
    statistic = float(((observed - expected) ** 2 / expected).sum())
    assert big.sum() > 10
    assert statistic < chi2.ppf(0.9999, df=len(expected) - 1)
    wrong = (logits / (temperature * 1.3)).softmax(-1).double().numpy()  # the test would notice another temperature
    expected = np.append(wrong[big] * n, wrong[~big].sum() * n)
    assert float(((observed - expected) ** 2 / expected).sum()) > chi2.ppf(0.9999, df=len(expected) - 1)


def test_sampling_never_leaves_the_support_of_the_distribution() -> None:
    p = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0])
    edges = torch.tensor([0.0, 0.2499999, 0.2500001, 1 - 2.0**-53], dtype=torch.float64)
    scores, row_of, greedy = p.log().expand(2, -1), torch.tensor([0, 1, 0, 1]), torch.zeros(4, dtype=torch.bool)
    assert decode._choose(scores, row_of, greedy, edges).tolist() == [1, 1, 3, 3]


def test_seeds_give_different_samples() -> None:
    found = make_engine().generate([request((5, 6, 7), t=1.0, seed=s) for s in range(20)])
    assert len({c.ids for c in found}) > 15


# -- refusals ---------------------------------------------------------------------------------------------------


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="request 1 has an empty prompt"):
        make_engine().generate([request((5,)), request(())])


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(MemR1Error, match="there are base, manager, answerer"):
        make_engine().generate([request((5,), policy="judge")])


@pytest.mark.parametrize(
    "bad", [{"max_new_tokens": 0}, {"max_new_tokens": 1, "temperature": -1.0}, {"max_new_tokens": 1, "seed": -1}]
)
def test_sampling_parameters_without_a_meaning_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="are needed, got"):
        SamplingParams(**bad)


def test_a_recurrent_model_is_refused_instead_of_decoded_without_its_state() -> None:
    policies = PolicyModel.create(build("mamba"), ("answerer",), "full")
    with pytest.raises(MemR1Error, match="MambaForCausalLM has recurrent or other layers"):
        TransformersEngine(policies, EOS, PAD)


# -- the cache --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2"])
def test_roomy_cache_equals_dynamic_cache_bit_for_bit(architecture: str) -> None:
    model = build(architecture)
    logits = {}
    for kind in (DynamicCache, RoomyCache):
        cache: Any = kind()
        g = torch.Generator().manual_seed(0)
        ids = torch.randint(3, VOCAB, (3, 9), generator=g)
        out = []
        with torch.no_grad():
            out.append(model(input_ids=ids, past_key_values=cache, use_cache=True).logits)
            cache.batch_select_indices(torch.tensor([0, 0, 1, 2, 2]))
            if isinstance(cache, RoomyCache):
                cache.make_room(6, 5)
            for step in range(6):
                if step == 3:
                    cache.batch_select_indices(torch.tensor([1, 2, 4]))
                token = torch.randint(3, VOCAB, (3 if step >= 3 else 5, 1), generator=g)
                out.append(model(input_ids=token, past_key_values=cache, use_cache=True).logits)
        assert cache.get_seq_length() == 15
        logits[kind] = out
    for a, b in zip(logits[DynamicCache], logits[RoomyCache], strict=True):
        assert torch.equal(a, b)


def test_room_for_rows_that_part_is_never_set_aside_for_more_of_them_than_there_can_be() -> None:
    model, cache = build("llama"), RoomyCache()
    with torch.no_grad():
        model(input_ids=torch.full((4, 3), 5), past_key_values=cache, use_cache=True)
    cache.make_room(2, 7)
    found = []
    for row in (4, 5, 6):
        cache.copy_rows(torch.tensor([0]), torch.tensor([row]))
        found.append({layer._key_room.shape[0] for layer in cache.layers if isinstance(layer, _RoomyLayer)})
    assert found == [{6}, {6}, {7}], "half again would be 9"


def test_roomy_cache_refuses_more_tokens_than_it_has_room_for() -> None:
    model, cache = build("llama"), RoomyCache()
    with torch.no_grad():
        model(input_ids=torch.tensor([[5, 6, 7]]), past_key_values=cache, use_cache=True)
        cache.make_room(1, 1)
        model(input_ids=torch.tensor([[8]]), past_key_values=cache, use_cache=True)
        with pytest.raises(RuntimeError, match="room for 4 tokens was set aside, 5 are needed"):
            model(input_ids=torch.tensor([[9]]), past_key_values=cache, use_cache=True)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2"])
def test_rows_that_are_copied_go_on_as_the_rows_they_were_copied_from(architecture: str) -> None:
    model, cache = build(architecture), RoomyCache()
    ids = torch.randint(3, VOCAB, (3, 9), generator=torch.Generator().manual_seed(0))
    held = [row.tolist() for row in ids]  # what each row should hold
    moves: list[tuple[list[int], list[int]]] = [([0, 0], [3, 4]), ([], []), ([4, 1], [0, 5]), ([5, 2, 3], [6, 7, 8])]
    with torch.no_grad():
        model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache.make_room(len(moves), 9)
        for step, (sources, targets) in enumerate(moves):
            if targets:
                cache.copy_rows(torch.tensor(sources), torch.tensor(targets))
                parents = [list(held[s]) for s in sources]
                held += [[] for _ in range(max(targets) + 1 - len(held))]
                for target, parent in zip(targets, parents, strict=True):
                    held[target] = parent
            tokens = [3 + (5 * step + row) % (VOCAB - 3) for row in range(len(held))]
            held = [[*row, token] for row, token in zip(held, tokens, strict=True)]
            found = model(input_ids=torch.tensor(tokens)[:, None], past_key_values=cache, use_cache=True).logits[:, -1]
            expected = model(input_ids=torch.tensor(held)).logits[:, -1]
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert len(held) == 9


def test_common_prefix_leaves_every_prompt_a_token_of_its_own() -> None:
    assert common_prefix_length([(1, 2, 3), (1, 2, 4), (1, 2, 3, 5)]) == 2
    assert common_prefix_length([(1, 2), (1, 2, 3)]) == 1
    assert common_prefix_length([(1, 2), (2, 1)]) == 0
    assert common_prefix_length([(7,), (7,)]) == 0
