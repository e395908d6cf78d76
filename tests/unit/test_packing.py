"""The layout of micro-batches, and that no layout changes a log-probability or a gradient.

Optimizer steps over several ranks are in tests/e2e/test_learner_ranks.py.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memr1.algos.losses import grpo_loss, token_weights
from memr1.learner.packing import MicroBatch, Plan, TrainSequence, plan_microbatches
from memr1.learner.scoring import CompletionScorer, to_tensors
from tests.unit.small_models import ATTENTION_MODELS, VOCAB, build, plain_logprobs

PAD, END = 2, 1
ARCHITECTURES = (*ATTENTION_MODELS, "gpt2")


def plan(
    sequences: Sequence[TrainSequence], *, ranks: int = 1, budget: int = 10**6, share: bool = True, pad: int = PAD
) -> Plan:
    return plan_microbatches(
        sequences, num_ranks=ranks, max_tokens_per_microbatch=budget, pad_id=pad, share_prefixes=share
    )


def grouped_sequences(seed: int = 0, vocab: int = VOCAB) -> list[TrainSequence]:
    """Three prompts with four completions each, of 1 to 7 tokens, some of them not to be trained on. The end token
    closes a turn inside each prompt, and every completion of more than one token."""
    rng = random.Random(seed)
    out = []
    for length in (5, 11, 17):
        prompt = tuple(END if i == length // 2 else rng.randrange(3, vocab) for i in range(length))
        for n in (1, 7, 3, 4):
            mask = tuple(i in (0, n - 1) or rng.random() < 0.7 for i in range(n))
            out.append(
                TrainSequence(
                    prompt,
                    tuple(END if 0 < i == n - 1 else rng.randrange(3, vocab) for i in range(n)),
                    mask,
                    rng.gauss(0, 1),
                    tuple(-rng.random() for _ in range(n)),
                )
            )
    return out


def gradient(model: Any, work: Plan, aggregation: str = "token-mean") -> dict[str, torch.Tensor]:
    """Gradient of the loss of one optimizer step, on the CPU, summed over the micro-batches of all ranks."""
    model.zero_grad()
    scorer = CompletionScorer(model)
    denominator = work.trained_tokens if aggregation == "token-mean" else work.trained_sequences
    for batch in (b for rank in work.ranks for b in rank):
        if not len(batch.targets):
            continue
        logprobs, _ = scorer(**to_tensors(batch, model.device))
        sequence_ids, advantages = (
            torch.from_numpy(a).to(model.device) for a in (batch.sequence_ids, batch.advantages)
        )
        weights = token_weights(sequence_ids, aggregation=aggregation, denominator=denominator)
        grpo_loss(logprobs, logprobs.detach(), advantages, weights).loss.backward()
    return {n: p.grad.clone().cpu() for n, p in model.named_parameters() if p.grad is not None}


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Norm of the difference over the norm of the gradient."""
    assert a.keys() == b.keys()
    norm = sum(float(g.square().sum()) for g in a.values()) ** 0.5
    assert norm > 1e-3
    return sum(float((a[n] - b[n]).square().sum()) for n in a) ** 0.5 / norm


def seen_by(batch: MicroBatch, s: int) -> tuple[tuple[int, ...], list[int]]:
    """Tokens that the last scored position of sequence s attends to, and where among them the scored ones are."""
    own = batch.sequence_ids == s
    (row,) = set(batch.score_row[own].tolist())
    columns = batch.score_position[own].tolist()
    segment = batch.segments[row]
    # a first token is predicted from the shared part: another branch may have that column for its last, too
    branch = max((int(segment[c]) for c in columns), default=0)
    visible = [c for c in range(max(columns) + 1) if segment[c] in (0, branch)]
    assert batch.position_ids[row][visible].tolist() == list(range(len(visible)))
    return tuple(batch.input_ids[row][visible].tolist()), [visible.index(c) for c in columns]


def scores(model: Any, work: Plan) -> dict[tuple[Any, ...], list[float]]:
    """Log-probabilities by sequence, whatever the layout: keyed by what was read and what was predicted."""
    scorer = CompletionScorer(model)
    out: dict[tuple[Any, ...], list[float]] = {}
    for batch in (b for rank in work.ranks for b in rank):
        with torch.no_grad():
            logprobs = scorer(**to_tensors(batch, model.device))[0].cpu()
        for s in np.unique(batch.sequence_ids):
            own = batch.sequence_ids == s
            key = (seen_by(batch, s)[0], tuple(batch.targets[own].tolist()))
            out[key] = logprobs[torch.from_numpy(own)].tolist()
    return out


def expected_scores(model: Any, sequences: Sequence[TrainSequence]) -> dict[tuple[Any, ...], list[float]]:
    """The same from one plain forward per sequence."""
    out: dict[tuple[Any, ...], list[float]] = {}
    for s in sequences:
        trained = [i for i, trains in enumerate(s.loss_mask) if trains]
        plain = plain_logprobs(model, s.prompt_ids, s.completion_ids).tolist()
        key = (s.prompt_ids + s.completion_ids[: trained[-1]], tuple(s.completion_ids[i] for i in trained))
        out[key] = [plain[i] for i in trained]
    return out


def demonstrations(seed: int = 0, vocab: int = VOCAB) -> list[TrainSequence]:
    """Eleven different prompts that begin with the same 20 tokens, one completion each; one prompt is those alone."""
    rng = random.Random(seed)
    begin = tuple(rng.randrange(3, vocab) for _ in range(20))
    return [
        TrainSequence(
            begin + tuple(rng.randrange(3, vocab) for _ in range(n)),
            tuple(rng.randrange(3, vocab) for _ in range(1 + n % 3)),
            (True,) * (1 + n % 3),
            rng.gauss(0, 1),
            tuple(-rng.random() for _ in range(1 + n % 3)),
        )
        for n in range(11)
    ]


# -- shared prompts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logprobs_are_the_same_with_and_without_shared_prompts(architecture: str) -> None:
    model, sequences = build(architecture), grouped_sequences()
    shared, apart = plan(sequences), plan(sequences, share=False)
    assert shared.computed_tokens == 33 + 3 * 11
    assert apart.computed_tokens == apart.unshared_tokens == 4 * 33 + 3 * 11
    expected = expected_scores(model, sequences)
    assert len(expected) == 12
    for found in (scores(model, shared), scores(model, apart)):
        assert found.keys() == expected.keys()
        for key, values in expected.items():
            assert found[key] == pytest.approx(values, abs=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_different_prompts_share_what_they_begin_with_and_nothing_changes(architecture: str) -> None:
    model, sequences = build(architecture), demonstrations()
    shared, apart = plan(sequences), plan(sequences, share=False)
    total = sum(len(s.prompt_ids) + len(s.completion_ids) - 1 for s in sequences)
    # eleven branches of at most four a row: three rows, each with the beginning once. One token stays out of it,
    # since the shortest prompt keeps one of its own
    assert apart.computed_tokens == apart.unshared_tokens == shared.unshared_tokens == total
    assert shared.computed_tokens == total - (11 - 3) * 19
    expected = expected_scores(model, sequences)
    for found in (scores(model, shared), scores(model, apart)):
        assert found.keys() == expected.keys()
        for key, values in expected.items():
            assert found[key] == pytest.approx(values, abs=1e-4)
    assert distance(gradient(model, shared), gradient(model, apart)) < 1e-3


def test_a_row_of_different_prompts_leaves_work_for_every_rank_and_keeps_to_the_budget() -> None:
    work = plan(demonstrations(), ranks=4)
    assert sorted(sum(len(np.unique(b.sequence_ids)) for b in rank) for rank in work.ranks) == [2, 3, 3, 3]
    (batches,) = plan(demonstrations(), budget=40).ranks
    assert all(b.input_ids.size <= 40 for b in batches)


@pytest.mark.parametrize(
    ("groups", "ranks", "completions"),
    [(2, 8, [2] * 8), (3, 8, [2, 2, 3, 3, 3, 3, 4, 4]), (1, 5, [1, 1, 2, 2, 2]), (2, 2, [8, 8]), (2, 16, [1] * 16)],
)
def test_groups_are_cut_where_there_are_more_ranks_than_groups(groups: int, ranks: int, completions: list[int]) -> None:
    sequences = [TrainSequence((3 + g, 4, 5), (6, 7 + n), (True, True)) for g in range(groups) for n in range(8)]
    work = plan(sequences, ranks=ranks)
    assert sorted(sum(len(np.unique(b.sequence_ids)) for b in rank) for rank in work.ranks) == completions
    assert work.computed_tokens == max(groups, ranks) * 3 + groups * 8


def test_prompts_that_share_little_keep_rows_of_their_own() -> None:
    sequences = [replace(s, prompt_ids=s.prompt_ids[8:]) for s in demonstrations()]
    assert plan(sequences).computed_tokens == plan(sequences).unshared_tokens


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradient_is_the_same_with_and_without_shared_prompts(architecture: str) -> None:
    model, sequences = build(architecture), grouped_sequences()
    assert distance(gradient(model, plan(sequences)), gradient(model, plan(sequences, share=False))) < 1e-3


def test_gradient_on_tiny_random_is_the_same_with_and_without_shared_prompts(tiny_random: Any) -> None:
    from memr1.models.adapters import PolicyModel

    policies = PolicyModel.create("tiny-random", ("answerer",), dtype="float32", device="cpu")
    weights = policies.weights("answerer")
    torch.manual_seed(0)  # a fresh adapter is 0 in one half, and would give half of the gradient only
    policies.load_weights("answerer", {n: torch.randn_like(w) * 0.1 for n, w in weights.items()})
    sequences = grouped_sequences(vocab=250)
    with policies.use("answerer") as model:
        policies.train_only("answerer")
        shared, apart = gradient(model, plan(sequences)), gradient(model, plan(sequences, share=False))
    assert len(shared) == len(weights) == 28
    assert distance(shared, apart) < 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_on_a_gpu_shared_prompts_give_what_rows_of_their_own_give_on_the_cpu(architecture: str) -> None:
    here, there, sequences = build(architecture), build(architecture).to("cuda"), grouped_sequences()
    expected, found = scores(here, plan(sequences, share=False)), scores(there, plan(sequences))
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert found[key] == pytest.approx(values, abs=1e-4)
    assert distance(gradient(there, plan(sequences)), gradient(here, plan(sequences, share=False))) < 1e-3


# -- other layouts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", ["token-mean", "sequence-mean"])
@pytest.mark.parametrize(
    "layout",
    ["reordered", "more padding", "a micro-batch per row", "rows split", "two ranks", "five ranks", "pad is eos"],
)
def test_gradient_does_not_depend_on_the_layout(layout: str, aggregation: str) -> None:
    model, sequences = build("llama"), grouped_sequences()
    base = plan(sequences, budget=64)
    other = {
        "reordered": lambda: plan(random.Random(5).sample(sequences, len(sequences)), budget=64),
        "more padding": lambda: plan(sequences, budget=10**6, share=False),
        "a micro-batch per row": lambda: plan(sequences, budget=1, share=False),
        "rows split": lambda: plan(sequences, budget=20),
        "two ranks": lambda: plan(sequences, ranks=2, budget=64),
        "five ranks": lambda: plan(sequences, ranks=5, budget=64),
        "pad is eos": lambda: plan(sequences, budget=64, pad=END),
    }[layout]()
    assert distance(gradient(model, base, aggregation), gradient(model, other, aggregation)) < 1e-5


def test_an_untrained_sequence_beside_the_others_changes_no_gradient() -> None:
    model, sequences = build("llama"), grouped_sequences()
    idle = TrainSequence(sequences[0].prompt_ids, (9, 8, 7), (False,) * 3, 5.0, (-1.0,) * 3)
    assert distance(gradient(model, plan(sequences)), gradient(model, plan([idle, *sequences, idle]))) < 1e-6


def test_tokens_after_a_trained_one_change_nothing_and_tokens_before_it_do() -> None:
    model = build("llama")
    first = TrainSequence((5, 6, 7), (10, 11, 12), (True, False, False), 1.0)
    later = replace(first, completion_ids=(10, 40, 41))
    assert distance(gradient(model, plan([first])), gradient(model, plan([later]))) < 1e-6
    second = replace(first, loss_mask=(False, True, False))
    before = replace(second, completion_ids=(20, 11, 12))
    assert distance(gradient(model, plan([second])), gradient(model, plan([before]))) > 0.1


# -- counts and edges -------------------------------------------------------------------------------------------


def test_token_counts_are_those_of_the_sequences_that_train() -> None:
    work = plan(
        [
            TrainSequence((3, 4, 5), (6, 7), (True, False)),
            TrainSequence((3, 4, 5), (8,), (True,)),
            TrainSequence((9,), (8, 8, 8), (True,) * 3),
            TrainSequence((9,), (8, 8), (False, False)),
        ]
    )
    assert (work.trained_tokens, work.trained_sequences) == (5, 3)
    assert work.computed_tokens == (3 + 1 + 0) + (1 + 2)
    assert work.unshared_tokens == (3 + 1) + 3 + (1 + 2)
    assert sum(b.num_tokens for b in work.ranks[0]) == work.computed_tokens


def test_a_completion_of_one_token_is_scored_at_the_last_token_of_the_prompt() -> None:
    ((batch,),) = plan([TrainSequence((3, 4, 5), (6,), (True,))]).ranks
    assert batch.input_ids.tolist() == [[3, 4, 5]]
    assert batch.score_position.tolist() == [2]
    assert batch.targets.tolist() == [6]


def test_positions_restart_after_the_prompt_for_every_completion() -> None:
    ((batch,),) = plan(
        [TrainSequence((3, 4, 5), (6, 7, 8), (True,) * 3), TrainSequence((3, 4, 5), (9, 10), (True,) * 2)]
    ).ranks
    assert batch.input_ids.tolist() == [[3, 4, 5, 6, 7, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3]]
    assert batch.segments.tolist() == [[0, 0, 0, 1, 1, 2]]
    assert batch.score_position.tolist() == [2, 3, 4, 2, 5]
    assert batch.targets.tolist() == [6, 7, 8, 9, 10]


def test_a_prompt_longer_than_the_budget_gets_a_micro_batch_of_its_own() -> None:
    long = TrainSequence(tuple(range(3, 43)), (5, 6), (True, True))
    short = TrainSequence((3, 4), (5, 6), (True, True))
    (batches,) = plan([short, long, short], budget=16).ranks
    assert [b.input_ids.shape for b in batches] == [(1, 41), (1, 4)]


def test_micro_batches_stay_within_the_budget_padding_counted() -> None:
    (batches,) = plan(grouped_sequences() * 3, budget=50, share=False).ranks
    assert all(b.input_ids.size <= 50 for b in batches)
    assert sum(b.input_ids.shape[0] for b in batches) == 36


def test_every_rank_gets_the_same_number_of_micro_batches_and_fillers_train_nothing() -> None:
    work = plan(grouped_sequences(), ranks=5, budget=1)
    assert len({len(r) for r in work.ranks}) == 1
    fillers = [b for r in work.ranks for b in r if not len(b.targets)]
    assert fillers
    assert all(b.input_ids.shape == (1, 1) and b.num_tokens == 1 for b in fillers)
    trained = sum(len(b.targets) for r in work.ranks for b in r)
    assert trained == work.trained_tokens == sum(sum(s.loss_mask) for s in grouped_sequences())


def test_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(ValueError, match="no sequence has a token to train on"):
        plan([TrainSequence((3,), (4, 5), (False, False))])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((), (1,), (True,)), "at least one prompt token"),
        (((1,), (1, 2), (True,)), "got 2, 1, None"),
        (((1,), (1, 2), (True, True), 1.0, (-1.0,)), "got 2, 2, 1"),
        (((1,), (1,), (True,), float("nan")), "advantage and reward must be finite"),
    ],
)
def test_a_train_sequence_that_would_shift_its_neighbours_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainSequence(*arguments)


ids = st.integers(3, 9)


@st.composite
def any_sequences(draw: st.DrawFn) -> list[TrainSequence]:
    begin = draw(st.sampled_from([(), tuple(range(3, 23))]))  # with it, different prompts share a row
    prompts = [
        begin + p for p in draw(st.lists(st.lists(ids, min_size=1, max_size=6).map(tuple), min_size=1, max_size=4))
    ]
    out = []
    for i in range(draw(st.integers(1, 10))):
        n = draw(st.integers(0, 6))
        completion = tuple(draw(st.lists(ids, min_size=n, max_size=n)))
        mask = tuple(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
        # distinct values make a swap of two tokens or sequences visible
        out.append(
            TrainSequence(
                draw(st.sampled_from(prompts)), completion, mask, float(i), tuple(-i - j / 8 for j in range(n))
            )
        )
    return out


def read_back(batch: MicroBatch) -> list[tuple[Any, ...]]:
    """Sequences as the model sees them, from nothing but what it attends to: the mask, not the layout's own order."""
    out = []
    for s in np.unique(batch.sequence_ids):
        own = batch.sequence_ids == s
        seen, places = seen_by(batch, s)
        (advantage,) = set(batch.advantages[own].tolist())
        assert batch.rollout_logprobs is not None
        out.append(
            (advantage, seen, tuple(places), tuple(batch.targets[own]), tuple(batch.rollout_logprobs[own].tolist()))
        )
    return out


def as_seen(s: TrainSequence) -> tuple[Any, ...]:
    """What `read_back` must find of a sequence: each trained token predicted right after all that precedes it."""
    assert s.rollout_logprobs is not None
    trained = [i for i, trains in enumerate(s.loss_mask) if trains]
    return (
        s.advantage,
        s.prompt_ids + s.completion_ids[: trained[-1]],
        tuple(len(s.prompt_ids) - 1 + i for i in trained),
        tuple(s.completion_ids[i] for i in trained),
        tuple(s.rollout_logprobs[i] for i in trained),
    )


@settings(max_examples=150, deadline=None)
@given(sequences=any_sequences(), ranks=st.integers(1, 5), budget=st.integers(1, 40), share=st.booleans())
def test_every_trained_token_is_scored_once_with_its_own_target_advantage_and_logprob(
    sequences: list[TrainSequence], ranks: int, budget: int, share: bool
) -> None:
    live = [s for s in sequences if any(s.loss_mask)]
    if not live:
        with pytest.raises(ValueError, match="no sequence"):
            plan(sequences, ranks=ranks, budget=budget, share=share)
        return
    work = plan(sequences, ranks=ranks, budget=budget, share=share)
    assert len(work.ranks) == ranks
    assert len({len(r) for r in work.ranks}) == 1
    found = [s for rank in work.ranks for batch in rank for s in read_back(batch)]
    assert sorted(found) == sorted(map(as_seen, live))
    assert work.computed_tokens <= work.unshared_tokens
    busy = [rank for rank in work.ranks if any(len(b.targets) for b in rank)]
    assert len(busy) == min(ranks, len(live))


@settings(max_examples=60, deadline=None)
@given(sequences=any_sequences(), ranks=st.integers(1, 3), budget=st.integers(1, 40), data=st.data())
def test_rewards_are_earned_with_last_tokens_and_trajectories_are_counted_over_all_micro_batches(
    sequences: list[TrainSequence], ranks: int, budget: int, data: st.DataObject
) -> None:
    owner = st.one_of(st.none(), st.integers(0, 2))
    steps = [replace(s, reward=float(i + 1), trajectory=data.draw(owner)) for i, s in enumerate(sequences)]
    live = [s for s in steps if any(s.loss_mask)]
    if not live:
        return
    work = plan(steps, ranks=ranks, budget=budget)
    found = []
    for batch in (b for rank in work.ranks for b in rank):
        for s in np.unique(batch.sequence_ids):
            own = batch.sequence_ids == s
            *early, last = batch.rewards[own].tolist()
            assert not any(early)
            (tokens_of,) = set(batch.trajectory_tokens[own].tolist())
            found.append((last, int(own.sum()), tokens_of))
    expected = []
    for step in live:
        same = [step] if step.trajectory is None else [o for o in live if o.trajectory == step.trajectory]
        expected.append((step.reward, sum(step.loss_mask), sum(sum(o.loss_mask) for o in same)))
    assert sorted(found) == sorted(expected)
    shared = {s.trajectory for s in live} - {None}
    assert work.trained_trajectories == len(shared) + sum(s.trajectory is None for s in live)
