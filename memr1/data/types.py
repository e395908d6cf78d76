"""Dialogue, Session, Turn, Question: the shape in which every dataset reaches memr1.

Readers (`locomo.py`, `jsonl.py`) and the generator (`factworld.py`) produce these; agents, environments and
evaluation consume them. Nothing here knows of models, Ray or memory banks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime


@dataclass(frozen=True)
class OracleOp:
    """What a perfect Memory Manager does with one fact. Entries have no ids yet, so a target is named by its text."""

    event: str
    """ADD, UPDATE, DELETE or NOOP."""
    text: str
    """Content of the entry after ADD or UPDATE; empty for DELETE and NOOP."""
    target_text: str | None = None
    """Text of the live entry that UPDATE or DELETE acts on."""


@dataclass(frozen=True)
class Fact:
    """One statement worth remembering, as extracted from a turn, in the third person."""

    text: str
    oracle: OracleOp | None = None
    """The right operation for this fact given all earlier facts, where the dataset knows it."""


@dataclass(frozen=True)
class Turn:
    """One utterance."""

    id: str
    """Unique within its dialogue, for example `D3:7`."""
    speaker: str
    text: str
    facts: tuple[Fact, ...] | None = None
    """Gold facts; None where the dataset has none, an empty tuple where the turn says nothing worth keeping."""
    caption: str | None = None
    """Caption of an image that was shared with the turn."""

    @property
    def shown_text(self) -> str:
        """The text as models and people see it, with the caption of a shared image."""
        return f"{self.text} [shares {self.caption}]" if self.caption else self.text


@dataclass(frozen=True)
class Session:
    """Turns spoken at one sitting."""

    id: str
    time: datetime | None
    time_text: str
    """The date as the dataset prints it (shown to models); empty where unknown."""
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Contract:
    """What an answer and the memories behind it must hold, may hold and must not hold, checked without a judge.

    After AutoMemoryBench. The turns of required memories are the question's evidence; memories of other turns are
    neither wanted nor forbidden.
    """

    required: tuple[str, ...] = ()
    """Texts that a right answer holds."""
    prohibited: tuple[str, ...] = ()
    """Texts that no answer may hold: what was replaced, deleted or told in confidence."""
    admissible_turns: tuple[str, ...] = ()
    """Ids of the turns whose memories may be used besides the evidence."""
    prohibited_turns: tuple[str, ...] = ()
    """Ids of the turns whose memories must not be used."""


@dataclass(frozen=True)
class Question:
    """A question about a dialogue with its gold answer."""

    id: str
    text: str
    answer: str | None
    """None where the dataset gives no answer (LoCoMo category 5)."""
    category: str
    """Name of the question type, for example `multi-hop`."""
    category_id: int | None = None
    """The dataset's own number of the category, where it has one."""
    evidence: tuple[str, ...] = ()
    """Ids of the turns that hold the answer; empty where the dataset names none."""
    asked_after: str | None = None
    """Id of the turn after which the question is asked; None means at the end of the dialogue."""
    note: str | None = None
    """What a reader repaired or dropped while reading this question, for reports."""
    asked_on: str | None = None
    """The day on which it is asked, as models see it; None where the dataset does not say."""
    abstain: bool = False
    """True where the right answer is that the dialogue does not say, or that it must not be told."""
    contract: Contract | None = None

    @property
    def shown_text(self) -> str:
        """The question as models see it, with the day on which it is asked."""
        return f"{self.text} (asked on {self.asked_on})" if self.asked_on else self.text


@dataclass(frozen=True)
class Dialogue:
    """A conversation of several sessions and the questions about it."""

    id: str
    speakers: tuple[str, ...]
    sessions: tuple[Session, ...]
    questions: tuple[Question, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)

    def turns(self) -> Iterator[tuple[Session, Turn]]:
        """Every turn in order, with the session it belongs to."""
        for session in self.sessions:
            for turn in session.turns:
                yield session, turn


def without_captions(dialogue: Dialogue) -> Dialogue:
    """The dialogue as it is for somebody who sees no images."""
    sessions = tuple(replace(s, turns=tuple(replace(t, caption=None) for t in s.turns)) for s in dialogue.sessions)
    return replace(dialogue, sessions=sessions)
