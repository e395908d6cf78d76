"""From sequences to micro-batches: what sequences begin with is laid out once, what is their own behind it.

A row holds one prompt followed by the completions sampled from it, or what several prompts begin with, followed by the
rest of each. Positions restart after the shared part for every branch, and the attention mask lets a branch see the
shared part and itself only, so that the result equals that of separate rows. Built on the driver for all ranks at
once: every rank gets the same number of micro-batches.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from memr1.rollout.prefill import common_prefix_length


@dataclass(frozen=True)
class TrainSequence:
    """One prompt and completion with what its loss needs."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    advantage: float = 1.0
    """Scalar advantage of the trajectory; unused by supervised losses and where a critic estimates it."""
    rollout_logprobs: tuple[float, ...] | None = None
    """As sampled by the engine; None for demonstrations."""
    reward: float = 0.0
    """Reward of the trajectory, for a critic: it is earned with the last trained token."""
    trajectory: int | None = None
    """Which trajectory of the batch this is a step of; None for one of its own."""

    def __post_init__(self) -> None:
        # arrays of a micro-batch are concatenations: one wrong length would shift every sequence behind it
        n, logprobs = len(self.completion_ids), self.rollout_logprobs
        if not self.prompt_ids:
            raise ValueError("a TrainSequence needs at least one prompt token")
        if len(self.loss_mask) != n or (logprobs is not None and len(logprobs) != n):
            raise ValueError(
                f"completion_ids, loss_mask and rollout_logprobs must have one length; got {n}, {len(self.loss_mask)}, "
                f"{None if logprobs is None else len(logprobs)}"
            )
        if not (math.isfinite(self.advantage) and math.isfinite(self.reward)):
            raise ValueError(f"advantage and reward must be finite, are {self.advantage} and {self.reward}")


@dataclass(frozen=True)
class MicroBatch:
    """Arrays of one forward and backward pass. `rows` x `width` token grid, and `n` tokens that train, to score."""

    input_ids: np.ndarray
    """(rows, width) int64, padded on the right."""
    position_ids: np.ndarray
    """(rows, width) int64, restarting after the shared part for each branch."""
    segments: np.ndarray
    """(rows, width) int32: 0 shared, 1.. branches, -1 padding. Says who may attend to whom."""
    score_row: np.ndarray
    """(n,) row of the position whose hidden state predicts each trained token."""
    score_position: np.ndarray
    """(n,) and its column."""
    targets: np.ndarray
    """(n,) the trained tokens themselves."""
    sequence_ids: np.ndarray
    """(n,) which sequence of this micro-batch the token belongs to."""
    advantages: np.ndarray
    """(n,) float32, the advantage of the token's sequence."""
    rewards: np.ndarray
    """(n,) float32, the reward of the token's sequence at its last token, 0 before."""
    rollout_logprobs: np.ndarray | None
    """(n,) float32, or None for demonstrations."""
    trajectory_tokens: np.ndarray
    """(n,) int64, trained tokens of the token's trajectory, wherever its other steps lie."""
    num_tokens: int
    """Tokens in the grid that are not padding."""


@dataclass(frozen=True)
class Plan:
    """The work of one optimizer step."""

    ranks: tuple[tuple[MicroBatch, ...], ...]
    """Micro-batches by rank; every rank has the same number."""
    trained_tokens: int
    """Tokens whose mask is True, over all ranks: the denominator of a token mean."""
    trained_sequences: int
    """Sequences with at least one trained token: the denominator of a sequence mean."""
    trained_trajectories: int
    """Trajectories with at least one trained token: the denominator of a trajectory mean."""
    computed_tokens: int
    """Tokens that go through the model, padding not counted."""
    unshared_tokens: int
    """Tokens that would go through the model if no prompt were shared."""


MIN_SHARED_TOKENS = 16
"""Different prompts share a row from this many common tokens on."""

MOST_BRANCHES = 4
"""Different prompts in a row: more would save little of the shared part, and attention grows with the row's square."""


@dataclass(frozen=True)
class _Row:
    shared: tuple[int, ...]
    """The beginning of every member's prompt, the whole of it or less."""
    members: tuple[TrainSequence, ...]

    def branch(self, member: TrainSequence) -> tuple[int, ...]:
        """A member's own tokens. Its last token predicts nothing that is scored, so it is not fed to the model."""
        return (member.prompt_ids + member.completion_ids)[len(self.shared) : -1]

    @property
    def length(self) -> int:
        return len(self.shared) + sum(len(self.branch(m)) for m in self.members)


def plan_microbatches(
    sequences: Sequence[TrainSequence],
    *,
    num_ranks: int,
    max_tokens_per_microbatch: int,
    pad_id: int,
    share_prefixes: bool = True,
) -> Plan:
    """Lay sequences out in micro-batches for `num_ranks` ranks.

    Sequences without a trained token are dropped, since they change no gradient. A row longer than the budget gets a
    micro-batch of its own. Raises ValueError when nothing is left to train on.
    """
    live = [s for s in sequences if any(s.loss_mask)]
    if not live:
        raise ValueError("no sequence has a token to train on")
    rows = _rows(live, max_tokens_per_microbatch, num_ranks, share_prefixes)
    # longest first to the least loaded rank: the ranks finish together
    shares: list[list[_Row]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for row in sorted(rows, key=lambda r: -r.length):
        rank = loads.index(min(loads))
        shares[rank].append(row)
        loads[rank] += row.length
    tokens_of = Counter[int]()
    for s in live:
        if s.trajectory is not None:
            tokens_of[s.trajectory] += sum(s.loss_mask)
    packed = [
        [_collate(g, pad_id, tokens_of) for g in _group_rows(share, max_tokens_per_microbatch)] for share in shares
    ]
    count = max(len(p) for p in packed)
    # a collective needs every rank, also one that has run out of work
    filler = _collate([_Row((pad_id,), ())], pad_id, tokens_of)
    ranks = tuple(tuple(p + [filler] * (count - len(p))) for p in packed)
    return Plan(
        ranks=ranks,
        trained_tokens=sum(sum(s.loss_mask) for s in live),
        trained_sequences=len(live),
        trained_trajectories=len(tokens_of) + sum(s.trajectory is None for s in live),
        computed_tokens=sum(r.length for r in rows),
        unshared_tokens=sum(len(s.prompt_ids) + len(s.completion_ids) - 1 for s in live),
    )


def _rows(sequences: Sequence[TrainSequence], budget: int, ranks: int, share: bool) -> list[_Row]:
    if not share:
        return [_Row(s.prompt_ids, (s,)) for s in sequences]
    families = _families(sequences)
    parts = [least for _, least in families]
    # a rank without a row would only wait for the others, so the largest parts are cut until there is one for each
    while sum(parts) < min(ranks, len(sequences)):
        parts[max(range(len(parts)), key=lambda i: len(families[i][0].members) / parts[i])] += 1
    rows: list[_Row] = []
    for (family, _), n in zip(families, parts, strict=True):
        size = len(family.members)
        for i in range(n):
            rows += _filled(family.shared, family.members[size * i // n : size * (i + 1) // n], budget)
    return rows


def _families(sequences: Sequence[TrainSequence]) -> list[tuple[_Row, int]]:
    """Sequences that may share a row, as one row without a budget, and how many rows they are cut into at least."""
    by_prompt: dict[tuple[int, ...], list[TrainSequence]] = {}
    for s in sequences:
        by_prompt.setdefault(s.prompt_ids, []).append(s)
    families: list[tuple[_Row, int]] = []
    alone: list[TrainSequence] = []
    for prompt, members in by_prompt.items():
        if len(members) > 1:
            families.append((_Row(prompt, tuple(members)), 1))
        else:
            alone += members
    begin = common_prefix_length([s.prompt_ids for s in alone]) if len(alone) > 1 else 0
    if begin < MIN_SHARED_TOKENS:
        return families + [(_Row(s.prompt_ids, (s,)), 1) for s in alone]
    return [*families, (_Row(alone[0].prompt_ids[:begin], tuple(alone)), math.ceil(len(alone) / MOST_BRANCHES))]


def _filled(shared: tuple[int, ...], members: Sequence[TrainSequence], budget: int) -> list[_Row]:
    """Rows within the budget; a member that is longer has one of its own."""
    rows: list[_Row] = []
    for m in members:
        longer = _Row(shared, (*rows[-1].members, m)) if rows else None
        if longer is not None and longer.length <= budget:
            rows[-1] = longer
        else:
            rows.append(_Row(shared, (m,)))
    return rows


def _group_rows(rows: list[_Row], budget: int) -> list[list[_Row]]:
    """Rows of similar length together while `rows * longest` stays within the budget. Rows come longest first."""
    groups: list[list[_Row]] = []
    for row in rows:
        if groups and groups[-1][0].length * (len(groups[-1]) + 1) <= budget:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _collate(rows: list[_Row], pad_id: int, tokens_of: Mapping[int, int]) -> MicroBatch:
    width = max(r.length for r in rows)
    input_ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    position_ids = np.zeros((len(rows), width), dtype=np.int64)
    segments = np.full((len(rows), width), -1, dtype=np.int32)
    score_row: list[int] = []
    score_position: list[int] = []
    targets: list[int] = []
    sequence_ids: list[int] = []
    advantages: list[float] = []
    rewards: list[float] = []
    logprobs: list[float] = []
    trajectory_tokens: list[int] = []
    has_logprobs = all(m.rollout_logprobs is not None for r in rows for m in r.members)
    sequence = 0
    for i, row in enumerate(rows):
        p = len(row.shared)
        input_ids[i, :p] = row.shared
        position_ids[i, :p] = np.arange(p)
        segments[i, :p] = 0
        column = p
        for segment, m in enumerate(row.members, start=1):
            branch = row.branch(m)
            end = column + len(branch)
            input_ids[i, column:end] = branch
            position_ids[i, column:end] = np.arange(p, p + len(branch))
            segments[i, column:end] = segment
            first = len(m.prompt_ids) - p - 1  # place in the branch that predicts the first token of the completion
            for k, trains in enumerate(m.loss_mask):
                if trains:
                    place = first + k
                    score_row.append(i)
                    score_position.append(column + place if place >= 0 else p - 1)
                    targets.append(m.completion_ids[k])
                    sequence_ids.append(sequence)
                    advantages.append(m.advantage)
                    rewards.append(0.0)
                    if has_logprobs and m.rollout_logprobs is not None:
                        logprobs.append(m.rollout_logprobs[k])
            trained = sum(m.loss_mask)
            trajectory_tokens += [trained if m.trajectory is None else tokens_of[m.trajectory]] * trained
            rewards[-1] = m.reward  # every member has a trained token
            column = end
            sequence += 1
    return MicroBatch(
        input_ids=input_ids,
        position_ids=position_ids,
        segments=segments,
        score_row=np.array(score_row, dtype=np.int64),
        score_position=np.array(score_position, dtype=np.int64),
        targets=np.array(targets, dtype=np.int64),
        sequence_ids=np.array(sequence_ids, dtype=np.int64),
        advantages=np.array(advantages, dtype=np.float32),
        rewards=np.array(rewards, dtype=np.float32),
        rollout_logprobs=np.array(logprobs, dtype=np.float32) if has_logprobs else None,
        trajectory_tokens=np.array(trajectory_tokens, dtype=np.int64),
        num_tokens=sum(r.length for r in rows),
    )
