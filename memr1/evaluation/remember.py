"""Greedy answers that were computed already: systems that show an answerer the same prompt get the same answer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from memr1.rollout.engine import Completion, Engine, GenerationRequest, WeightUpdate

Answers = dict[tuple[str, int, tuple[int, ...], int, tuple[str, ...]], tuple[Completion, float]]
"""(policy, its weight version, prompt, most new tokens, stop texts) -> the greedy completion, and the seconds it took:
its share of what was generated with it."""


class RememberingEngine:
    """An engine in front of another one. Only greedy requests are remembered, for the weights that made them."""

    def __init__(self, inner: Engine, answers: Answers) -> None:
        self.inner, self.answers = inner, answers
        self.saved = 0.0
        """Seconds that it took to compute the completions that were remembered."""

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """See `Engine.generate`."""
        versions = self.inner.weight_versions()
        keys = [
            (r.policy, versions[r.policy], r.prompt_ids, r.sampling.max_new_tokens, r.sampling.stop) for r in requests
        ]
        new = [i for i, r in enumerate(requests) if r.sampling.temperature > 0 or keys[i] not in self.answers]
        start = time.perf_counter()
        made = dict(zip(new, self.inner.generate([requests[i] for i in new]) if new else [], strict=True))
        share = (time.perf_counter() - start) / max(len(new), 1)
        self.saved += sum(self.answers[keys[i]][1] for i in range(len(requests)) if i not in made)
        self.answers.update({keys[i]: (made[i], share) for i in new if requests[i].sampling.temperature == 0})
        return [made[i] if i in made else self.answers[keys[i]][0] for i in range(len(requests))]

    def load_weights(self, update: WeightUpdate) -> int:
        """See `Engine.load_weights`."""
        return self.inner.load_weights(update)

    def weight_versions(self) -> dict[str, int]:
        """See `Engine.weight_versions`."""
        return self.inner.weight_versions()

    def set_weight_versions(self, versions: Mapping[str, int]) -> None:
        """See `Engine.set_weight_versions`."""
        self.inner.set_weight_versions(versions)

    def pop_timings(self) -> dict[str, float]:
        """See `Engine.pop_timings`."""
        return self.inner.pop_timings()
