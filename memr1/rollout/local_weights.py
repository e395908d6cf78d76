"""What engines that hold their own copy of the weights have in common: loading, versions, timings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

from memr1.models.weight_files import from_arrays
from memr1.rollout.engine import WeightUpdate

if TYPE_CHECKING:
    from memr1.models.adapters import PolicyModel


class LocalWeights:
    """The part of the `Engine` protocol that is about weights, over a `PolicyModel` in this process."""

    def __init__(self, policies: PolicyModel) -> None:
        self.policies = policies
        self.timings: dict[str, float] = defaultdict(float)
        """Seconds and token counts by phase since the last `pop_timings`."""
        self._versions: dict[str, int] = dict.fromkeys(policies.policies(), 0)

    def load_weights(self, update: WeightUpdate) -> int:
        """See `Engine.load_weights`."""
        update.verify()
        self.policies.load_weights(update.policy, from_arrays(update.tensors))
        self._versions[update.policy] = update.version
        return update.version

    def weight_versions(self) -> dict[str, int]:
        """See `Engine.weight_versions`."""
        return dict(self._versions)

    def set_weight_versions(self, versions: Mapping[str, int]) -> None:
        """See `Engine.set_weight_versions`."""
        self._versions.update(versions)

    def pop_timings(self) -> dict[str, float]:
        """Seconds and tokens by phase since the last call; the names are the engine's."""
        timings, self.timings = dict(self.timings), defaultdict(float)
        return timings
