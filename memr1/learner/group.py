"""The learner group as the training loop sees it, and the group of one in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from memr1.config import Config
from memr1.learner.deepspeed_learner import DeepSpeedLearner, UpdateSettings
from memr1.learner.engine import Rendezvous
from memr1.learner.packing import Plan
from memr1.models.adapters import PolicyModel
from memr1.rollout.engine import Outgoing, WeightUpdate


class LearnerGroup(Protocol):
    """All ranks of a stage's learner. Every call reaches every rank; a group fails and is remade as a unit."""

    def update(self, plan: Plan, settings: UpdateSettings) -> list[dict[str, float]]:
        """One optimizer step; statistics by rank."""

    def ship(self, version: int) -> Outgoing:
        """The role's current weights for `RunnerPool.push` of the same backend; good until the next update."""

    def supports_shared_prefixes(self) -> bool:
        """Whether prompts may be packed once for their group."""

    def save(self, folder: str) -> None:
        """Write optimizer and weights, sharded."""

    def restore(self, folder: str) -> None:
        """Read what `save` wrote."""

    def close(self) -> None:
        """Release processes and memory."""


LearnerFactory = Callable[[Config, str, str | None], LearnerGroup]
"""(configuration for the stage, role, folder of policies or None) -> a new group whose optimizer is fresh."""


class LocalLearnerGroup:
    """One rank in this process."""

    def __init__(
        self, config: Config, role: str, weights_folder: str | None, beside: PolicyModel | None = None
    ) -> None:
        """beside: what generates in this process. The frozen base is then held once for both, and what generation
        keeps is freed before an update."""
        self.learner = DeepSpeedLearner(config, role, weights_folder, Rendezvous())
        self._beside = beside
        if beside is not None:
            self.learner.policies.share_base(beside)

    def update(self, plan: Plan, settings: UpdateSettings) -> list[dict[str, float]]:
        """See `LearnerGroup.update`."""
        if self._beside is not None:
            self._beside.forget_merged()
        (microbatches,) = plan.ranks
        return [self.learner.update(microbatches, settings)]

    def ship(self, version: int) -> WeightUpdate:
        """See `LearnerGroup.ship`. Where they lie: the runner in this process copies them into its own."""
        return WeightUpdate.build(self.learner.role, version, self.learner.in_place(), checked=False)

    def supports_shared_prefixes(self) -> bool:
        """See `LearnerGroup.supports_shared_prefixes`."""
        return self.learner.supports_shared_prefixes()

    def save(self, folder: str) -> None:
        """See `LearnerGroup.save`."""
        self.learner.save(folder)

    def restore(self, folder: str) -> None:
        """See `LearnerGroup.restore`."""
        self.learner.restore(folder)

    def close(self) -> None:
        """See `LearnerGroup.close`."""
        self.learner.close()
