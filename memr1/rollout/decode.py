"""Sampling completions from prefilled prompts, computing equal beginnings once.

Members of a group that have sampled the same tokens so far are in the same state: one row of the batch serves them all
until they part. A policy that writes few words and knows its mind (a memory operation, a short answer) parts seldom, so
that a group of 16 costs two or three rows instead of 16. The samples are those of the same rows computed apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    from memr1.rollout.engine import SamplingParams, Watch
    from memr1.rollout.prefill import Prefilled

Decode = Callable[[Sequence[int]], str]
COMPACT_BELOW = 0.75
"""Finished rows are dropped from the cache when fewer than this share of the rows are still running."""


def sample(
    model: torch.nn.Module,
    filled: Prefilled,
    prompt_of: Sequence[int],
    sampling: Sequence[SamplingParams],
    *,
    eos_ids: Sequence[int],
    decode: Decode | None = None,
    watch: Watch | None = None,
) -> tuple[list[tuple[list[int], list[float], str]], int]:
    """One completion for each of n members; returns them and the number of tokens that went through the model.

    filled: the prompts; its cache is used up. prompt_of: (n,) each member's row there. sampling: (n,) each one's own.
    A completion is its token ids, their log-probabilities at its temperature, and `stop` or `length`.
    watch: is told every token of every member; a member that it gives up ends there.
    """
    import torch

    logits, mask, cache = filled.logits, filled.mask, filled.cache
    assert logits is not None and mask is not None
    device, vocab = logits.device, logits.shape[-1]
    members, longest = len(prompt_of), max(s.max_new_tokens for s in sampling)
    temperature = torch.tensor([s.temperature for s in sampling], device=device)
    limit = torch.tensor([s.max_new_tokens for s in sampling], device=device)
    greedy = temperature == 0
    eos = torch.tensor(sorted(eos_ids), device=device)
    # inverse-CDF sampling from uniforms drawn per member: the same seed gives the same tokens in any batch
    # (float64: in float32 one draw in 3e7 rounds to 1 and would pick the last token, however improbable)
    drawn = np.stack([np.random.Generator(np.random.Philox(s.seed)).random(longest) for s in sampling])
    uniforms = torch.from_numpy(drawn).to(device)

    # a row is what the model computes; who asks the same prompt at the same temperature starts on one
    rows: dict[tuple[int, float], int] = {}
    asked = [rows.setdefault((p, s.temperature), len(rows)) for p, s in zip(prompt_of, sampling, strict=True)]
    row_of = torch.tensor(asked, device=device)  # of each member that is still running
    running = torch.arange(members, device=device)
    source = [p for p, _ in rows]
    if source != list(range(logits.shape[0])):
        select = torch.tensor(source, device=device)
        cache.batch_select_indices(select)
        logits, mask = logits[select], mask[select]
    cache.make_room(longest, members)
    position = torch.tensor([filled.lengths[p] for p in source], device=device)
    heat = torch.tensor([t or 1.0 for _, t in rows], device=device)

    tokens = torch.zeros((members, longest), dtype=torch.long, device=device)
    logprobs = torch.zeros((members, longest), device=device)
    lengths = torch.zeros(members, dtype=torch.long, device=device)
    stopped = torch.zeros(members, dtype=torch.bool, device=device)
    computed = 0
    for step in range(longest):
        scores = torch.log_softmax(logits / heat[:, None], dim=-1)
        choice = _choose(scores, row_of, greedy[running], uniforms[running, step])
        tokens[running, step] = choice
        logprobs[running, step] = scores[row_of, choice]
        lengths[running] += 1
        ended = torch.isin(choice, eos)
        if decode is not None and any(s.stop for s in sampling):
            here = running.tolist()
            said = [decode(tokens[m, : step + 1].tolist()) if sampling[m].stop else "" for m in here]
            found = [any(s in text for s in sampling[m].stop) for m, text in zip(here, said, strict=True)]
            ended |= torch.tensor(found, device=device)
        stopped[running[ended]] = True
        alive = ~ended & (lengths[running] < limit[running])
        if watch is not None:
            told = [watch(m, t) for m, t in zip(running.tolist(), choice.tolist(), strict=True)]
            alive &= torch.tensor(told, device=device)
        running, row_of, choice = running[alive], row_of[alive], choice[alive]
        if len(running) == 0:
            break
        # who shares a row and a token goes on together: one such party keeps the row, the others get rows of their own
        parties, party_of = torch.unique(row_of * vocab + choice, return_inverse=True)
        parent, token = parties // vocab, parties % vocab
        leads = torch.ones_like(parent, dtype=torch.bool)
        leads[1:] = parent[1:] != parent[:-1]
        place = parent.clone()
        if not bool(leads.all()):
            idle = torch.ones(len(heat), dtype=torch.bool, device=device)
            idle[parent] = False
            movers = parent[~leads]
            vacant = idle.nonzero().squeeze(1)[: len(movers)]
            place[~leads] = torch.cat(
                [vacant, torch.arange(len(heat), len(heat) + len(movers) - len(vacant), device=device)]
            )
            cache.copy_rows(movers, place[~leads])
            mask, position, heat = (_copied(x, movers, place[~leads]) for x in (mask, position, heat))
        elif len(parties) < COMPACT_BELOW * len(heat):
            cache.batch_select_indices(parent)
            mask, position, heat = mask[parent], position[parent], heat[parent]
            place = torch.arange(len(parent), device=device)
        following = torch.zeros(len(heat), dtype=torch.long, device=device)
        following[place] = token
        row_of = place[party_of]
        mask = torch.cat([mask, mask.new_ones((len(heat), 1))], dim=1)
        out = model(
            input_ids=following[:, None],
            attention_mask=mask,
            position_ids=position[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        computed += len(heat)
        position = position + 1
        logits = out.logits[:, -1].float()
    counts = lengths.tolist()
    done = [
        (tokens[m, :n].tolist(), logprobs[m, :n].tolist(), "stop" if bool(stopped[m]) else "length")
        for m, n in enumerate(counts)
    ]
    return done, computed


def _copied(x: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """x with rows `sources` written to `targets` too, which may lie behind its end."""
    more = int(targets.max()) + 1 - len(x)
    grown = x if more <= 0 else x.new_empty((len(x) + more, *x.shape[1:]))
    grown[: len(x)] = x
    grown[targets] = x[sources]
    return grown


def _choose(scores: torch.Tensor, row_of: torch.Tensor, greedy: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Every member's next token: the most probable one, or the first whose cumulative probability exceeds its uniform.

    scores: (rows, vocab) log-probabilities. row_of: (n,) each member's row. greedy: (n,). uniforms: (n,) float64 in
    [0, 1). Returns (n,).
    """
    import torch

    best = scores.argmax(-1)[row_of]
    if bool(greedy.all()):
        return best
    cdf = scores.double().exp().cumsum(-1)
    # one search per row for all its members, who stand beside each other in a line filled up with zeros
    order = row_of.argsort(stable=True)
    counts = torch.bincount(row_of, minlength=len(scores))
    seat = torch.empty_like(row_of)
    seat[order] = torch.arange(len(row_of), device=row_of.device) - (counts.cumsum(0) - counts)[row_of[order]]
    wanted = cdf.new_zeros((len(scores), int(counts.max())))
    # scaled by the last value, so that rounding can never push the index past the vocabulary or onto a zero tail
    wanted[row_of, seat] = uniforms * cdf[row_of, -1]
    found = torch.searchsorted(cdf, wanted, right=True)[row_of, seat]
    return torch.where(greedy, best, found.clamp(max=scores.shape[-1] - 1))
