"""From sequences to micro-batches: prompts shared by a group are laid out once, completions behind them.

A row holds one prompt followed by the completions sampled from it. Positions restart after the prompt for every
completion, and the attention mask lets a completion see the prompt and itself only, so that the result equals that of
separate rows. Built on the driver for all ranks at once: every rank gets the same number of micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TrainSequence:
    """One prompt and completion with what its loss needs."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    advantage: float = 1.0
    """Scalar advantage of the trajectory; unused by supervised losses."""
    rollout_logprobs: tuple[float, ...] | None = None
    """As sampled by the engine; None for demonstrations."""

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
        if not math.isfinite(self.advantage):
            raise ValueError(f"advantage must be finite, is {self.advantage}")


@dataclass(frozen=True)
class MicroBatch:
    """Arrays of one forward and backward pass. `rows` x `width` token grid, and `n` completion tokens to score."""

    input_ids: np.ndarray
    """(rows, width) int64, padded on the right."""
    position_ids: np.ndarray
    """(rows, width) int64, restarting after the prompt for each completion."""
    segments: np.ndarray
    """(rows, width) int32: 0 prompt, 1.. completions, -1 padding. Says who may attend to whom."""
    score_row: np.ndarray
    """(n,) row of the position whose hidden state predicts each completion token."""
    score_position: np.ndarray
    """(n,) and its column."""
    targets: np.ndarray
    """(n,) the completion tokens."""
    mask: np.ndarray
    """(n,) bool, True where the token trains."""
    sequence_ids: np.ndarray
    """(n,) which sequence of this micro-batch the token belongs to."""
    advantages: np.ndarray
    """(n,) float32, the advantage of the token's sequence."""
    rollout_logprobs: np.ndarray | None
    """(n,) float32, or None for demonstrations."""
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
    computed_tokens: int
    """Tokens that go through the model, padding not counted."""
    unshared_tokens: int
    """Tokens that would go through the model if no prompt were shared."""


@dataclass(frozen=True)
class _Row:
    prompt_ids: tuple[int, ...]
    members: tuple[TrainSequence, ...]

    @property
    def length(self) -> int:
        # the last token of a completion predicts nothing that is scored, so it is not fed to the model
        return len(self.prompt_ids) + sum(max(len(m.completion_ids) - 1, 0) for m in self.members)


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
    rows = _rows(live, max_tokens_per_microbatch, share_prefixes)
    # longest first to the least loaded rank: the ranks finish together
    shares: list[list[_Row]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for row in sorted(rows, key=lambda r: -r.length):
        rank = loads.index(min(loads))
        shares[rank].append(row)
        loads[rank] += row.length
    packed = [[_collate(g, pad_id) for g in _group_rows(share, max_tokens_per_microbatch)] for share in shares]
    count = max(len(p) for p in packed)
    filler = _collate([_Row((pad_id,), ())], pad_id)  # a collective needs every rank, also one that has run out of work
    ranks = tuple(tuple(p + [filler] * (count - len(p))) for p in packed)
    return Plan(
        ranks=ranks,
        trained_tokens=sum(sum(s.loss_mask) for s in live),
        trained_sequences=len(live),
        computed_tokens=sum(r.length for r in rows),
        unshared_tokens=sum(len(s.prompt_ids) + len(s.completion_ids) - 1 for s in live),
    )


def _rows(sequences: Sequence[TrainSequence], budget: int, share: bool) -> list[_Row]:
    if not share:
        return [_Row(s.prompt_ids, (s,)) for s in sequences]
    by_prompt: dict[tuple[int, ...], list[TrainSequence]] = {}
    for s in sequences:
        by_prompt.setdefault(s.prompt_ids, []).append(s)
    rows = []
    for prompt, members in by_prompt.items():
        current: list[TrainSequence] = []
        length = len(prompt)
        for m in members:
            extra = len(m.completion_ids) - 1
            if current and length + extra > budget:
                rows.append(_Row(prompt, tuple(current)))
                current, length = [], len(prompt)
            current.append(m)
            length += extra
        rows.append(_Row(prompt, tuple(current)))
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


def _collate(rows: list[_Row], pad_id: int) -> MicroBatch:
    width = max(r.length for r in rows)
    input_ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    position_ids = np.zeros((len(rows), width), dtype=np.int64)
    segments = np.full((len(rows), width), -1, dtype=np.int32)
    score_row: list[int] = []
    score_position: list[int] = []
    targets: list[int] = []
    mask: list[bool] = []
    sequence_ids: list[int] = []
    advantages: list[float] = []
    logprobs: list[float] = []
    has_logprobs = all(m.rollout_logprobs is not None for r in rows for m in r.members)
    sequence = 0
    for i, row in enumerate(rows):
        p = len(row.prompt_ids)
        input_ids[i, :p] = row.prompt_ids
        position_ids[i, :p] = np.arange(p)
        segments[i, :p] = 0
        column = p
        for segment, m in enumerate(row.members, start=1):
            n = len(m.completion_ids)
            input_ids[i, column : column + n - 1] = m.completion_ids[:-1]
            position_ids[i, column : column + n - 1] = np.arange(p, p + n - 1)
            segments[i, column : column + n - 1] = segment
            score_row += [i] * n
            score_position += [p - 1, *range(column, column + n - 1)]
            targets += m.completion_ids
            mask += m.loss_mask
            sequence_ids += [sequence] * n
            advantages += [m.advantage] * n
            if has_logprobs and m.rollout_logprobs is not None:
                logprobs += m.rollout_logprobs
            column += n - 1
            sequence += 1
    return MicroBatch(
        input_ids=input_ids,
        position_ids=position_ids,
        segments=segments,
        score_row=np.array(score_row, dtype=np.int64),
        score_position=np.array(score_position, dtype=np.int64),
        targets=np.array(targets, dtype=np.int64),
        mask=np.array(mask, dtype=bool),
        sequence_ids=np.array(sequence_ids, dtype=np.int64),
        advantages=np.array(advantages, dtype=np.float32),
        rollout_logprobs=np.array(logprobs, dtype=np.float32) if has_logprobs else None,
        num_tokens=sum(r.length for r in rows),
    )
