"""From dialogues to training tasks: what the agents practise on, with demonstrations where an oracle is known.

The answerer practises on questions over a finished bank. The manager practises on single turns: the bank as it was
before, the turn's facts, and the questions that the turn bears on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from memr1.agents.roles import Prompt
from memr1.data.factworld_questions import UNKNOWN
from memr1.data.types import Dialogue, Question
from memr1.envs.answering import AnswerTask, retrieve
from memr1.envs.cache import Cache
from memr1.envs.deciding import DecisionTask, LinkedQuestion, decision_prompt, related_entries
from memr1.envs.episode import Failure, Speaker, World, drive
from memr1.envs.evidence import held_evidence
from memr1.envs.extracting import prepared
from memr1.envs.ingesting import Moment, embed_ahead, ingest_with_manager, ingest_without_model, iso, replay
from memr1.envs.replaying import ReplayTask, ReplayTurn, turn_prompt
from memr1.learner.packing import TrainSequence
from memr1.memory.bank import MemoryBank, Snapshot
from memr1.memory.types import MemoryEntry
from memr1.rollout.engine import Engine
from memr1.training.tuples import Task, read_tasks, settings_of, write_tasks


@dataclass(frozen=True)
class TrainTask:
    """Something to practise."""

    task: Task | None
    """None where there is nothing but a teacher's trace to clone."""
    demonstration: TrainSequence | None
    """What the oracle would have said; None where no oracle is known or its target is out of sight."""

    @property
    def playable(self) -> Task:
        """The task, which everything but a trace has."""
        if self.task is None:
            raise ValueError("a trace can be cloned, not played")
        return self.task

    @property
    def kind(self) -> str:
        """Question category, or the oracle's operations."""
        if isinstance(self.task, AnswerTask):
            return self.task.category
        return "+".join(str(op.event) for op in self.task.oracle or ()) if isinstance(self.task, DecisionTask) else ""


def build_tasks(
    dialogues: Sequence[Dialogue],
    world: World,
    engine: Engine,
    *,
    role: str,
    bank: str,
    replay: int | None = None,
) -> list[TrainTask]:
    """All tasks of a role in these dialogues, in order, with their demonstrations.

    bank: `oracle`, `add-everything` or `manager` (the manager model replays every dialogue). Manager tasks start from
    temporal banks (`data.window`), where `manager` means `add-everything`.
    replay: None makes single decisions of the manager; a number makes replays of so many turns with facts, 0 of all.
    What is made of dialogues from a file is kept in `data.cache`; banks of a manager that was trained are not.
    """
    dialogues = prepared(dialogues, world, engine)
    if role == "manager" and bank == "manager":
        bank = "add-everything"
    trained = bank == "manager" and engine.weight_versions()["manager"] > 0
    cache = None if world.config.data.kind == "factworld" or trained else Cache(world.config.cache_dir)
    settings = settings_of(world, role, bank, replay)
    made: dict[str, Sequence[Task]] = {}
    for dialogue in dialogues:
        kept = None if cache is None else read_tasks(cache, dialogue, settings, world)
        if kept is not None:
            made[dialogue.id] = kept
    missing = [d for d in dialogues if d.id not in made]
    embed_ahead(missing, world)
    if bank == "manager":
        replayed = drive([ingest_with_manager(d, world, Speaker("manager")) for d in missing], engine)
    for i, dialogue in enumerate(missing):
        if role == "manager" and replay is not None:
            made[dialogue.id] = _replay_tasks(dialogue, world, bank, replay)
        elif role == "manager":
            made[dialogue.id] = _decision_tasks(dialogue, world, bank)
        elif bank == "manager":
            result = replayed[i]
            if isinstance(result, Failure):
                raise result.error
            made[dialogue.id] = _answer_tasks(dialogue, result.bank, world)
        else:
            made[dialogue.id] = _answer_tasks(dialogue, ingest_without_model(dialogue, world, bank), world)
        if cache is not None:
            write_tasks(cache, dialogue, settings, made[dialogue.id])
    return [TrainTask(task, demonstration(task, world)) for d in dialogues for task in made[d.id]]


def task_prompt(task: Task, world: World) -> Prompt:
    """What the role that practises a task is asked first."""
    if isinstance(task, AnswerTask):
        return world.agents.answerer.prompt(task.question, task.entries)
    bank = MemoryBank.from_snapshot(task.snapshot, world.embedder)
    if isinstance(task, ReplayTask):
        return turn_prompt(task.turns[0], bank, world)
    return decision_prompt(task, bank, world)


def demonstration(task: Task, world: World) -> TrainSequence | None:
    """What an oracle would say, to be cloned; None where there is none.

    An answerer selects the retrieved evidence and gives the gold answer. There is no demonstration when evidence that
    the bank holds was not shown, or when it holds none: cloning an answer without a source would teach to invent. The
    evidence of what is no longer known may well be gone; then nothing is selected. A manager does the oracle's
    operations, where their targets are shown.
    """
    agents = world.agents
    if isinstance(task, ReplayTask) or (isinstance(task, DecisionTask) and task.oracle is None):
        return None
    prompt = task_prompt(task, world)
    text: str | None
    if isinstance(task, DecisionTask):
        text = agents.manager.demonstration(task.oracle or (), prompt)
    else:
        evidence = {n: e for n, e in prompt.entries.items() if e.id in task.held}
        if len(evidence) < len(task.held) or (task.evidence and not task.held and task.gold != UNKNOWN):
            return None
        text = agents.answerer.demonstration(task.gold, evidence)
    if text is None:
        return None
    ids = agents.codec.encode_completion(text)
    return TrainSequence(prompt.ids, ids, (True,) * len(ids))


def _answer_tasks(dialogue: Dialogue, bank: MemoryBank, world: World) -> list[AnswerTask]:
    tasks = []
    for q in dialogue.questions:
        if not (q.answer or "").strip() or q.asked_after is not None:
            continue  # nothing to score, or a question about a state that has passed
        task = AnswerTask(
            id=f"{dialogue.id}/{q.id}",
            question=q.shown_text,
            gold=str(q.answer),
            category=q.category,
            entries=tuple(retrieve(bank, q.text, world)),
            evidence=q.evidence,
            held=held_evidence(bank.entries(), q.evidence, q.answer, bank.sources),
        )
        tasks.append(task)
    return tasks


def _decision_tasks(dialogue: Dialogue, world: World, policy: str) -> list[DecisionTask]:
    config = world.config
    tasks = []
    for moment in replay(dialogue, world, policy, config.data.window):
        related = related_entries(moment.bank, moment.facts, config.memory.manager_top_k)
        task = DecisionTask(
            id=f"{dialogue.id}/{moment.turn.id}",
            snapshot=moment.bank.snapshot(),
            facts=moment.facts,
            time=iso(moment.session),
            turn_id=moment.turn.id,
            speaker=moment.turn.speaker,
            questions=_judges(dialogue, moment, related, config.rollout.questions_per_decision),
            oracle=tuple(moment.ops) if policy == "oracle" else None,
        )
        tasks.append(task)
    return tasks


def _replay_tasks(dialogue: Dialogue, world: World, policy: str, length: int) -> list[ReplayTask]:
    """Stretches of `length` turns with facts (0: the whole dialogue), each from the bank that the policy made before.

    A question that names a turn is asked right after it, up to `rollout.questions_per_decision` a turn. Of the others,
    the whole dialogue is asked all; a stretch those that rest on it, and on nothing that comes later.
    """
    limit = world.config.rollout.questions_per_decision
    scorable = [q for q in dialogue.questions if (q.answer or "").strip()]
    tasks: list[ReplayTask] = []
    turns: list[ReplayTurn] = []
    snapshot: Snapshot | None = None
    moments = [(moment, moment.bank.snapshot()) for moment in replay(dialogue, world, policy)]
    for i, (moment, before) in enumerate(moments):
        now, told = moment.turn.id, moment.behind | {moment.turn.id}
        due = [q for q in scorable if q.asked_after == now and set(q.evidence) <= told][:limit]
        turns.append(
            ReplayTurn(now, moment.turn.speaker, iso(moment.session), moment.facts, tuple(_linked(q) for q in due))
        )
        snapshot = before if snapshot is None else snapshot
        if (length and len(turns) == length) or i == len(moments) - 1:
            here = {t.turn_id for t in turns}
            open_ = [q for q in scorable if q.asked_after is None]
            asked = [q for q in open_ if not length or (here & set(q.evidence) and set(q.evidence) <= told)]
            name = f"{dialogue.id}/{turns[0].turn_id}..{now}"
            tasks.append(ReplayTask(name, snapshot, tuple(turns), tuple(_linked(q) for q in asked)))
            turns, snapshot = [], None
    return tasks


def _linked(question: Question, watches: Sequence[str] = ()) -> LinkedQuestion:
    return LinkedQuestion(question.shown_text, str(question.answer), question.category, tuple(watches))


def _judges(
    dialogue: Dialogue, moment: Moment, related: Sequence[MemoryEntry], number: int
) -> tuple[LinkedQuestion, ...]:
    """Up to `number` questions that judge a decision, asked right after it; only those whose earlier evidence is in the
    bank, since of the others no decision can make the answer right.

    An operation can add what the turn says, or hit an entry in sight, so there is first a question about the turn,
    then one about each entry in sight, then whatever else bears on the turn. An entry that no question watches could
    be overwritten for nothing, and a policy finds that out.
    """
    now = moment.turn.id
    scorable = [q for q in dialogue.questions if (q.answer or "").strip()]
    within_reach = [q for q in scorable if set(q.evidence) <= moment.behind | {now}]
    if any(q.asked_after for q in scorable):
        open_now = [q for q in within_reach if q.asked_after == now]
        bearing = open_now
    else:
        open_now = [q for q in within_reach if q.evidence]
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
    return tuple(_linked(q, watches.get(q.id, ())) for q in chosen[:number])


def _hangs_on(question: Question, source: str, others: Sequence[str]) -> bool:
    """Whether the answer stands in this text and in no other: then it cannot be guessed without it, as the date of a
    session can be, or a person who is mentioned elsewhere."""
    gold = re.compile(rf"(?<!\w){re.escape(str(question.answer))}(?!\w)", re.IGNORECASE)
    return bool(gold.search(source)) and not any(gold.search(other) for other in others)
