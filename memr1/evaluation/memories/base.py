"""Memory: what a system makes of a dialogue. Each kind is one file of this folder, all are built and asked alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from memr1.data.types import Dialogue, Session, Turn
from memr1.envs.answering import retrieve
from memr1.envs.episode import Episode, Speaker, World
from memr1.envs.ingesting import iso
from memr1.memory.bank import MemoryBank
from memr1.memory.types import Event, MemoryEntry, Provenance


@dataclass(frozen=True)
class Upkeep:
    """What keeping a memory took."""

    operations: dict[str, int] = field(default_factory=dict)
    """Applied operations by event."""
    decisions: int = 0
    """Decisions of whoever manages it; 0 where nothing decides."""
    rejected: int = 0
    """Operations that could not be applied."""
    unreadable: int = 0
    """Completions that could not be parsed, and decisions whose prompt would be longer than its budget."""
    tokens: int = 0
    """Prompt and completion tokens of models."""


@dataclass(frozen=True)
class Memory:
    """What a system holds at the end of a dialogue."""

    retrieve: Callable[[str], list[MemoryEntry]]
    """A question to the entries that the answerer is shown, most relevant first."""
    entries: Sequence[MemoryEntry] = ()
    """All that it holds."""
    sizes: tuple[int, ...] = ()
    """Entries after each session of the dialogue."""
    ended: frozenset[str] = frozenset()
    """Turns whose only news was that something ended, as the dataset's operations say, where something was then
    deleted: they leave no entry behind."""
    behind: Callable[[str], Sequence[str]] = lambda entry_id: ()
    """Entry id to the turns of all its versions, where entries have several."""
    upkeep: Upkeep = field(default_factory=Upkeep)


@dataclass(frozen=True)
class Footprint:
    """A memory in figures, without its content: what leaves the runner that built it."""

    entries: int
    sizes: tuple[int, ...]
    upkeep: Upkeep
    seconds: float
    """Spent on building it: its share of those that were built together."""


Build = Callable[[Dialogue, World, Speaker], Episode[Memory]]
"""(dialogue, world, the manager's weights) -> the memory. An episode: those that ask a model are played in lockstep."""


def entry_of(session: Session, turn: Turn, entry_id: str, text: str) -> MemoryEntry:
    """A text of a turn as an entry."""
    time = iso(session)
    return MemoryEntry(
        id=entry_id, text=text, created_at=time, event_time=time, provenance=Provenance((turn.id,), turn.speaker)
    )


def of_turns(dialogue: Dialogue, entries: Sequence[MemoryEntry], rank: Callable[[str], Iterable[int]]) -> Memory:
    """A memory of every turn as it was said. rank: a question to places in `entries`, best first."""
    sizes, held = [], 0
    for session in dialogue.sessions:
        held += len(session.turns)
        sizes.append(held)
    return Memory(lambda question: [entries[i] for i in rank(question)], entries, tuple(sizes))


def of_bank(dialogue: Dialogue, bank: MemoryBank, world: World, upkeep: Upkeep | None = None) -> Memory:
    """A memory bank, read from its log: how it grew, what was applied, which turns ended something.

    upkeep: what a model's decisions took; the log gives the rest.
    """
    session_of = {turn.id: n for n, session in enumerate(dialogue.sessions) for turn in session.turns}
    grown = [0] * len(dialogue.sessions)
    operations: dict[str, int] = {}
    rejected, deleting = 0, set[str]()
    for record in bank.log:
        turns = record.provenance.turn_ids
        for result in record.results:
            if not result.ok:
                rejected += 1
                continue
            event = result.op.event
            operations[event.value] = operations.get(event.value, 0) + 1
            if event is Event.DELETE:
                deleting.update(turns)
            grown[session_of[turns[0]]] += {Event.ADD: 1, Event.DELETE: -1}.get(event, 0)
    sizes = tuple(sum(grown[: n + 1]) for n in range(len(grown)))
    known = upkeep or Upkeep()
    spent = Upkeep(operations, known.decisions or len(bank.log), rejected, known.unreadable, known.tokens)
    ended = frozenset(turn.id for _, turn in dialogue.turns() if turn.id in deleting and _only_ends(turn))
    return Memory(
        lambda question: retrieve(bank, question, world), bank.entries(), sizes, ended, bank.sources, upkeep=spent
    )


def _only_ends(turn: Turn) -> bool:
    """Whether all that the turn says, as far as the dataset knows what to do with it, is that something ended."""
    return bool(turn.facts) and all(f.oracle is not None and f.oracle.event == Event.DELETE for f in turn.facts or ())
