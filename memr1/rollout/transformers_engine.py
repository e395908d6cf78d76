"""The default engine: plain transformers on CPU or GPU, computing shared prefixes once.

Within one call, prompts that several requests share are prefilled once and their key-value cache is repeated for the
group; what all prompts of a batch have in common (the instructions) is prefilled once for the batch. Nothing is kept
between calls, so no cache can outlive the weights that made it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from memr1.errors import MemR1Error
from memr1.models.attention import attention_kinds
from memr1.rollout.engine import Completion, GenerationRequest, WeightUpdate

if TYPE_CHECKING:
    import torch

    from memr1.models.adapters import PolicyModel

MIN_COMMON_PREFIX_TOKENS = 16
"""Shorter common prefixes are not worth a forward pass of their own."""

COMPACT_BELOW = 0.75
"""Finished rows are dropped from the cache when fewer than this share of the rows are still running."""


class TransformersEngine:
    """Batched generation with a decode loop over a preallocated cache. Not thread-safe."""

    def __init__(
        self, policies: PolicyModel, eos_ids: Sequence[int], pad_id: int, *, max_tokens_per_batch: int = 16384
    ) -> None:
        model = policies.module(policies.roles[0])
        if not attention_kinds(model):
            raise MemR1Error(
                f"{policies.source}: {type(model).__name__} has recurrent or other layers that keep more than keys and "
                "values; this engine cannot generate with it. Choose a model with full or sliding-window attention"
            )
        self.policies = policies
        self.eos_ids = tuple(eos_ids)
        self.pad_id = pad_id
        self.max_tokens_per_batch = max_tokens_per_batch
        self.timings: dict[str, float] = defaultdict(float)
        """Seconds and token counts by phase since the last `pop_timings`."""
        self._versions: dict[str, int] = dict.fromkeys(policies.policies(), 0)

    # -- weights ------------------------------------------------------------------------------------------------

    def load_weights(self, update: WeightUpdate) -> int:
        """See `Engine.load_weights`."""
        import torch

        update.verify()
        # copies: arrays that came through shared memory are read-only, and torch would alias them
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in update.tensors.items()}
        self.policies.load_weights(update.policy, tensors)
        self._versions[update.policy] = update.version
        return update.version

    def weight_versions(self) -> dict[str, int]:
        """See `Engine.weight_versions`."""
        return dict(self._versions)

    def set_weight_versions(self, versions: Mapping[str, int]) -> None:
        """Say which versions the weights are that the policy model was just given from files."""
        self._versions.update(versions)

    def pop_timings(self) -> dict[str, float]:
        """Seconds (`prefill_s`, `decode_s`) and tokens (`prefill_tokens`, `decode_tokens`) since the last call."""
        timings, self.timings = dict(self.timings), defaultdict(float)
        return timings

    # -- generation ---------------------------------------------------------------------------------------------

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """See `Engine.generate`. Raises ValueError on an empty prompt."""
        results: list[Completion | None] = [None] * len(requests)
        by_policy: dict[str, dict[tuple[int, ...], list[int]]] = defaultdict(lambda: defaultdict(list))
        for i, request in enumerate(requests):
            if not request.prompt_ids:
                raise ValueError(f"request {i} has an empty prompt")
            by_policy[request.policy][request.prompt_ids].append(i)
        for policy, prompts in by_policy.items():
            with self.policies.use_merged(policy) as model:
                for batch in self._batches(requests, prompts):
                    for i, completion in self._generate_batch(model, requests, batch, self._versions[policy]):
                        results[i] = completion
        return [r for r in results if r is not None]

    def _batches(
        self, requests: Sequence[GenerationRequest], prompts: dict[tuple[int, ...], list[int]]
    ) -> list[list[tuple[tuple[int, ...], list[int]]]]:
        """Prompts of similar length together, so that little is padding, within the token budget."""
        ordered = sorted(prompts.items(), key=lambda item: len(item[0]))
        batches: list[list[tuple[tuple[int, ...], list[int]]]] = []
        rows = widest = 0
        for prompt, members in ordered:
            width = len(prompt) + max(requests[i].sampling.max_new_tokens for i in members)
            widest = max(widest, width)  # a shorter prompt with more tokens to come may be the widest row
            if batches and (rows + len(members)) * widest <= self.max_tokens_per_batch:
                batches[-1].append((prompt, members))
                rows += len(members)
            else:
                batches.append([(prompt, members)])
                rows, widest = len(members), width
        return batches

    def _generate_batch(
        self,
        model: torch.nn.Module,
        requests: Sequence[GenerationRequest],
        batch: list[tuple[tuple[int, ...], list[int]]],
        version: int,
    ) -> list[tuple[int, Completion]]:
        import torch

        with torch.inference_mode():
            start = time.perf_counter()
            # identical greedy requests have one answer: compute it once
            rows: list[tuple[int, list[int]]] = []  # (prompt index, request indices served by this row)
            for p, (_, members) in enumerate(batch):
                greedy: dict[int, list[int]] = {}
                for i in members:
                    sampling = requests[i].sampling
                    if sampling.temperature > 0:
                        rows.append((p, [i]))
                    elif sampling.max_new_tokens in greedy:
                        greedy[sampling.max_new_tokens].append(i)
                    else:
                        greedy[sampling.max_new_tokens] = [i]
                        rows.append((p, greedy[sampling.max_new_tokens]))
            prompts = [prompt for prompt, _ in batch]
            logits, cache, mask, computed = _prefill(model, prompts, self.pad_id)
            self.timings["prefill_s"] += time.perf_counter() - start
            self.timings["prefill_tokens"] += computed
            start = time.perf_counter()
            how = [requests[members[0]].sampling for _, members in rows]
            decoded = _decode(
                model,
                logits,
                cache,
                mask,
                prompt_of_row=[p for p, _ in rows],
                prompt_lengths=[len(p) for p in prompts],
                max_new_tokens=[s.max_new_tokens for s in how],
                temperatures=[s.temperature for s in how],
                seeds=[s.seed for s in how],
                eos_ids=self.eos_ids,
            )
            self.timings["decode_s"] += time.perf_counter() - start
            self.timings["decode_tokens"] += sum(len(ids) for ids, _, _ in decoded)
        out: list[tuple[int, Completion]] = []
        for (_, members), (ids, logprobs, reason) in zip(rows, decoded, strict=True):
            completion = Completion(tuple(ids), tuple(logprobs), reason, version)
            out.extend((i, completion) for i in members)
        return out


def common_prefix_length(prompts: Sequence[tuple[int, ...]]) -> int:
    """Tokens that all prompts start with, leaving each at least one token of its own."""
    shortest, longest = min(prompts), max(prompts)
    limit = min(len(p) for p in prompts) - 1
    n = 0
    while n < limit and shortest[n] == longest[n]:
        n += 1
    return n


def _prefill(
    model: torch.nn.Module, prompts: Sequence[tuple[int, ...]], pad_id: int
) -> tuple[torch.Tensor, Any, torch.Tensor, int]:
    """Run all prompts once.

    Returns next-token logits (num_prompts, vocab), the cache, the attention mask (num_prompts, width), and the number
    of tokens computed, padding not counted.
    """
    import torch

    from memr1.rollout.kv_cache import RoomyCache

    device = next(model.parameters()).device
    cache: Any = RoomyCache()
    shared = common_prefix_length(prompts) if len(prompts) > 1 else 0
    # padding then lies between prefix and suffix; a sliding window counts cache columns and would count it too
    if shared < MIN_COMMON_PREFIX_TOKENS or "sliding_attention" in attention_kinds(model):
        shared = 0
    if shared:
        prefix = torch.tensor([prompts[0][:shared]], device=device)
        model(input_ids=prefix, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_select_indices(torch.zeros(len(prompts), dtype=torch.long, device=device))
    suffixes = [p[shared:] for p in prompts]
    width = max(len(s) for s in suffixes)
    ids = torch.full((len(prompts), width), pad_id, dtype=torch.long)
    mask = torch.ones((len(prompts), shared + width), dtype=torch.long)
    positions = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, suffix in enumerate(suffixes):
        pad = width - len(suffix)
        ids[row, pad:] = torch.tensor(suffix)
        mask[row, shared : shared + pad] = 0
        positions[row, pad:] = torch.arange(shared, shared + len(suffix))
    ids, mask, positions = ids.to(device), mask.to(device), positions.to(device)
    out = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return out.logits[:, -1].float(), cache, mask, shared + sum(len(s) for s in suffixes)


def _decode(
    model: torch.nn.Module,
    logits: torch.Tensor,
    cache: Any,
    mask: torch.Tensor,
    *,
    prompt_of_row: list[int],
    prompt_lengths: list[int],
    max_new_tokens: list[int],
    temperatures: list[float],
    seeds: list[int],
    eos_ids: Sequence[int],
) -> list[tuple[list[int], list[float], str]]:
    """Sample one completion per row; rows of one prompt start from copies of its cache."""
    import torch

    device = logits.device
    num_rows, longest = len(prompt_of_row), max(max_new_tokens)
    select = torch.tensor(prompt_of_row, device=device)
    if prompt_of_row != list(range(logits.shape[0])):
        cache.batch_select_indices(select)
        logits, mask = logits[select], mask[select]
    cache.make_room(longest)
    position = torch.tensor([prompt_lengths[p] for p in prompt_of_row], device=device)
    temperature = torch.tensor(temperatures, device=device)
    limit = torch.tensor(max_new_tokens, device=device)
    eos = torch.tensor(sorted(eos_ids), device=device)
    # inverse-CDF sampling from uniforms drawn per request: the same seed gives the same tokens in any batch
    # (float64: in float32 one draw in 3e7 rounds to 1 and would pick the last token, however improbable)
    uniforms = torch.from_numpy(np.stack([np.random.Generator(np.random.Philox(s)).random(longest) for s in seeds])).to(
        device
    )
    greedy = temperature == 0
    scale = torch.where(greedy, torch.ones_like(temperature), temperature)
    row_ids = torch.arange(num_rows, device=device)  # which of the original rows are still in the batch
    tokens = torch.zeros((num_rows, longest), dtype=torch.long, device=device)
    logprobs = torch.zeros((num_rows, longest), device=device)
    lengths = torch.zeros(num_rows, dtype=torch.long, device=device)
    stopped = torch.zeros(num_rows, dtype=torch.bool, device=device)
    alive = torch.ones(num_rows, dtype=torch.bool, device=device)  # by row still in the batch
    for step in range(longest):
        scores = torch.log_softmax(logits / scale[row_ids, None], dim=-1)
        choice = torch.where(greedy[row_ids], scores.argmax(-1), _inverse_cdf(scores, uniforms[row_ids, step]))
        live = row_ids[alive]
        tokens[live, step] = choice[alive]
        logprobs[live, step] = scores.gather(1, choice[:, None]).squeeze(1)[alive]
        lengths[live] += 1
        hit_eos = torch.isin(choice, eos)
        stopped[row_ids[alive & hit_eos]] = True
        alive = alive & ~hit_eos & (lengths[row_ids] < limit[row_ids])
        running = int(alive.sum())
        if running == 0:
            break
        if running < COMPACT_BELOW * len(row_ids):
            keep = alive.nonzero().squeeze(1)
            cache.batch_select_indices(keep)
            row_ids, choice, alive = row_ids[keep], choice[keep], alive[keep]
            mask, position = mask[keep], position[keep]
        mask = torch.cat([mask, mask.new_ones((len(row_ids), 1))], dim=1)
        out = model(
            input_ids=choice[:, None],
            attention_mask=mask,
            position_ids=position[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        position = position + 1
        logits = out.logits[:, -1].float()
    done = []
    for row in range(num_rows):
        n = int(lengths[row])
        reason = "stop" if bool(stopped[row]) else "length"
        done.append((tokens[row, :n].tolist(), logprobs[row, :n].tolist(), reason))
    return done


def _inverse_cdf(logprobs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Index of the first token whose cumulative probability exceeds the uniform.

    logprobs: (rows, vocab). uniforms: (rows,) float64 in [0, 1). Returns (rows,).
    """
    import torch

    cdf = logprobs.double().exp().cumsum(-1)
    # scaled by the last value, so that rounding can never push the index past the vocabulary or onto a zero tail
    return (
        torch.searchsorted(cdf, (uniforms * cdf[:, -1])[:, None], right=True)
        .squeeze(1)
        .clamp(max=logprobs.shape[-1] - 1)
    )
