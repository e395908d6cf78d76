"""The default engine: plain transformers on CPU or GPU, computing shared prefixes once.

Within one call, prompts that several requests share are prefilled once and their key-value cache is repeated for the
group; what different prompts have in common is prefilled once, too (`memr1.rollout.prefill`). Nothing is kept between
calls, so no cache can outlive the weights that made it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from memr1.errors import MemR1Error
from memr1.models.attention import attention_kinds
from memr1.rollout.engine import Completion, GenerationRequest
from memr1.rollout.local_weights import LocalWeights
from memr1.rollout.prefill import Prompt, common_prefix_length, families, prefill

if TYPE_CHECKING:
    import torch

    from memr1.models.adapters import PolicyModel
    from memr1.rollout.engine import Watch

Decode = Callable[[Sequence[int]], str]
COMPACT_BELOW = 0.75
"""Finished rows are dropped from the cache when fewer than this share of the rows are still running."""


class TransformersEngine(LocalWeights):
    """Batched generation with a decode loop over a preallocated cache. Not thread-safe."""

    def __init__(
        self,
        policies: PolicyModel,
        eos_ids: Sequence[int],
        pad_id: int,
        *,
        max_tokens_per_batch: int = 16384,
        decode: Decode | None = None,
    ) -> None:
        """decode: token ids to text; needed for requests with stop texts."""
        model = policies.module(policies.roles[0])
        kinds = attention_kinds(model)
        if not kinds:
            raise MemR1Error(
                f"{policies.source}: {type(model).__name__} has recurrent or other layers that keep more than keys and "
                "values; this engine cannot generate with it. Choose a model with full or sliding-window attention"
            )
        self._sliding = "sliding_attention" in kinds
        super().__init__(policies)
        self.eos_ids = tuple(eos_ids)
        self.pad_id = pad_id
        self.max_tokens_per_batch = max_tokens_per_batch
        self.decode = decode

    # -- generation ---------------------------------------------------------------------------------------------

    def generate(self, requests: Sequence[GenerationRequest], watch: Watch | None = None) -> list[Completion]:
        """See `Engine.generate`. Raises ValueError on an empty prompt.

        watch: is told every token as it is sampled; a request that it gives up ends there, with what it has.
        """
        results: list[Completion | None] = [None] * len(requests)
        by_policy: dict[str, dict[Prompt, list[int]]] = defaultdict(lambda: defaultdict(list))
        for i, request in enumerate(requests):
            if not request.prompt_ids:
                raise ValueError(f"request {i} has an empty prompt")
            if request.sampling.stop and self.decode is None:
                raise ValueError(f"request {i} has stop texts, and the engine was made without a way to read tokens")
            by_policy[request.policy][request.prompt_ids].append(i)
        for policy, prompts in by_policy.items():
            with self.policies.use_merged(policy) as model:
                for batch in self._batches(requests, prompts):
                    version = self._versions[policy]
                    for i, completion in self._generate_batch(model, requests, batch, prompts, version, watch):
                        results[i] = completion
        return [r for r in results if r is not None]

    def _batches(
        self, requests: Sequence[GenerationRequest], prompts: dict[Prompt, list[int]]
    ) -> list[list[list[Prompt]]]:
        """Families of prompts in batches within the token budget: those of similar length together, so that little is
        padding, and families of several apart from prompts that share nothing."""
        singles: list[list[Prompt]] = []
        several: list[list[Prompt]] = []
        for family in [[p] for p in prompts] if self._sliding else families(list(prompts)):
            (several if len(family) > 1 else singles).append(family)
        singles.sort(key=lambda family: len(family[0]))
        several.sort(key=lambda family: common_prefix_length(family))
        return [batch for kind in (singles, several) for batch in self._packed(requests, prompts, kind)]

    def _packed(
        self, requests: Sequence[GenerationRequest], prompts: dict[Prompt, list[int]], kind: list[list[Prompt]]
    ) -> list[list[list[Prompt]]]:
        """Families in batches, each whole in one batch unless it is larger than a batch may be."""

        def rows_and_width(family: Sequence[Prompt]) -> tuple[int, int]:
            longest = [len(p) + max(requests[i].sampling.max_new_tokens for i in prompts[p]) for p in family]
            return sum(len(prompts[p]) for p in family), max(longest)

        def fits(rows: int, width: int) -> bool:
            return rows * width <= self.max_tokens_per_batch

        batches: list[list[list[Prompt]]] = []
        rows = widest = 0
        for family in kind:
            whole = fits(*rows_and_width(family))
            for piece in [family] if whole else [[p] for p in family]:
                more, width = rows_and_width(piece)
                if batches and fits(rows + more, max(widest, width)):
                    rows, widest = rows + more, max(widest, width)
                    if piece is family or piece[0] == family[0]:
                        batches[-1].append(list(piece))
                    else:
                        batches[-1][-1] += piece
                else:
                    batches.append([list(piece)])
                    rows, widest = more, width
        return batches

    def _generate_batch(
        self,
        model: torch.nn.Module,
        requests: Sequence[GenerationRequest],
        batch: list[list[Prompt]],
        members_of: dict[Prompt, list[int]],
        version: int,
        watch: Watch | None,
    ) -> list[tuple[int, Completion]]:
        import torch

        def go_on(row: int, token: int) -> bool:
            assert watch is not None
            return any([watch(i, token) for i in rows[row][1]])  # a list: everybody is told

        with torch.inference_mode():
            start = time.perf_counter()
            # identical greedy requests have one answer: compute it once
            rows: list[tuple[int, list[int]]] = []  # (prompt index, request indices served by this row)
            prompts = [prompt for family in batch for prompt in family]
            for p, prompt in enumerate(prompts):
                greedy: dict[tuple[int, tuple[str, ...]], list[int]] = {}
                for i in members_of[prompt]:
                    sampling = requests[i].sampling
                    ends = (sampling.max_new_tokens, sampling.stop)
                    if sampling.temperature > 0:
                        rows.append((p, [i]))
                    elif ends in greedy:
                        greedy[ends].append(i)
                    else:
                        greedy[ends] = [i]
                        rows.append((p, greedy[ends]))
            filled = prefill(model, batch, self.pad_id)
            assert filled.logits is not None and filled.mask is not None
            self.timings["prefill_s"] += time.perf_counter() - start
            self.timings["prefill_tokens"] += filled.computed
            start = time.perf_counter()
            how = [requests[members[0]].sampling for _, members in rows]
            decoded = _decode(
                model,
                filled.logits,
                filled.cache,
                filled.mask,
                prompt_of_row=[p for p, _ in rows],
                prompt_lengths=filled.lengths,
                max_new_tokens=[s.max_new_tokens for s in how],
                temperatures=[s.temperature for s in how],
                seeds=[s.seed for s in how],
                eos_ids=self.eos_ids,
                stops=[s.stop for s in how],
                decode=self.decode,
                watch=None if watch is None else go_on,
            )
            self.timings["decode_s"] += time.perf_counter() - start
            self.timings["decode_tokens"] += sum(len(ids) for ids, _, _ in decoded)
        out: list[tuple[int, Completion]] = []
        for (_, members), (ids, logprobs, reason) in zip(rows, decoded, strict=True):
            completion = Completion(tuple(ids), tuple(logprobs), reason, version)
            out.extend((i, completion) for i in members)
        return out


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
    stops: list[tuple[str, ...]],
    decode: Decode | None,
    watch: Watch | None,
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
        ended = torch.isin(choice, eos)
        if decode is not None and any(stops):
            rows = row_ids.tolist()
            said = [decode(tokens[r, : int(lengths[r])].tolist()) if stops[r] else "" for r in rows]
            found = [any(s in text for s in stops[r]) for r, text in zip(rows, said, strict=True)]
            ended |= torch.tensor(found, device=device)
        stopped[row_ids[alive & ended]] = True
        unwanted = []
        if watch is not None:
            unwanted = [r for r, t in zip(live.tolist(), choice[alive].tolist(), strict=True) if not watch(r, t)]
        alive = alive & ~ended & (lengths[row_ids] < limit[row_ids])
        if unwanted:
            alive = alive & ~torch.isin(row_ids, torch.tensor(unwanted, device=device))
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
