"""Replaying a whole dialogue into a memory bank: by a manager model, by the oracle, or by adding everything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from memr1.agents.extractor import extraction_prompt, facts_without_model, read_facts
from memr1.agents.protocol import displayed_date
from memr1.data.types import Dialogue, OracleOp, Session, Turn
from memr1.envs.deciding import apply_decision, related_entries
from memr1.envs.episode import Episode, Speaker, World, request
from memr1.errors import MemR1Error
from memr1.memory.bank import MemoryBank
from memr1.memory.types import Event, MemoryEntry, MemoryOp, Provenance


@dataclass
class Ingested:
    """A bank made from a dialogue, and how it came about."""

    bank: MemoryBank
    operations: dict[str, int] = field(default_factory=dict)
    """Applied operations by event."""
    rejected: int = 0
    """Operations that the bank rejected."""
    unparsed: int = 0
    """Decisions that could not be parsed."""
    decisions: int = 0
    tokens: int = 0
    """Prompt and completion tokens that the manager spent."""


def iso(session: Session) -> str | None:
    """Time of a session as ISO 8601 text."""
    return session.time.isoformat() if session.time else None


def ingest_with_manager(dialogue: Dialogue, world: World, manager: Speaker) -> Episode[Ingested]:
    """Let a manager model decide about every turn's facts, from an empty bank."""
    config = world.config
    bank = _empty_bank(dialogue, world)
    done = Ingested(bank)
    for session, turn in dialogue.turns():
        facts = facts_without_model(turn, config.agents.extractor)
        if facts is None:
            prompt = extraction_prompt(world.agents, turn, session)
            (completion,) = yield [request(prompt, Speaker("base"), config.rollout.extractor_max_new_tokens, seed=0)]
            facts = read_facts(world.agents.codec.decode(completion.ids))
            done.tokens += len(prompt.ids) + len(completion.ids)
        if facts:
            prompt = world.agents.manager.prompt(
                facts, displayed_date(iso(session)), related_entries(bank, facts, config.memory.manager_top_k)
            )
            (completion,) = yield [request(prompt, manager, config.rollout.manager_max_new_tokens, seed=0)]
            decided = apply_decision(
                bank,
                world,
                manager,
                prompt,
                completion,
                time=iso(session),
                turn_id=turn.id,
                speaker_name=turn.speaker,
            )
            done.decisions += 1
            done.unparsed += decided.parse_error is not None
            done.tokens += len(prompt.ids) + len(completion.ids)
            for result in decided.results:
                if result.ok:
                    done.operations[result.op.event] = done.operations.get(result.op.event, 0) + 1
                else:
                    done.rejected += 1
    return done


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


def oracle_operations(bank: MemoryBank, oracle: OracleOp) -> list[MemoryOp]:
    """The oracle's operation on this bank's ids. Raises ValueError when its target is not live."""
    if oracle.event in (Event.ADD, Event.NOOP):
        return [MemoryOp(Event(oracle.event), text=oracle.text)]
    target = next((e for e in bank.entries() if e.text == oracle.target_text), None)
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


def replay(dialogue: Dialogue, world: World, policy: str) -> Iterator[Moment]:
    """Walk through the turns that hold facts, without a model. After each item its operations are applied.

    policy: `oracle` (the dataset's own operations) or `add-everything`. Raises MemR1Error where the dataset has no
    oracle operations, or the extractor needs a model.
    """
    yield from _replay_into(_empty_bank(dialogue, world), dialogue, world, policy)


def ingest_without_model(dialogue: Dialogue, world: World, policy: str) -> MemoryBank:
    """The bank that `oracle` or `add-everything` makes of a dialogue."""
    bank = _empty_bank(dialogue, world)
    for _ in _replay_into(bank, dialogue, world, policy):
        pass
    return bank


def _empty_bank(dialogue: Dialogue, world: World) -> MemoryBank:
    return MemoryBank(dialogue.id, world.embedder, index=world.config.memory.index)


def _replay_into(bank: MemoryBank, dialogue: Dialogue, world: World, policy: str) -> Iterator[Moment]:
    for session, turn in dialogue.turns():
        facts = facts_without_model(turn, world.config.agents.extractor)
        if facts is None:
            raise MemR1Error("agents.extractor=llm needs a manager model to build a bank; use gold or utterance here")
        if not facts:
            continue
        if policy == "add-everything":
            ops = [MemoryOp(Event.ADD, text=fact) for fact in facts]
        else:
            known = [f.oracle for f in turn.facts or ()]
            if world.config.agents.extractor != "gold" or any(o is None for o in known):
                raise MemR1Error(
                    f"{dialogue.id} {turn.id}: no oracle operations for these facts; use the dataset's gold facts "
                    "(agents.extractor=gold) where it has them, else stages.bank=add-everything or manager"
                )
            try:
                ops = [op for o in known if o is not None for op in oracle_operations(bank, o)]
            except ValueError as error:
                raise MemR1Error(f"{dialogue.id} {turn.id}: {error}; correct its target_text") from error
        yield Moment(session, turn, tuple(facts), ops, bank)
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
