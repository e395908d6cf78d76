"""World: a FactWorld dialogue with the hidden facts behind it, and the questions to ask at any turn.

Training the Memory Manager from snapshots needs questions whose answers are right just after a given turn;
`World.questions_after` gives them.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from memr1.data.factworld_lexicon import lexicon
from memr1.data.factworld_questions import CATEGORIES, Candidate, State, candidates
from memr1.data.factworld_story import Record, Story, TurnEvent
from memr1.data.types import Dialogue, Question
from memr1.errors import MemR1Error

__all__ = ["Record", "TurnEvent", "World"]


@dataclass(frozen=True)
class World:
    """A dialogue and what is true behind it."""

    story: Story
    """The hidden side: people, records with validity intervals, and what each turn does to them."""
    dialogue: Dialogue
    """The visible side, with the questions asked of it."""

    @classmethod
    def ask(cls, story: Story, *, questions_at_end: int, questions_per_fact_turn: int) -> World:
        """Choose the questions of a story. Their randomness is apart from the story's, which they leave as it is."""
        world = cls(story, Dialogue(story.id, story.people[:2], story.sessions, (), {"split": story.split}))
        rng = random.Random(f"{story.id}/questions")
        questions: list[Question] = []
        if questions_per_fact_turn:
            bearing = (questions_per_fact_turn + 1) // 2
            for turn_id in world.fact_turns:
                others = questions_per_fact_turn - bearing
                questions += world.questions_after(turn_id, rng, num_bearing=bearing, num_others=others)
        questions += world._questions_at_end(rng, questions_at_end)
        return replace(world, dialogue=replace(world.dialogue, questions=tuple(questions)))

    @property
    def id(self) -> str:
        """The dialogue's id."""
        return self.story.id

    @property
    def records(self) -> tuple[Record, ...]:
        """The hidden relation table, in the order of telling."""
        return self.story.records

    @property
    def fact_turns(self) -> tuple[str, ...]:
        """Ids of the turns that carry a fact, passing remarks included, in order."""
        return tuple(e.turn_id for e in self.story.events)

    def event(self, turn_id: str) -> TurnEvent | None:
        """What the turn does to the hidden world; None for chatter."""
        return next((e for e in self.story.events if e.turn_id == turn_id), None)

    def live_records(self, turn_id: str) -> list[Record]:
        """The facts that hold just after a turn, as far as they have been told, in the order of telling."""
        return self._state(turn_id).live()

    def live_entries(self, turn_id: str) -> list[str]:
        """What a perfect bank holds just after a turn: the texts of `live_records`."""
        return [r.entry for r in self.live_records(turn_id)]

    def questions_after(
        self, turn_id: str, rng: random.Random, *, num_bearing: int = 2, num_others: int = 2
    ) -> list[Question]:
        """Questions whose answers are right just after a turn, with evidence among the turns up to it.

        First come up to `num_bearing` questions that rest on what the turn's fact is about (for a passing remark:
        on the attribute it could be mistaken for, or on its subject), then up to `num_others` about other live facts:
        those that share the subject or the attribute first, as they suffer when a decision hits the wrong entry.
        A turn of chatter has none of the first kind. `asked_after` is set to the turn.
        Raises MemR1Error for an id that is no turn of this dialogue.
        """
        found = candidates(lexicon(self.story.split), self._state(turn_id))
        touching = set(map(id, self._bearing(turn_id, found)))
        bearing = [c for c in found if id(c) in touching]
        others = [c for c in found if id(c) not in touching and c.category != "unanswerable"]
        if not bearing and not others:
            others = found  # nothing holds yet: only questions without an answer are left
        event = self.event(turn_id)
        near: list[Candidate] = []
        far: list[Candidate] = []
        for c in others:
            touched = event is not None and any(s == event.subject or a == event.attribute for s, a in c.slots)
            (near if touched else far).append(c)
        chosen = _spread(rng, near, num_others)
        chosen += _spread(rng, far, num_others - len(chosen))
        return self._word(rng, _spread(rng, bearing, num_bearing) + chosen, turn_id)

    def _bearing(self, turn_id: str, found: Iterable[Candidate]) -> list[Candidate]:
        event = self.event(turn_id)
        if event is None:
            return []
        if event.attribute is None:
            return [c for c in found if c.category != "unanswerable" and event.subject in {s for s, _ in c.slots}]
        return [c for c in found if (event.subject, event.attribute) in c.slots]

    def _state(self, turn_id: str) -> State:
        order = {turn.id: n for n, (_, turn) in enumerate(self.dialogue.turns())}
        if turn_id not in order:
            raise MemR1Error(
                f"dialogue {self.id} has no turn {turn_id!r}; its turns run from {next(iter(order), 'none')} "
                f"to {next(reversed(order), 'none')}"
            )
        now = order[turn_id]
        told = [r for r in self.story.records if order[r.told_turn] <= now]
        ended = frozenset(i for i, r in enumerate(told) if r.ended_turn is not None and order[r.ended_turn] <= now)
        mentioned = {r.subject for r in told} | {r.value for r in told} | set(self.story.people[:2])
        mentioned |= {e.subject for e in self.story.events if order[e.turn_id] <= now}
        return State(told, ended, [p for p in self.story.people if p in mentioned])

    def _questions_at_end(self, rng: random.Random, number: int) -> list[Question]:
        if not self.dialogue.sessions:
            return []
        found = candidates(lexicon(self.story.split), self._state(self.dialogue.sessions[-1].turns[-1].id))
        return self._word(rng, _spread(rng, found, number), None)

    def _word(self, rng: random.Random, chosen: Sequence[Candidate], turn_id: str | None) -> list[Question]:
        return [
            Question(
                id=f"{self.id}/{turn_id or 'end'}/{number}",
                text=rng.choice(candidate.texts),
                answer=candidate.answer,
                category=candidate.category,
                category_id=CATEGORIES.index(candidate.category) + 1,
                evidence=candidate.evidence,
                asked_after=turn_id,
            )
            for number, candidate in enumerate(chosen, 1)
        ]


def _spread(rng: random.Random, found: Sequence[Candidate], number: int) -> list[Candidate]:
    """Choose up to `number` candidates, round after round one of each category while there are any.

    Unanswerable ones exist in masses; they take part in the first round only, so that they stay a minority.
    """
    pools = {c: [f for f in found if f.category == c] for c in CATEGORIES}
    # Most unanswerable questions ask for something that ended, where there is such a thing: those need DELETE.
    revoked = [f for f in pools["unanswerable"] if f.evidence]
    if revoked and rng.random() < 0.75:
        pools["unanswerable"] = revoked
    # A set of one member aggregates nothing: it is asked about only where there is no larger one.
    pools["aggregation"] = [f for f in pools["aggregation"] if len(f.evidence) > 1] or pools["aggregation"]
    chosen: list[Candidate] = []
    first = True
    while len(chosen) < number:
        round_categories = [c for c in CATEGORIES if pools[c] and (first or c != "unanswerable")]
        if not round_categories:
            break
        for category in rng.sample(round_categories, min(len(round_categories), number - len(chosen))):
            chosen.append(pools[category].pop(rng.randrange(len(pools[category]))))
        first = False
    return chosen
