"""ResumableSampler: which items come next, so that "take 10" equals "take 5, save, restore, take 5"."""

from __future__ import annotations

import random
from typing import Any

from memr1.errors import MemR1Error


class ResumableSampler:
    """Endless epochs over `num_items` items, each epoch in an order of its own and every item once in it.

    The order depends on the seed and the epoch's number alone, so the state is four integers.
    """

    def __init__(self, num_items: int, seed: int = 0) -> None:
        if num_items < 1:
            raise MemR1Error(f"there are {num_items} items to sample from; check that the dataset is not empty")
        self.num_items = num_items
        self.seed = seed
        self.epoch = 0
        self.position = 0
        self._order = self._shuffled(0)

    def take(self, n: int) -> list[int]:
        """The next `n` indices into the items; a take may run over the end of an epoch into the next."""
        if n < 0:
            raise ValueError(f"cannot take {n} items")
        taken: list[int] = []
        while len(taken) < n:
            if self.position == self.num_items:
                self.epoch, self.position = self.epoch + 1, 0
                self._order = self._shuffled(self.epoch)
            part = self._order[self.position : self.position + n - len(taken)]
            self.position += len(part)
            taken += part
        return taken

    def state_dict(self) -> dict[str, int]:
        """All that `load_state_dict` needs to go on from here."""
        return {"num_items": self.num_items, "seed": self.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken. Raises MemR1Error where the state is of other data or another seed."""
        for name, kept in (("num_items", self.num_items), ("seed", self.seed)):
            if state.get(name) != kept:
                raise MemR1Error(
                    f"sampler state: {name} is {state.get(name)!r} in the checkpoint and {kept} in this run; "
                    "resume with the data and the seed that the run began with"
                )
        epoch, position = state.get("epoch"), state.get("position")
        if (
            not isinstance(epoch, int)
            or epoch < 0
            or not isinstance(position, int)
            or not 0 <= position <= self.num_items
        ):
            raise MemR1Error(
                f"sampler state: epoch {epoch!r} and position {position!r} do not fit {self.num_items} items; "
                "resume from another checkpoint"
            )
        self.epoch, self.position = epoch, position
        self._order = self._shuffled(epoch)

    def _shuffled(self, epoch: int) -> list[int]:
        order = list(range(self.num_items))
        random.Random(f"sampler/{self.seed}/{epoch}").shuffle(order)
        return order
