"""The questions that can be asked of a FactWorld at a point in time, with answers and evidence.

Called by `factworld_world.py`. Every question listed here is answerable from a perfectly managed bank at that point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memr1.data.dates import spell_date
from memr1.data.factworld_lexicon import ATTRIBUTES, Lexicon, say_fact
from memr1.data.factworld_story import Record

CATEGORIES = ("single-hop", "multi-hop", "temporal", "knowledge-update", "aggregation", "unanswerable")
"""The six question types; a question's `category_id` is its place here, counted from 1."""

UNKNOWN = "unknown"
"""The gold answer to a question of which the dialogue says nothing, or no longer anything."""


@dataclass(frozen=True)
class Candidate:
    """A question that could be asked."""

    category: str
    texts: tuple[str, ...]
    """Wordings, one of which is to be chosen."""
    answer: str
    evidence: tuple[str, ...]
    slots: tuple[tuple[str, str], ...]
    """The (subject, attribute) pairs on which the answer rests."""


@dataclass(frozen=True)
class State:
    """What has been told up to a turn."""

    told: Sequence[Record]
    """Every record told so far, in order."""
    ended: frozenset[int]
    """Indices into `told` of the records that no longer hold."""
    people: Sequence[str]
    """People who may be asked about: the speakers and everybody mentioned so far."""

    def live(self) -> list[Record]:
        """Records that hold."""
        return [r for i, r in enumerate(self.told) if i not in self.ended]


def candidates(lex: Lexicon, state: State) -> list[Candidate]:
    """Every question that can be asked in this state, in a fixed order."""
    live = state.live()
    current = {(r.subject, r.attribute): r for r in live if not ATTRIBUTES[r.attribute].is_set}
    found: list[Candidate] = []
    for record in live:
        slot, phrases = (record.subject, record.attribute), lex.phrases[record.attribute]
        if not ATTRIBUTES[record.attribute].is_set:
            category = "knowledge-update" if record.replaces else "single-hop"
            texts = tuple(say_fact(t, record.subject) for t in phrases.ask)
            found.append(Candidate(category, texts, record.value, (record.told_turn,), (slot,)))
        if phrases.when:
            texts = tuple(say_fact(t, record.subject, record.value) for t in phrases.when)
            found.append(Candidate("temporal", texts, spell_date(record.start), (record.told_turn,), (slot,)))
        if phrases.via:
            found += _second_hops(lex, record, current)
    found += _aggregations(lex, state)
    found += _unanswerable(lex, state)
    return found


def _second_hops(lex: Lexicon, first: Record, current: dict[tuple[str, str], Record]) -> list[Candidate]:
    path = lex.phrases[first.attribute].via.format(n=first.subject)  # a noun phrase, so no capital
    found = []
    for (subject, attribute), second in current.items():
        # "Who is the mentor of X's best friend?" with the answer X would reward repeating the question.
        if subject == first.value and second.value != first.subject:
            texts = tuple(say_fact(t, path) for t in lex.phrases[attribute].ask)
            slots = ((first.subject, first.attribute), (subject, attribute))
            evidence = (first.told_turn, second.told_turn)
            found.append(Candidate("multi-hop", texts, second.value, evidence, slots))
    return found


def _aggregations(lex: Lexicon, state: State) -> list[Candidate]:
    groups: dict[tuple[str, str], list[int]] = {}
    for index, record in enumerate(state.told):
        if ATTRIBUTES[record.attribute].is_set:
            groups.setdefault((record.subject, record.attribute), []).append(index)
    found = []
    for (subject, attribute), indices in groups.items():
        values = [state.told[i].value for i in indices if i not in state.ended]
        if not values:
            continue
        evidence = tuple(state.told[i].told_turn for i in indices) + tuple(
            turn for i in indices if i in state.ended and (turn := state.told[i].ended_turn)
        )
        phrases, slots = lex.phrases[attribute], ((subject, attribute),)
        count = tuple(say_fact(t, subject) for t in phrases.count)
        found.append(Candidate("aggregation", count, str(len(values)), evidence, slots))
        names = tuple(say_fact(t, subject) for t in phrases.ask)
        if len(values) <= 3:  # longer lists would break the limit of four words
            found.append(Candidate("aggregation", names, ", ".join(values), evidence, slots))
    return found


def _unanswerable(lex: Lexicon, state: State) -> list[Candidate]:
    """Attributes that were never told of a person, or whose value has ended without another one."""
    live = {(r.subject, r.attribute) for r in state.live()}
    last_end = {
        (r.subject, r.attribute): r.ended_turn
        for i, r in enumerate(state.told)
        if i in state.ended and r.ended_turn is not None
    }
    found = []
    for person in state.people:
        for attribute in ATTRIBUTES.values():
            slot = (person, attribute.key)
            if attribute.of_org or slot in live:
                continue
            texts = tuple(say_fact(t, person) for t in lex.phrases[attribute.key].ask)
            evidence = (last_end[slot],) if slot in last_end else ()
            found.append(Candidate("unanswerable", texts, UNKNOWN, evidence, (slot,)))
    return found
