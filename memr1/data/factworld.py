"""FactWorld: a seeded generator of small worlds told as dated small talk, with questions and oracle operations.

It needs no weights, no judge and no licence. `generate` gives worlds (hidden facts included, for training from
snapshots), `generate_dialogues` the plain dialogues every reader of memr1 gives. See docs/data.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from memr1.data.factworld_story import Story, tell_story
from memr1.data.factworld_world import Record, TurnEvent, World
from memr1.data.types import Dialogue
from memr1.errors import MemR1Error

__all__ = ["FactWorldConfig", "Record", "TurnEvent", "World", "generate", "generate_dialogues"]

_MINIMUM_COUNTS = {
    "num_worlds": 1,
    "sessions_per_world": 1,
    "people_per_world": 2,
    "facts_per_person": 1,
    "questions_per_world": 0,
    "questions_per_fact_turn": 0,
    "seed": 0,
}
_MAXIMUM_COUNTS = {"people_per_world": 20, "facts_per_person": 8}
_RATES = ("update_rate", "revoke_rate", "restate_rate", "chatter_rate", "ephemeral_rate")


@dataclass(frozen=True)
class FactWorldConfig:
    """Settings of the generator. The same settings give the same worlds, byte for byte."""

    split: str = "train"
    """`train`, `validation` or `test`: names, values and templates of one split occur in no other."""
    seed: int = 0
    """World i depends on the seed and on i, never on `num_worlds`."""
    num_worlds: int = 100
    """Dialogues to generate."""
    sessions_per_world: int = 4
    """Dated sittings per dialogue. A value changes at most once a session, so 1 leaves no updates. 3 to 5."""
    people_per_world: int = 4
    """People in a world, the two speakers among them. 2 to 20."""
    facts_per_person: int = 2
    """First statements per person, on average; updates and the rest come on top. 1 to 8."""
    update_rate: float = 0.6
    """Updates per first statement. They gather on few attributes, so that some change more than once. 0 to 2."""
    revoke_rate: float = 0.2
    """Revocations ("no longer ...") per first statement. 0 to 2."""
    restate_rate: float = 0.25
    """Facts told again in other words (oracle NOOP) per first statement. 0 to 2."""
    chatter_rate: float = 0.25
    """Turns without any fact, per turn that changes or repeats a fact. 0 to 2."""
    ephemeral_rate: float = 0.25
    """Turns with a passing remark not worth keeping (oracle NOOP), per turn that changes or repeats a fact. 0 to 2."""
    questions_per_world: int = 7
    """Questions asked at the end of the dialogue; the first six are of six types. 6 to 12."""
    questions_per_fact_turn: int = 0
    """Questions asked right after every turn with a fact, in addition (`asked_after` is set). 0 leaves them to
    `World.questions_after`."""

    def __post_init__(self) -> None:
        if self.split not in ("train", "validation", "test"):
            raise MemR1Error(f"data.factworld.split is {self.split!r}; set it to train, validation or test")
        for name, least in _MINIMUM_COUNTS.items():
            value, most = getattr(self, name), _MAXIMUM_COUNTS.get(name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least or (most and value > most):
                allowed = f"from {least} to {most}" if most else f"of at least {least}"
                raise MemR1Error(f"data.factworld.{name} is {value!r}; set it to a whole number {allowed}")
        for name in _RATES:
            rate = getattr(self, name)
            if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 <= rate <= 2:
                raise MemR1Error(f"data.factworld.{name} is {rate!r}; set it to a number from 0 to 2")


def generate(config: FactWorldConfig) -> list[World]:
    """`config.num_worlds` worlds: a pure function of the config, and a prefix of every longer run with its seed."""
    return [_world(config, index) for index in range(config.num_worlds)]


def generate_dialogues(config: FactWorldConfig) -> list[Dialogue]:
    """The dialogues of `generate`, without their hidden worlds."""
    return [world.dialogue for world in generate(config)]


def _world(config: FactWorldConfig, index: int) -> World:
    name = f"factworld-{config.split}-{config.seed}-{index:05d}"
    story: Story = tell_story(
        name,
        config.split,
        num_sessions=config.sessions_per_world,
        num_people=config.people_per_world,
        facts_per_person=config.facts_per_person,
        update_rate=config.update_rate,
        revoke_rate=config.revoke_rate,
        restate_rate=config.restate_rate,
        chatter_rate=config.chatter_rate,
        ephemeral_rate=config.ephemeral_rate,
    )
    return World.ask(
        story,
        questions_at_end=config.questions_per_world,
        questions_per_fact_turn=config.questions_per_fact_turn,
    )
