"""The default engine: plain transformers on CPU or GPU, computing shared prefixes once.

Within one call, prompts that several requests share are prefilled once, what different prompts have in common is, too
(`memr1.rollout.prefill`), and completions that begin alike are computed once (`memr1.rollout.decode`). Nothing is kept
between calls, so no cache can outlive the weights that made it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from memr1.errors import MemR1Error
from memr1.models.attention import attention_kinds
from memr1.rollout.decode import Decode, sample
from memr1.rollout.engine import Completion, GenerationRequest
from memr1.rollout.local_weights import LocalWeights
from memr1.rollout.prefill import Prompt, common_prefix_length, families, prefill

if TYPE_CHECKING:
    import torch

    from memr1.models.adapters import PolicyModel
    from memr1.rollout.engine import Watch


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
            return sum(self._most_rows(requests, prompts[p]) for p in family), max(longest)

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

    @staticmethod
    def _most_rows(requests: Sequence[GenerationRequest], members: Sequence[int]) -> int:
        """Rows that a prompt may come to: greedy members never part."""
        sampled = sum(requests[i].sampling.temperature > 0 for i in members)
        return sampled + (sampled < len(members))

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

        with torch.inference_mode():
            start = time.perf_counter()
            prompts = [prompt for family in batch for prompt in family]
            members = [(p, i) for p, prompt in enumerate(prompts) for i in members_of[prompt]]
            filled = prefill(model, batch, self.pad_id)
            self.timings["prefill_s"] += time.perf_counter() - start
            self.timings["prefill_tokens"] += filled.computed
            start = time.perf_counter()
            decoded, computed = sample(
                model,
                filled,
                [p for p, _ in members],
                [requests[i].sampling for _, i in members],
                eos_ids=self.eos_ids,
                decode=self.decode,
                watch=None if watch is None else lambda member, token: watch(members[member][1], token),
            )
            self.timings["decode_s"] += time.perf_counter() - start
            self.timings["decode_tokens"] += sum(len(ids) for ids, _, _ in decoded)
            self.timings["decode_computed_tokens"] += computed
        return [
            (i, Completion(tuple(ids), tuple(logprobs), reason, version))
            for (_, i), (ids, logprobs, reason) in zip(members, decoded, strict=True)
        ]
