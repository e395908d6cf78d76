"""Replaying a whole dialogue into a memory bank: by a manager model, by the oracle, or by adding everything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from memr1.agents.extractor import facts_of
from memr1.agents.protocol import displayed_date
from memr1.agents.roles import PromptTooLong
from memr1.data.types import Dialogue, OracleOp, Session, Turn
from memr1.envs.deciding import apply_decision, related_entries
from memr1.envs.episode import Episode, Speaker, World, request
from memr1.errors import MemR1Error
from memr1.memory.bank import MemoryBank
from memr1.memory.types import Event, MemoryEntry, MemoryOp, Provenance


@dataclass
class Ingested:
    """A bank made from a dialogue, and what its log does not tell of how it came about."""

    bank: MemoryBank
    unparsed: int = 0
    """Decisions that could not be parsed, or not be asked for: facts that fill the prompt's budget by themselves."""
    decisions: int = 0
    tokens: int = 0
    """Prompt and completion tokens that the manager spent."""


def iso(session: Session) -> str | None:
    """Time of a session as ISO 8601 text."""
    return session.time.isoformat() if session.time else None


def ingest_with_manager(dialogue: Dialogue, world: World, manager: Speaker) -> Episode[Ingested]:
    """Let a manager model decide about every turn's facts, from an empty bank."""
    config = world.config
    bank = empty_bank(dialogue, world)
    done = Ingested(bank)
    for session, turn, facts in told(dialogue, world):
        related = related_entries(bank, facts, config.memory.manager_top_k)
        try:
            prompt = world.agents.manager.prompt(facts, displayed_date(iso(session)), related)
        except PromptTooLong:  # one long turn must not end the dialogue
            done.decisions += 1
            done.unparsed += 1
            continue
        (completion,) = yield [request(prompt, manager, config.rollout.manager_max_new_tokens, seed=0)]
        decided = apply_decision(
            bank, world, manager, prompt, completion, time=iso(session), turn_id=turn.id, speaker_name=turn.speaker
        )
        done.decisions += 1
        done.unparsed += decided.parse_error is not None
        done.tokens += len(prompt.ids) + len(completion.ids)
    return done


EXTRACTED = "extracted"
"""`metadata["facts"]` of a dialogue whose facts the language model extracted, see `memr1.envs.extracting`."""


def told(dialogue: Dialogue, world: World) -> Iterator[tuple[Session, Turn, tuple[str, ...]]]:
    """The turns that hold facts, with their facts. Raises ValueError where `llm` facts were not extracted before."""
    kind = world.config.agents.extractor
    if kind == "llm" and dialogue.metadata.get("facts") != EXTRACTED:
        raise ValueError(f"{dialogue.id}: agents.extractor=llm, and its facts were not extracted yet; call prepared")
    for session, turn in dialogue.turns():
        facts = facts_of(turn, kind)
        if facts:
            yield session, turn, tuple(facts)


def embed_ahead(dialogues: Sequence[Dialogue], world: World) -> None:
    """Embed what will surely be searched for or stored, in large batches; one text at a time costs several times more.

    Fills the embedder's cache and changes nothing else.
    """
    texts: list[str] = []
    for dialogue in dialogues:
        for _, turn in dialogue.turns():
            for fact in turn.facts or ():
                texts += [fact.text, *([fact.oracle.text] if fact.oracle and fact.oracle.text else [])]
        texts += [q.text for q in dialogue.questions if q.asked_after is None]
    if texts:
        world.embedder.embed(list(dict.fromkeys(texts)))


def oracle_operations(bank: MemoryBank, oracle: OracleOp, *, partial: bool = False) -> list[MemoryOp]:
    """The oracle's operation on this bank's ids. Raises ValueError when its target is not live.

    partial: the bank holds a part of what was told; then an update of what it lacks adds, and a deletion does nothing.
    """
    if oracle.event in (Event.ADD, Event.NOOP):
        return [MemoryOp(Event(oracle.event), text=oracle.text)]
    target = next((e for e in bank.entries() if e.text == oracle.target_text), None)
    if target is None and partial:
        return [MemoryOp(Event.ADD, text=oracle.text) if oracle.event == Event.UPDATE else MemoryOp(Event.NOOP)]
    if target is None:
        raise ValueError(f"the oracle's target {oracle.target_text!r} is not a live entry of bank {bank.bank_id}")
    event = Event(oracle.event)
    text = oracle.text if event is Event.UPDATE else ""
    return [MemoryOp(event, text=text, entry_id=target.id, expected_version=target.version)]


@dataclass(frozen=True)
class Moment:
    """A turn's facts about to be handled, with the bank as it is before."""

    session: Session
    turn: Turn
    facts: tuple[str, ...]
    ops: list[MemoryOp]
    """What will be done with them."""
    bank: MemoryBank
    """Live: take a snapshot to keep it."""
    behind: frozenset[str]
    """Ids of the turns whose facts went into the bank."""


def replay(dialogue: Dialogue, world: World, policy: str, window: int = 0) -> Iterator[Moment]:
    """Walk through the turns that hold facts, without a model: the bank before each, and what will be done with it.

    policy: `oracle` (the dataset's own operations) or `add-everything`.
    window: only the facts of that many turns before the moment are in its bank (the temporal bank of Memory-R1, arXiv
    2508.19828, section 4); 0 is all of them. Raises MemR1Error where the dataset has no oracle operations.
    """
    bank = empty_bank(dialogue, world)
    place = {turn.id: i for i, (_, turn) in enumerate(dialogue.turns())}
    behind: list[tuple[Session, Turn, tuple[str, ...]]] = []
    for now in told(dialogue, world):
        session, turn, facts = now
        if window:
            behind = [b for b in behind if place[turn.id] - place[b[1].id] <= window]
            bank = empty_bank(dialogue, world)
            for earlier in behind:
                _apply(bank, *earlier, _operations(dialogue, bank, *earlier[1:], world, policy, partial=True), policy)
        ops = _operations(dialogue, bank, turn, facts, world, policy, partial=window > 0)
        yield Moment(session, turn, facts, ops, bank, frozenset(b[1].id for b in behind))
        behind.append(now)
        if not window:
            _apply(bank, *now, ops, policy)


def ingest_without_model(dialogue: Dialogue, world: World, policy: str) -> MemoryBank:
    """The bank that `oracle` or `add-everything` makes of a dialogue."""
    bank = empty_bank(dialogue, world)
    for session, turn, facts in told(dialogue, world):
        _apply(bank, session, turn, facts, _operations(dialogue, bank, turn, facts, world, policy), policy)
    return bank


def empty_bank(dialogue: Dialogue, world: World) -> MemoryBank:
    return MemoryBank(dialogue.id, world.embedder, index=world.config.memory.index)


def _operations(
    dialogue: Dialogue,
    bank: MemoryBank,
    turn: Turn,
    facts: Sequence[str],
    world: World,
    policy: str,
    *,
    partial: bool = False,
) -> list[MemoryOp]:
    if policy == "add-everything":
        return [MemoryOp(Event.ADD, text=fact) for fact in facts]
    known = [f.oracle for f in turn.facts or ()]
    if world.config.agents.extractor != "gold" or any(o is None for o in known):
        raise MemR1Error(
            f"{dialogue.id} {turn.id}: no oracle operations for these facts; use the dataset's gold facts "
            "(agents.extractor=gold) where it has them, else stages.bank=add-everything or manager"
        )
    try:
        return [op for o in known if o is not None for op in oracle_operations(bank, o, partial=partial)]
    except ValueError as error:
        raise MemR1Error(f"{dialogue.id} {turn.id}: {error}; correct its target_text") from error


def _apply(
    bank: MemoryBank, session: Session, turn: Turn, facts: Sequence[str], ops: Sequence[MemoryOp], policy: str
) -> None:
    bank.apply(
        ops,
        provenance=Provenance(turn_ids=(turn.id,), speaker=turn.speaker, role=policy),
        time=iso(session),
        event_time=iso(session),
        on_reject="skip",  # adding everything meets duplicates, and a duplicate must not take its neighbours along
    )


def turn_entries(dialogue: Dialogue) -> list[MemoryEntry]:
    """Every turn as an entry: what retrieval over raw turns and full context work on."""
    entries = []
    for session, turn in dialogue.turns():
        text = f"{turn.speaker}: {turn.shown_text}"
        entries.append(
            MemoryEntry(
                id=turn.id,
                text=text,
                created_at=iso(session),
                event_time=iso(session),
                provenance=Provenance(turn_ids=(turn.id,), speaker=turn.speaker),
            )
        )
    return entries
