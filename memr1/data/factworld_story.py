"""How a FactWorld comes about: a plan of first statements, then a simulation that tells, changes and ends facts.

Called by `factworld.py`. All randomness comes from one generator seeded with the world's name.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from typing import Any

from memr1.data.dates import spell_date
from memr1.data.factworld_lexicon import ATTRIBUTES, Attribute, Lexicon, lexicon, say_aloud, say_fact
from memr1.data.types import Fact, OracleOp, Session, Turn

_PERSONAL = tuple(a.key for a in ATTRIBUTES.values() if not a.of_org)
_SETS = tuple(a.key for a in ATTRIBUTES.values() if a.is_set)
_RELATIONS = tuple(a.key for a in ATTRIBUTES.values() if a.pool == "person")
_PLAIN = tuple(k for k in _PERSONAL if k not in _SETS and k not in _RELATIONS)


@dataclass(frozen=True)
class Record:
    """One hidden fact with its validity interval [start, end)."""

    subject: str
    """Full name of a person or an organisation."""
    attribute: str
    """Key of `ATTRIBUTES`."""
    value: str
    entry: str
    """The sentence a perfect bank stores for it."""
    start: date
    """Day of the session that told it."""
    told_turn: str
    """Id of the turn that told it."""
    replaces: bool
    """True where it took the place of an earlier value of a single-valued attribute."""
    end: date | None = None
    """Day of the session in which it ceased to hold; None while it holds."""
    ended_turn: str | None = None
    """Id of the turn that updated or revoked it."""


@dataclass(frozen=True)
class TurnEvent:
    """What a turn that carries a fact does to the hidden world."""

    turn_id: str
    kind: str
    """state, update, revoke, restate or ephemeral."""
    subject: str
    attribute: str | None
    """None for a passing remark that touches no attribute."""


@dataclass(frozen=True)
class Story:
    """A told world, before questions are asked about it."""

    id: str
    split: str
    people: tuple[str, ...]
    """Full names; the first two are the speakers."""
    sessions: tuple[Session, ...]
    records: tuple[Record, ...]
    """In the order in which they were told."""
    events: tuple[TurnEvent, ...]


def tell_story(
    name: str,
    split: str,
    *,
    num_sessions: int,
    num_people: int,
    facts_per_person: int,
    update_rate: float,
    revoke_rate: float,
    restate_rate: float,
    chatter_rate: float,
    ephemeral_rate: float,
) -> Story:
    """Plan a world and tell it. The rates are those of `FactWorldConfig`."""
    # A string seed is hashed with SHA-512, so the stream is the same on every machine and Python version.
    rng, lex = random.Random(name), lexicon(split)
    first = rng.sample(lex.first_names, num_people)
    people = tuple(f"{f} {s}" for f, s in zip(first, rng.sample(lex.surnames, num_people), strict=True))
    plan, chain = _plan(rng, lex, people, num_people * facts_per_person)
    counts = Counter(state=len(plan))
    for kind, rate in (("update", update_rate), ("revoke", revoke_rate), ("restate", restate_rate)):
        counts[kind] = _round(rng, rate * len(plan))
    changes = counts.total()
    counts["ephemeral"] = _round(rng, ephemeral_rate * changes)
    counts["chatter"] = _round(rng, chatter_rate * changes)
    return _Teller(name, split, rng, lex, people, plan, chain, counts, num_sessions).tell()


def _round(rng: random.Random, expected: float) -> int:
    """Round up or down at random so that the mean is `expected`."""
    return int(expected) + (rng.random() < expected % 1)


_Slot = tuple[str, str]
"""A subject and an attribute."""


@dataclass(frozen=True)
class _Item:
    """A first statement that is yet to be told."""

    subject: str
    attribute: str
    value: str


def _plan(
    rng: random.Random, lex: Lexicon, people: tuple[str, ...], num_items: int
) -> tuple[list[_Item], tuple[_Slot, _Slot]]:
    """Choose the first statements: a set of at least two members, a chain of two hops, then a fill of all kinds.

    Returns the statements and the two slots of the chain.
    """
    items: list[_Item] = []

    def add(subject: str, attribute: str) -> _Item:
        taken = {subject} | {i.value for i in items if (i.subject, i.attribute) == (subject, attribute)}
        pool = people if ATTRIBUTES[attribute].pool == "person" else lex.pools[ATTRIBUTES[attribute].pool]
        items.append(_Item(subject, attribute, rng.choice([v for v in pool if v not in taken])))
        return items[-1]

    owner, chosen_set = rng.choice(people), rng.choice(_SETS)
    for _ in range(rng.choice((2, 2, 3))):
        add(owner, chosen_set)
    holder = rng.choice([p for p in people if p != owner])
    if rng.random() < 0.65:
        first = add(holder, rng.choice(_RELATIONS))
        second = add(first.value, rng.choice(_PLAIN))
    else:
        first = add(holder, "employer")
        second = add(first.value, "org_base")
    while len(items) < num_items:
        told = Counter({p: 0 for p in people})
        told.update(i.subject for i in items if i.subject in told)
        least = min(told.values())
        person = rng.choice([p for p in people if told[p] == least])
        used = {i.attribute for i in items if i.subject == person}
        free = [k for k in _PERSONAL if k not in used]
        item = add(person, rng.choice(free))
        org_has_base = any(i.subject == item.value for i in items)
        if item.attribute == "employer" and not org_has_base and len(items) < num_items and rng.random() < 0.6:
            add(item.value, "org_base")
    return items, ((first.subject, first.attribute), (second.subject, second.attribute))


@dataclass
class _Teller:
    """The simulation: speakers take turns, and each turn does one thing to the world, or nothing."""

    name: str
    split: str
    rng: random.Random
    lex: Lexicon
    people: tuple[str, ...]
    plan: list[_Item]
    chain: tuple[_Slot, _Slot]
    """The first slot never changes and the second is never revoked, so that every world has a question of one hop and
    one of two."""
    left: Counter[str]
    """Turns of each kind that are still to come."""
    num_sessions: int
    records: list[Record] = field(default_factory=list)
    events: list[TurnEvent] = field(default_factory=list)
    told_session: dict[str, int] = field(default_factory=dict)
    """Entry text to the index of the session that told it."""
    told_number: dict[str, int] = field(default_factory=dict)
    """Entry text to the count of turns before the one that told it last."""
    used_lines: set[str] = field(default_factory=set)
    hot: set[_Slot] = field(default_factory=set)
    """Slots that are updated most."""

    def tell(self) -> Story:
        """Play all sessions."""
        rng = self.rng
        slots = sorted({(i.subject, i.attribute) for i in self.plan if not ATTRIBUTES[i.attribute].is_set})
        rng.shuffle(slots)
        movable = [s for s in slots if s != self.chain[0] and (s[1] not in _RELATIONS or len(self.people) > 3)]
        # Updates gather on the hot slots.
        self.hot = set(movable[: max(1, round(self.left["update"] / 2))])
        rng.shuffle(self.plan)
        self.plan.sort(key=lambda i: (i.subject, i.attribute) not in self.hot)  # told early, to change often
        total, day = self.left.total(), date(2023, 1, 1) + timedelta(days=rng.randrange(365))
        sessions: list[Session] = []
        spoken, number = rng.randrange(2), 0
        for index in range(self.num_sessions):
            share = round(total * (index + 1) / self.num_sessions) - round(total * index / self.num_sessions)
            turns: list[Turn] = []
            last = index == self.num_sessions - 1
            while len(turns) < share or (last and self.left.total() > 0):
                turn_id = f"D{index + 1}:{len(turns) + 1}"
                turn = self._turn(turn_id, index, number, day, spoken, opening=not turns)
                if turn is None:  # nothing the other speaker could say either: what is left cannot be told
                    break
                spoken = 1 - self.people.index(turn.speaker)
                turns.append(turn)
                number += 1
            if turns:
                time = datetime(day.year, day.month, day.day, rng.randrange(8, 21), rng.randrange(60))
                sessions.append(Session(f"session_{index + 1}", time, spell_date(day), tuple(turns)))
            day += timedelta(days=rng.randrange(4, 45))
        return Story(self.name, self.split, self.people, tuple(sessions), tuple(self.records), tuple(self.events))

    def _turn(self, turn_id: str, session: int, number: int, day: date, preferred: int, opening: bool) -> Turn | None:
        if opening and self.left["chatter"] and self.rng.random() < 0.7:
            self.left["chatter"] -= 1
            return Turn(turn_id, self.people[preferred], self._fresh(self.lex.greetings), ())
        for speaker in (self.people[preferred], self.people[1 - preferred]):
            listener = self.people[1 - self.people.index(speaker)]
            options: dict[str, list[Any]] = {
                "state": [i for i in self.plan if i.subject != listener],
                "update": self._updatable(session, listener),
                "revoke": self._revocable(session, listener),
                "restate": self._restatable(number, listener),
                "ephemeral": [True],
                "chatter": [True],
            }
            kinds = [k for k, found in options.items() if found and self.left[k] > 0]
            if not kinds:
                continue
            # First statements come early: there must be something to change, repeat and confuse.
            weights = [self.left[k] * (2.5 if k == "state" else 1.0) for k in kinds]
            kind = self.rng.choices(kinds, weights)[0]
            self.left[kind] -= 1
            if kind == "chatter":
                return Turn(turn_id, speaker, self._fresh(self.lex.chatter), ())
            if kind == "ephemeral":
                return self._passing(turn_id, speaker, listener)
            return self._tell_fact(kind, options[kind], turn_id, session, number, day, speaker, listener)
        return None

    def _live(self) -> list[Record]:
        return [r for r in self.records if r.end is None]

    def _updatable(self, session: int, listener: str) -> list[Record]:
        found = [
            r
            for r in self._live()
            if r.subject != listener
            and not ATTRIBUTES[r.attribute].is_set
            and (r.subject, r.attribute) != self.chain[0]
            and self.told_session[r.entry] < session
            and self._unused_values(r.subject, ATTRIBUTES[r.attribute])
        ]
        hot = [r for r in found if (r.subject, r.attribute) in self.hot]
        return hot if hot and self.rng.random() < 0.8 else found

    def _revocable(self, session: int, listener: str) -> list[Record]:
        live = self._live()
        members = Counter((r.subject, r.attribute) for r in live)
        found = [
            r
            for r in live
            if r.subject != listener
            and ATTRIBUTES[r.attribute].revocable
            and (r.subject, r.attribute) not in self.hot
            and (r.subject, r.attribute) not in self.chain
            and self.told_session[r.entry] < session
            # A set keeps a member, so that "how many" never asks for zero.
            and not (ATTRIBUTES[r.attribute].is_set and members[r.subject, r.attribute] < 2)
        ]
        alone = [r for r in found if not ATTRIBUTES[r.attribute].is_set]
        return alone if alone and self.rng.random() < 0.6 else found  # these leave a question without an answer

    def _restatable(self, number: int, listener: str) -> list[Record]:
        return [r for r in self._live() if r.subject != listener and self.told_number[r.entry] <= number - 3]

    def _unused_values(self, subject: str, attribute: Attribute) -> list[str]:
        used = {r.value for r in self.records if (r.subject, r.attribute) == (subject, attribute.key)} | {subject}
        used |= {i.value for i in self.plan if (i.subject, i.attribute) == (subject, attribute.key)}
        pool = self.people if attribute.pool == "person" else self.lex.pools[attribute.pool]
        return [v for v in pool if v not in used]

    def _tell_fact(
        self,
        kind: str,
        options: list[Any],
        turn_id: str,
        session: int,
        number: int,
        day: date,
        speaker: str,
        listener: str,
    ) -> Turn:
        chosen = options[0] if kind == "state" else self.rng.choice(options)
        subject, attribute, value = chosen.subject, chosen.attribute, chosen.value
        phrases = self.lex.phrases[attribute]
        if kind == "state":
            self.plan.remove(chosen)
            fact = self._new_fact("ADD", phrases.plain, subject, value)
            lines = phrases.said
        elif kind == "update":
            value = self.rng.choice(self._unused_values(subject, ATTRIBUTES[attribute]))
            wordings = phrases.update if self.rng.random() < 0.5 else phrases.plain
            fact = self._new_fact("UPDATE", wordings, subject, value, chosen.entry)
            lines = phrases.changed
        elif kind == "revoke":
            fact = Fact(say_fact(self.rng.choice(phrases.revoke), subject, value), OracleOp("DELETE", "", chosen.entry))
            lines = phrases.ended
        else:
            others = tuple(t for t in phrases.plain if say_fact(t, subject, value) != chosen.entry)
            fact = Fact(say_fact(self._fresh(others, subject), subject, value), OracleOp("NOOP", ""))
            lines = phrases.again
        entry = fact.text if kind in ("state", "update") else chosen.entry
        if kind in ("update", "revoke"):
            self.records[self.records.index(chosen)] = replace(chosen, end=day, ended_turn=turn_id)
        if kind in ("state", "update"):
            self.records.append(Record(subject, attribute, value, entry, day, turn_id, replaces=kind == "update"))
            self.told_session[entry] = session
        self.told_number[entry] = number
        self.events.append(TurnEvent(turn_id, kind, subject, attribute))
        text = say_aloud(self._fresh(lines, subject), subject, value, speaker, listener)
        return Turn(turn_id, speaker, self._dress(text, news=kind != "restate"), (fact,))

    def _new_fact(
        self, event: str, wordings: tuple[str, ...], subject: str, value: str, target: str | None = None
    ) -> Fact:
        """A fact that a perfect bank stores as it is worded: which words are kept is not what a manager must learn."""
        text = say_fact(self.rng.choice(wordings), subject, value)
        return Fact(text, OracleOp(event, text, target))

    def _passing(self, turn_id: str, speaker: str, listener: str) -> Turn:
        """A remark that mentions a value in passing: a manager that stores it confuses the day with the habit."""
        rng = self.rng
        subject = rng.choice([p for p in self.people if p != listener])
        known = [r.attribute for r in self._live() if r.subject == subject and self.lex.phrases[r.attribute].passing]
        attribute, value = None, ""
        if known and rng.random() < 0.6:
            attribute = rng.choice(known)
        elif rng.random() < 0.5:
            attribute = rng.choice([k for k in _PERSONAL if self.lex.phrases[k].passing])
        if attribute is None:
            line, fact = rng.choice([p for p in self.lex.passing if p[0] not in self.used_lines] or self.lex.passing)
        else:
            line, fact = rng.choice(self.lex.phrases[attribute].passing)
            value = rng.choice(self._unused_values(subject, ATTRIBUTES[attribute]))
        self.used_lines.add(line)
        self.events.append(TurnEvent(turn_id, "ephemeral", subject, attribute))
        text = say_aloud(line, subject, value, speaker, listener)
        return Turn(
            turn_id,
            speaker,
            self._dress(text, news=False),
            (Fact(say_fact(fact, subject, value), OracleOp("NOOP", "")),),
        )

    def _fresh(self, lines: tuple[str, ...], subject: str = "") -> str:
        """One of the lines, preferably one that was not used before in this world (for this subject)."""
        line = self.rng.choice([t for t in lines if subject + t not in self.used_lines] or lines)
        self.used_lines.add(subject + line)
        return line

    def _dress(self, text: str, news: bool) -> str:
        if news and self.rng.random() < 0.35:
            text = f"{self.rng.choice(self.lex.leads)} {text}"
        if self.rng.random() < 0.25:
            text = f"{text} {self.rng.choice(self.lex.tails)}"
        return text
