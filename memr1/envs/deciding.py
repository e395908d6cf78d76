"""The manager's episode: one decision from a snapshot, paid by the frozen answerer on the updated bank.

A one-step decision lets all members of a group share their state, so that group-relative advantages are fair
(Memory-R1, arXiv 2508.19828, algorithm 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from memr1.agents.protocol import displayed_date
from memr1.agents.roles import Prompt
from memr1.envs.answering import Answered, ask, pay, retrieve, shown
from memr1.envs.episode import Episode, Speaker, World, request, step
from memr1.memory.bank import MemoryBank, Snapshot
from memr1.memory.types import Event, MemoryEntry, MemoryOp, OpResult, Provenance
from memr1.rewards.base import Reward, RewardResult
from memr1.rollout.engine import Completion
from memr1.trajectory import Step, Trajectory


@dataclass(frozen=True)
class LinkedQuestion:
    """A question whose answer depends on the decision, as of just after it."""

    text: str
    gold: str
    category: str
    watches: tuple[str, ...] = ()
    """Ids of old entries that it is about. It is asked when a decision of the group hits or hides one; if empty,
    always."""


@dataclass(frozen=True)
class DecisionTask:
    """New facts, the bank before them, and the questions that will judge what is done with them."""

    id: str
    snapshot: Snapshot
    facts: tuple[str, ...]
    time: str | None
    """ISO 8601 time of the session."""
    turn_id: str
    speaker: str
    questions: tuple[LinkedQuestion, ...]
    oracle: tuple[MemoryOp, ...] | None = None
    """The right operations, where they are known."""


@dataclass(frozen=True)
class Decided:
    """What the manager did."""

    step: Step
    results: list[OpResult]
    parse_error: str | None


def related_entries(bank: MemoryBank, facts: Sequence[str], top_k: int) -> list[MemoryEntry]:
    """Old entries near any of the facts: `top_k` per fact, united, best rank first (Memory-R1, section 3)."""
    hits = [bank.search(fact, top_k) for fact in facts]
    united: dict[str, MemoryEntry] = {}
    for rank in range(max((len(h) for h in hits), default=0)):
        for found in hits:
            if rank < len(found):
                united.setdefault(found[rank].entry.id, found[rank].entry)
    return list(united.values())


def apply_decision(
    bank: MemoryBank,
    world: World,
    speaker: Speaker,
    prompt: Prompt,
    completion: Completion,
    *,
    time: str | None,
    turn_id: str,
    speaker_name: str,
) -> Decided:
    """Parse a completion and apply it; a decision that cannot be parsed changes nothing and is counted."""
    manager = world.agents.manager
    text = world.agents.codec.decode(completion.ids)
    decision = manager.read(text, prompt)
    results: list[OpResult] = []
    if decision.ops is not None:
        results = bank.apply(
            decision.ops,
            provenance=Provenance(
                turn_ids=(turn_id,),
                speaker=speaker_name,
                role="manager",
                model=world.config.model.name,
                adapter=speaker.policy,
                weight_version=completion.weight_version,
            ),
            time=time,
            event_time=time,
            on_reject=world.config.memory.on_reject,
        )
    parsed: dict[str, Any] = {"operations": [operation(r) for r in results]}
    if decision.error:
        parsed["error"] = decision.error
    return Decided(step("manager", speaker, prompt, completion, text, parsed), results, decision.error)


def burden(decided: Decided, growth: int) -> int:
    """Entries that a decision added, or 1 for a decision that could not be parsed or was rejected.

    Shrinking pays nothing: otherwise deleting what no question asks about would be the best decision of all.
    """
    return max(growth, 1 if _failed(decided) else 0)


def _failed(decided: Decided) -> bool:
    return decided.parse_error is not None or any(not r.ok for r in decided.results)


def operation(result: OpResult) -> dict[str, Any]:
    """An operation and its result for reports and viewers."""
    op = result.op
    return {
        "event": str(op.event),
        "id": result.entry_id or op.entry_id,
        "text": op.text,
        "ok": result.ok,
        "reason": result.reason,
    }


def decision_prompt(task: DecisionTask, bank: MemoryBank, world: World) -> Prompt:
    """The manager's prompt: the facts, and the entries of `bank` that are near them."""
    related = related_entries(bank, task.facts, world.config.memory.manager_top_k)
    return world.agents.manager.prompt(task.facts, displayed_date(task.time), related)


def play_decisions(
    task: DecisionTask,
    world: World,
    manager: Speaker,
    answerer: Speaker,
    reward: Reward,
    seeds: Sequence[int],
    judge_alike: bool = True,
) -> Episode[list[Trajectory]]:
    """A group of trajectories of the manager, one for each seed: decide, apply, let the frozen answerer answer, pay the
    mean over questions.

    All members are asked the same questions: those about the turn, and those about old entries that a decision of the
    group hit, or crowded out of what the answerer is shown. Where that leaves none, all are asked.

    judge_alike: whether to ask when all members did the same. If not, they come back without a reward: one that
        compares the members of a group would learn nothing from it.
    """
    memory, rollout = world.config.memory, world.config.rollout
    start = MemoryBank.from_snapshot(task.snapshot, world.embedder, index=memory.index)
    before = shown(start.entries())
    prompt = decision_prompt(task, start, world)
    completions = yield [request(prompt, manager, rollout.manager_max_new_tokens, seed) for seed in seeds]
    banks = [start.fork() for _ in seeds]
    decisions = [
        apply_decision(
            bank, world, manager, prompt, completion, time=task.time, turn_id=task.turn_id, speaker_name=task.speaker
        )
        for bank, completion in zip(banks, completions, strict=True)
    ]
    if not judge_alike and _alike(banks, decisions):
        return [
            _trajectory(task, seed, before, bank, decided)
            for seed, bank, decided in zip(seeds, banks, decisions, strict=True)
        ]
    hit = {r.entry_id for d in decisions for r in d.results if r.changed and r.op.event in (Event.UPDATE, Event.DELETE)}
    found = {q: [retrieve(bank, q.text, world) for bank in banks] for q in task.questions}
    questions = [
        q for q in task.questions if not q.watches or hit & set(q.watches) or _in_sight_of_some(q, found[q])
    ] or list(task.questions)
    retrieved = [[found[q][i] for q in questions] for i in range(len(banks))]
    asked = [(q.text, entries) for of_bank in retrieved for q, entries in zip(questions, of_bank, strict=True)]
    answers = yield from ask(world, answerer, asked)
    rewards = yield from pay(reward, answers, [(q.text, q.gold) for q in questions] * len(banks))
    n = len(questions)
    return [
        _judged(
            _trajectory(task, seed, before, bank, decided),
            _parts(decided, len(bank.entries()) - len(before), rewards[i * n : (i + 1) * n], memory.pressure),
            questions,
            answers[i * n : (i + 1) * n],
            of_bank,
        )
        for i, (seed, bank, decided, of_bank) in enumerate(zip(seeds, banks, decisions, retrieved, strict=True))
    ]


def _alike(banks: Sequence[MemoryBank], decisions: Sequence[Decided]) -> bool:
    """Whether all members of a group left the same bank behind and bear the same charge."""
    first = (shown(banks[0].entries()), _failed(decisions[0]))
    return all((shown(b.entries()), _failed(d)) == first for b, d in zip(banks, decisions, strict=True))


def _in_sight_of_some(question: LinkedQuestion, found: Sequence[Sequence[MemoryEntry]]) -> bool:
    """Whether an entry that the question watches is shown to some members of a group and not to others."""
    shown_to = [bool({e.id for e in entries} & set(question.watches)) for entries in found]
    return any(shown_to) and not all(shown_to)


def _trajectory(
    task: DecisionTask, seed: int, before: list[dict[str, str]], bank: MemoryBank, decided: Decided
) -> Trajectory:
    """A decision that nobody has judged yet."""
    return Trajectory(
        task_id=task.id,
        group_id=task.id,
        seed=seed,
        steps=(decided.step,),
        reward=None,
        outcome={
            "facts": list(task.facts),
            "bank_before": before,
            "bank_after": shown(bank.entries()),
            "operations": decided.step.parsed["operations"],
        },
    )


def _judged(
    trajectory: Trajectory,
    paid: tuple[dict[str, float], str | None],
    questions: Sequence[LinkedQuestion],
    answers: Sequence[Answered],
    retrieved: Sequence[Sequence[MemoryEntry]],
) -> Trajectory:
    """The trajectory with what the frozen answerer made of its bank."""
    parts, error = paid
    return replace(
        trajectory,
        steps=(*trajectory.steps, *(a.step for a in answers)),
        reward=sum(parts.values()) if parts else None,
        reward_parts=parts,
        outcome=trajectory.outcome
        | {
            "question": " / ".join(q.text for q in questions),
            "category": questions[0].category,
            "gold": " / ".join(q.gold for q in questions),
            "answer": " / ".join(a.answer.text or "(not parsed)" for a in answers),
            "retrieved": shown(list({e.id: e for found in retrieved for e in found}.values())),
            "selected": sorted({e.id for a in answers for e in a.selected}),
        },
        error=error,
    )


def _parts(
    decided: Decided, growth: int, rewards: Sequence[RewardResult], pressure: float
) -> tuple[dict[str, float], str | None]:
    """Parts of the reward, and what went wrong where there are none."""
    errors = [r.error for r in rewards if r.error]
    values = [r.value for r in rewards if r.value is not None]
    parts: dict[str, float] = {}
    if values and not errors:
        parts[rewards[0].name] = sum(values) / len(values)
        # where an answer is wrong whatever is stored, pressure alone would teach the manager to store nothing
        if pressure > 0 and min(values) == 1.0:
            parts["pressure"] = -pressure * burden(decided, growth)
    return parts, "; ".join(errors) or None
