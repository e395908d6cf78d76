"""From dialogues to training tasks: what the agents practise on, with demonstrations where an oracle is known.

The answerer practises on questions over a finished bank. The manager practises on single turns: the bank as it was
before, the turn's facts, and the questions that the turn bears on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from memr1.agents.protocol import displayed_date
from memr1.agents.roles import Prompt
from memr1.data.factworld_questions import UNKNOWN
from memr1.data.types import Dialogue, Question
from memr1.envs.answering import AnswerTask
from memr1.envs.deciding import DecisionTask, LinkedQuestion, decision_prompt, related_entries
from memr1.envs.episode import Failure, Speaker, World, drive
from memr1.envs.ingesting import Moment, embed_ahead, ingest_with_manager, ingest_without_model, iso, replay
from memr1.learner.packing import TrainSequence
from memr1.memory.bank import MemoryBank
from memr1.memory.types import MemoryEntry
from memr1.rollout.engine import Engine


@dataclass(frozen=True)
class TrainTask:
    """Something to practise."""

    task: AnswerTask | DecisionTask
    demonstration: TrainSequence | None
    """What the oracle would have said; None where no oracle is known or its target is out of sight."""
    kind: str
    """Question category, or the oracle's operation: for statistics."""


def build_tasks(
    dialogues: Sequence[Dialogue], world: World, engine: Engine, *, role: str, bank: str, seed: int
) -> list[TrainTask]:
    """All tasks of a role in these dialogues, in order.

    bank: `oracle`, `add-everything` or `manager` (the manager model replays every dialogue). Manager tasks start from
    snapshots of that bank, too, except that `manager` means `add-everything` there.
    """
    embed_ahead(dialogues, world)
    if role == "manager":
        policy = "oracle" if bank == "oracle" else "add-everything"
        return [task for dialogue in dialogues for task in _decision_tasks(dialogue, world, policy)]
    if bank == "manager":
        ingested = drive([ingest_with_manager(d, world, Speaker("manager")) for d in dialogues], engine)
        banks = []
        for result in ingested:
            if isinstance(result, Failure):
                raise result.error
            banks.append(result.bank)
    else:
        banks = [ingest_without_model(d, world, bank) for d in dialogues]
    return [task for d, b in zip(dialogues, banks, strict=True) for task in _answer_tasks(d, b, world)]


def task_prompt(task: AnswerTask | DecisionTask, world: World) -> Prompt:
    """What the role that practises a task is asked first."""
    if isinstance(task, AnswerTask):
        return world.agents.answerer.prompt(task.question, task.entries)
    return decision_prompt(task, MemoryBank.from_snapshot(task.snapshot, world.embedder), world)


def _answer_tasks(dialogue: Dialogue, bank: MemoryBank, world: World) -> list[TrainTask]:
    tasks = []
    for q in dialogue.questions:
        if not (q.answer or "").strip() or q.asked_after is not None:
            continue  # nothing to score, or a question about a state that has passed
        entries = tuple(h.entry for h in bank.search(q.text, world.config.memory.answerer_top_k))
        task = AnswerTask(f"{dialogue.id}/{q.id}", q.text, str(q.answer), q.category, entries, q.evidence)
        tasks.append(TrainTask(task, _answer_demonstration(task, bank, world), q.category))
    return tasks


def _answer_demonstration(task: AnswerTask, bank: MemoryBank, world: World) -> TrainSequence | None:
    """Select the retrieved evidence, give the gold answer; None when the answer cannot be told from what is shown.

    That is when evidence that the bank holds was not shown, or when it holds none: cloning an answer without a source
    would teach to invent. The evidence of what is no longer known may well be gone; then nothing is selected.
    """
    prompt = world.agents.answerer.prompt(task.question, task.entries)
    wanted = {e.id for e in bank.entries() if set(e.provenance.turn_ids) & set(task.evidence)}
    evidence = {n: e for n, e in prompt.entries.items() if e.id in wanted}
    if len(evidence) < len(wanted) or (task.evidence and not wanted and task.gold != UNKNOWN):
        return None
    text = world.agents.answerer.demonstration(task.gold, evidence)
    return _demonstration(prompt.ids, world.agents.codec.encode_completion(text))


def _decision_tasks(dialogue: Dialogue, world: World, policy: str) -> list[TrainTask]:
    tasks = []
    seen: set[str] = set()
    for moment in replay(dialogue, world, policy):
        seen.add(moment.turn.id)
        related = related_entries(moment.bank, moment.facts, world.config.memory.manager_top_k)
        task = DecisionTask(
            id=f"{dialogue.id}/{moment.turn.id}",
            snapshot=moment.bank.snapshot(),
            facts=moment.facts,
            time=iso(moment.session),
            turn_id=moment.turn.id,
            speaker=moment.turn.speaker,
            questions=_judges(dialogue, moment, seen, related, world.config.rollout.questions_per_decision),
        )
        kind = "+".join(str(op.event) for op in moment.ops)
        tasks.append(
            TrainTask(task, _decision_demonstration(moment, related, world) if policy == "oracle" else None, kind)
        )
    return tasks


def _judges(
    dialogue: Dialogue, moment: Moment, seen: set[str], related: Sequence[MemoryEntry], number: int
) -> tuple[LinkedQuestion, ...]:
    """Up to `number` questions that judge a decision, asked right after it.

    An operation can add what the turn says, or hit an entry in sight, so there is first a question about the turn,
    then one about each entry in sight, then whatever else bears on the turn. An entry that no question watches could
    be overwritten for nothing, and a policy finds that out.
    """
    now = moment.turn.id
    scorable = [q for q in dialogue.questions if (q.answer or "").strip()]
    if any(q.asked_after for q in scorable):
        open_now = [q for q in scorable if q.asked_after == now]
        bearing = open_now
    else:
        open_now = [q for q in scorable if q.evidence and set(q.evidence) <= seen]
        bearing = [q for q in open_now if now in q.evidence]
    if not bearing:
        return ()
    held = [e.text for e in moment.bank.entries()]
    chosen: list[Question] = []
    watches: dict[str, list[str]] = {}  # id of a chosen question that is about old entries only, to their ids
    news = ({now}, " ".join(moment.facts), held)
    for entry, (turns, source, others) in [
        (None, news),
        *(
            (e, (set(e.provenance.turn_ids), e.text, [t for t in held if t != e.text] + list(moment.facts)))
            for e in related
        ),
    ]:
        about = [q for q in chosen if turns & set(q.evidence) and _hangs_on(q, source, others)]
        if not about:
            about = [q for q in open_now if turns & set(q.evidence) and q not in chosen]
            about = sorted(about, key=lambda q: (not _hangs_on(q, source, others), len(q.evidence)))[:1]
            chosen += about
            watches |= {q.id: [] for q in about if entry is not None and now not in q.evidence}
        for q in about:
            if entry is not None and q.id in watches:
                watches[q.id].append(entry.id)
    chosen += [q for q in bearing if q not in chosen]
    return tuple(
        LinkedQuestion(q.text, str(q.answer), q.category, tuple(watches.get(q.id, ()))) for q in chosen[:number]
    )


def _hangs_on(question: Question, source: str, others: Sequence[str]) -> bool:
    """Whether the answer stands in this text and in no other: then it cannot be guessed without it, as the date of a
    session can be, or a person who is mentioned elsewhere."""
    gold = re.compile(rf"(?<!\w){re.escape(str(question.answer))}(?!\w)", re.IGNORECASE)
    return bool(gold.search(source)) and not any(gold.search(other) for other in others)


def _decision_demonstration(moment: Moment, related: Sequence[MemoryEntry], world: World) -> TrainSequence | None:
    prompt = world.agents.manager.prompt(moment.facts, displayed_date(iso(moment.session)), related)
    text = world.agents.manager.demonstration(moment.ops, prompt)
    return None if text is None else _demonstration(prompt.ids, world.agents.codec.encode_completion(text))


def _demonstration(prompt_ids: tuple[int, ...], completion_ids: tuple[int, ...]) -> TrainSequence:
    return TrainSequence(prompt_ids, completion_ids, (True,) * len(completion_ids))
