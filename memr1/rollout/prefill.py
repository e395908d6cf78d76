"""Running prompts through the model once, computing what they share once.

Three levels: what all prompts of a batch begin with (the instructions), what a family of them goes on with (the same
memories under several questions, or nearly the same memories under one question), and what is each one's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from memr1.models.attention import attention_kinds

if TYPE_CHECKING:
    import torch

Prompt = tuple[int, ...]

MIN_COMMON_PREFIX_TOKENS = 16
"""Shorter common prefixes are not worth a forward pass of their own."""

WORTHWHILE = 0.9
"""Families are used where they leave at most this share of the tokens to compute, padding counted."""

MOST_COLUMNS = 1.25
"""Families are used where the cache gets at most this many times the columns of the longest prompt: prefixes and
remainders are padded apart, and every column is memory and attention in all the decoding to come."""


def common_prefix_length(prompts: Sequence[Prompt]) -> int:
    """Tokens that all prompts start with, leaving each at least one token of its own."""
    first, last = min(prompts), max(prompts)  # in lexicographic order: what these two share, all share
    limit = min(len(p) for p in prompts) - 1
    n = 0
    while n < limit and first[n] == last[n]:
        n += 1
    return n


def families(prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    """Group distinct prompts that share more than all of them do; a prompt on its own is a family of one.

    In lexicographic order a prompt joins the family before it when that saves more tokens than the family saved so far.
    """
    ordered = sorted(prompts)
    by_all = common_prefix_length(ordered) if len(ordered) > 1 else 0
    found: list[list[Prompt]] = []
    length = 0  # of the last family's common prefix; of a prompt on its own, all of it
    for prompt in ordered:
        if found:
            family = found[-1]
            joint = min(length, common_prefix_length([family[-1], prompt]) - by_all)
            if joint >= MIN_COMMON_PREFIX_TOKENS and len(family) * joint > (len(family) - 1) * length:
                family.append(prompt)
                length = joint
                continue
        found.append([prompt])
        length = len(prompt)
    return found


@dataclass
class Prefilled:
    """Prompts that went through the model: one row per prompt."""

    cache: Any
    logits: torch.Tensor | None = None
    """(rows, vocab): of the next token."""
    mask: torch.Tensor | None = None
    """(rows, columns of the cache): 1 where a column holds a token of the row."""
    lengths: list[int] = field(default_factory=lambda: [0])
    """Tokens of each row."""
    computed: int = 0
    """Tokens that went through the model, padding not counted."""


def prefill(model: torch.nn.Module, groups: Sequence[Sequence[Prompt]], pad_id: int) -> Prefilled:
    """Run prompts through the model; rows come in the order of the groups and of their prompts.

    groups: prompts that may share something, see `families`. The result does not depend on the grouping.
    """
    from memr1.rollout.kv_cache import RoomyCache

    prompts = [prompt for group in groups for prompt in group]
    shared = common_prefix_length(prompts) if len(prompts) > 1 else 0
    # padding then lies between prefix and suffix; a sliding window counts cache columns and would count it too
    separable = "sliding_attention" not in attention_kinds(model)
    if shared < MIN_COMMON_PREFIX_TOKENS or not separable:
        shared = 0
    state = Prefilled(RoomyCache())
    if shared:
        _extend(model, state, [prompts[0][:shared]], [0], pad_id)
    begin = [shared] * len(groups)
    if separable and _families_pay(groups, shared):
        begin = [common_prefix_length(g) for g in groups]
        _extend(model, state, [g[0][shared:b] for g, b in zip(groups, begin, strict=True)], [0] * len(groups), pad_id)
        parents = [n for n, g in enumerate(groups) for _ in g]
    else:
        parents = [0] * len(prompts)
    own = [p[b:] for g, b in zip(groups, begin, strict=True) for p in g]
    _extend(model, state, own, parents, pad_id)
    return state


def _families_pay(groups: Sequence[Sequence[Prompt]], shared: int) -> bool:
    """Whether a pass for what families share costs less than it saves, in tokens and in columns of the cache.

    One family alone is all that is shared already. A loner would have to wait through the others' pass.
    """
    prefixes = [common_prefix_length(g) - shared for g in groups if len(g) > 1]
    if len(groups) < 2 or len(prefixes) < len(groups):
        return False
    rows, longest = sum(map(len, groups)), max(len(p) for g in groups for p in g) - shared
    rest = max(len(p) - shared - n for g, n in zip(groups, prefixes, strict=True) for p in g)
    if max(prefixes) + rest > MOST_COLUMNS * longest:
        return False
    return len(groups) * max(prefixes) + rows * rest <= WORTHWHILE * rows * longest


def _extend(
    model: torch.nn.Module, state: Prefilled, segments: Sequence[Prompt], parents: list[int], pad_id: int
) -> None:
    """Run one more segment per row; row i goes on from row `parents[i]` of the state."""
    import torch

    device = next(model.parameters()).device
    rows, width = len(segments), max(map(len, segments))
    starts = [state.lengths[p] for p in parents]
    ids = torch.full((rows, width), pad_id, dtype=torch.long)
    mask = torch.zeros((rows, width), dtype=torch.long)
    positions = torch.zeros((rows, width), dtype=torch.long)
    for row, (segment, start) in enumerate(zip(segments, starts, strict=True)):
        pad = width - len(segment)
        ids[row, pad:] = torch.tensor(segment, dtype=torch.long)
        mask[row, pad:] = 1
        positions[row, pad:] = torch.arange(start, start + len(segment))
    ids, mask, positions = ids.to(device), mask.to(device), positions.to(device)
    if state.mask is not None:
        select = torch.tensor(parents, device=device)
        if parents != list(range(len(state.lengths))):
            state.cache.batch_select_indices(select)
        mask = torch.cat([state.mask[select], mask], dim=1)
    out = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=state.cache,
        use_cache=True,
        logits_to_keep=1,
    )
    state.logits, state.mask = out.logits[:, -1].float(), mask
    state.lengths = [start + len(segment) for start, segment in zip(starts, segments, strict=True)]
    state.computed += sum(map(len, segments))
