"""New weights on their way from learners to runners through Ray's object store."""

from __future__ import annotations

from dataclasses import dataclass, replace

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from memr1.errors import MemR1Error
from memr1.rollout.engine import WeightUpdate, in_parts

PART_BYTES = 256 * 2**20
"""Weights travel in parts of this size: a full model as one object would need as much free memory in one piece."""


class WeightsLost(MemR1Error):
    """The only copy of a shipment is gone with the node of the learner that wrote it."""


@dataclass(frozen=True)
class Shipment:
    """References to an update in the object store, which may still be on their way there."""

    policy: str
    version: int
    head: ray.ObjectRef
    """A `WeightUpdate` without its tensors."""
    parts: tuple[ray.ObjectRef, ...]
    """Tensors by name."""

    @classmethod
    def send(cls, update: WeightUpdate) -> Shipment:
        """Put an update into the object store."""
        names = in_parts({name: t.nbytes for name, t in update.tensors.items()}, PART_BYTES)
        parts = tuple(ray.put({name: update.tensors[name] for name in part}) for part in names)
        return cls(update.policy, update.version, ray.put(replace(update, tensors={})), parts)

    def receive(self) -> WeightUpdate:
        """The whole update, over the memory of the object store: parts on this machine are not copied.

        Raises WeightsLost where the store has lost them, or the learner that should have written them failed.
        """
        try:
            head, *parts = ray.get([self.head, *self.parts])
        except (ObjectLostError, RayActorError, RayTaskError) as error:
            said = str(error).strip().splitlines()[0]
            raise WeightsLost(f"the weights of {self.policy} are lost: {said}") from error
        update: WeightUpdate = head
        return replace(update, tensors={name: t for part in parts for name, t in part.items()})
