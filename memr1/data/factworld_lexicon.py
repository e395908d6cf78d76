"""The vocabulary of FactWorld: which attributes exist, and how one split talks about them.

Each split has a `Lexicon` of its own (`factworld_train_words.py` and its two siblings) whose names, values and
templates occur in no other split. The other `factworld_*` modules render from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Attribute:
    """Something that can be said of a person or an organisation."""

    key: str
    pool: str
    """Name of the value pool in the lexicon; `person` draws from the world's own people."""
    is_set: bool = False
    """True where several values hold at once (pets); each is an entry of its own."""
    revocable: bool = False
    """True where a value can end without another one taking its place."""
    of_org: bool = False
    """True where the subject is an organisation."""


ATTRIBUTES: dict[str, Attribute] = {
    a.key: a
    for a in (
        Attribute("city", "city"),
        Attribute("employer", "org", revocable=True),
        Attribute("job", "job"),
        Attribute("food", "food"),
        Attribute("drink", "drink"),
        Attribute("car", "car", revocable=True),
        Attribute("instrument", "instrument", revocable=True),
        Attribute("language", "language", revocable=True),
        Attribute("trip", "country", revocable=True),
        # Relations are directed on purpose: from "Ann's mentor is Bob" nothing follows about Bob's mentor, so a
        # question about it stays unanswerable.
        Attribute("best_friend", "person"),
        Attribute("mentor", "person", revocable=True),
        Attribute("coach", "person", revocable=True),
        Attribute("pet", "pet", is_set=True, revocable=True),
        Attribute("hobby", "hobby", is_set=True, revocable=True),
        Attribute("org_base", "city", of_org=True),
    )
}


@dataclass(frozen=True)
class Phrases:
    """How one split talks about one attribute.

    Facts and questions take `{n}` (the subject's full name) and `{v}` or `{av}` (the value, bare or with a/an).
    Utterances take `{S}` (I or the name), `{P}`/`{p}` (My/my or the name with 's), `{O}` (me or the name), `{am}`,
    `{have}`, `{s}` (the verb's ending), `{v}` and `{av}`.
    """

    plain: tuple[str, ...]
    """Wordings of the fact as such: extracted when it is told first, when it is told again, and also when it replaces
    another value, so that only the bank tells what is new, what is known and what has changed."""
    update: tuple[str, ...]
    """Wordings that say themselves that the value has changed; empty for set-valued attributes."""
    revoke: tuple[str, ...]
    """Wordings extracted when the value has ended; empty where the attribute cannot be revoked."""
    said: tuple[str, ...]
    """Utterances that tell a first value."""
    changed: tuple[str, ...]
    """Utterances that tell a new value in place of an old one; empty for set-valued attributes."""
    ended: tuple[str, ...]
    """Utterances that end a value."""
    again: tuple[str, ...]
    """Utterances that tell a known value once more."""
    ask: tuple[str, ...]
    """Questions for the current value, or for the list of values."""
    when: tuple[str, ...] = ()
    """Questions for the day on which the value began; empty where the telling does not date it."""
    count: tuple[str, ...] = ()
    """Questions for the number of values; set-valued attributes only."""
    passing: tuple[tuple[str, str], ...] = ()
    """(utterance, fact) of a remark that mentions a value without making it the subject's."""
    via: str = ""
    """A noun phrase for the value, for multi-hop questions: `{n}'s mentor`."""

    def templates(self) -> Iterator[str]:
        """Every template in use."""
        if self.via:
            yield self.via
        for group in (
            self.plain,
            self.update,
            self.revoke,
            self.said,
            self.changed,
            self.ended,
            self.again,
            self.ask,
            self.when,
            self.count,
        ):
            yield from group
        for pair in self.passing:
            yield from pair


@dataclass(frozen=True)
class Lexicon:
    """Everything one split may say."""

    first_names: tuple[str, ...]
    surnames: tuple[str, ...]
    pools: dict[str, tuple[str, ...]]
    phrases: dict[str, Phrases]
    greetings: tuple[str, ...]
    """Chatter that opens a session."""
    chatter: tuple[str, ...]
    leads: tuple[str, ...]
    """Put before an utterance that brings news."""
    tails: tuple[str, ...]
    """Put after an utterance."""
    passing: tuple[tuple[str, str], ...]
    """(utterance, fact) of passing remarks that touch no attribute."""

    def templates(self) -> Iterator[str]:
        """Every surface template of the split."""
        for phrases in self.phrases.values():
            yield from phrases.templates()
        yield from (*self.greetings, *self.chatter, *self.leads, *self.tails)
        for pair in self.passing:
            yield from pair

    def values(self) -> Iterator[str]:
        """Every name and value of the split."""
        yield from (*self.first_names, *self.surnames)
        for pool in self.pools.values():
            yield from pool


@cache
def lexicon(split: str) -> Lexicon:
    """The lexicon of `train`, `validation` or `test`."""
    if split == "train":
        from memr1.data.factworld_train_words import LEXICON
    elif split == "validation":
        from memr1.data.factworld_validation_words import LEXICON
    elif split == "test":
        from memr1.data.factworld_test_words import LEXICON
    else:
        raise ValueError(f"no lexicon for split {split!r}")
    return LEXICON


def with_article(noun: str) -> str:
    """`noun` with a or an in front. The pools hold no word whose first letter and first sound disagree."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def say_fact(template: str, subject: str, value: str = "") -> str:
    """Fill a fact or question template."""
    return _capital(template.format(n=subject, v=value, av=with_article(value) if value else ""))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def say_aloud(template: str, subject: str, value: str, speaker: str, listener: str) -> str:
    """Fill an utterance template as `speaker` would say it to `listener`."""
    own = subject == speaker
    spoken_value = "me" if value == speaker else "you" if value == listener else value
    text = template.format(
        S="I" if own else subject,
        P="My" if own else f"{subject}'s",
        p="my" if own else f"{subject}'s",
        O="me" if own else subject,
        am="am" if own else "is",
        have="have" if own else "has",
        s="" if own else "s",
        v=spoken_value,
        av=with_article(value) if value else "",
    )
    return _capital(text)
