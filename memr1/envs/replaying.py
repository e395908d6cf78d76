"""The manager's long episode: a dialogue, or a stretch of it, is replayed turn by turn and paid once, at the end.

Memory-R1, arXiv 2508.19828, algorithm 2. Every member of a group goes through the same turns with a bank of its own;
questions meet the bank of the moment they are due at.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from memr1.agents.protocol import displayed_date
from memr1.agents.roles import Prompt
from memr1.envs.answering import Answered, ask, pay, retrieve, shown
from memr1.envs.deciding import Decided, LinkedQuestion, apply_decision, burden, related_entries
from memr1.envs.episode import Episode, Speaker, World, request
from memr1.memory.bank import MemoryBank, Snapshot
from memr1.memory.types import MemoryEntry
from memr1.rewards.base import Reward, RewardResult
from memr1.trajectory import Trajectory


@dataclass(frozen=True)
class ReplayTurn:
    """A turn of a replay that holds facts."""

    turn_id: str
    speaker: str
    time: str | None
    """ISO 8601 time of the session."""
    facts: tuple[str, ...]
    due: tuple[LinkedQuestion, ...] = ()
    """Questions about the bank as it is right after this turn."""


@dataclass(frozen=True)
class ReplayTask:
    """Turns to decide about one after the other, from a bank that is the same for all members of a group."""

    id: str
    snapshot: Snapshot
    turns: tuple[ReplayTurn, ...]
    at_end: tuple[LinkedQuestion, ...]
    """Questions about the bank after the last turn."""

    @property
    def questions(self) -> tuple[LinkedQuestion, ...]:
        """All that judge the replay."""
        return tuple(q for turn in self.turns for q in turn.due) + self.at_end


def turn_prompt(turn: ReplayTurn, bank: MemoryBank, world: World) -> Prompt:
    """The manager's prompt for one turn of a replay."""
    related = related_entries(bank, turn.facts, world.config.memory.manager_top_k)
    return world.agents.manager.prompt(turn.facts, displayed_date(turn.time), related)


def play_replays(
    task: ReplayTask, world: World, manager: Speaker, answerer: Speaker, reward: Reward, seeds: Sequence[int]
) -> Episode[list[Trajectory]]:
    """A group of trajectories, one for each seed, of as many trainable steps as there are turns, with one reward: the
    mean over all questions.

    `memory.pressure` is taken off for each entry that a decision adds on average, in proportion to the mean: where
    nothing is answered rightly, thrift must not pay (see `memr1.envs.deciding`).
    """
    memory, limit = world.config.memory, world.config.rollout.manager_max_new_tokens
    start = MemoryBank.from_snapshot(task.snapshot, world.embedder, index=memory.index)
    before = shown(start.entries())
    banks = [start.fork() for _ in seeds]
    decided: list[list[Decided]] = [[] for _ in seeds]
    burdens = [0] * len(seeds)
    met: list[list[tuple[LinkedQuestion, list[MemoryEntry]]]] = [[] for _ in seeds]
    for number, turn in enumerate(task.turns):
        prompts = [turn_prompt(turn, bank, world) for bank in banks]
        completions = yield [
            request(prompt, manager, limit, turn_seed(seed, number))
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        for i, (bank, prompt, completion) in enumerate(zip(banks, prompts, completions, strict=True)):
            size = len(bank)
            decision = apply_decision(
                bank, world, manager, prompt, completion,
                time=turn.time, turn_id=turn.turn_id, speaker_name=turn.speaker,
            )  # fmt: skip
            decided[i].append(decision)
            burdens[i] += burden(decision, len(bank) - size)
            met[i] += [(q, retrieve(bank, q.text, world)) for q in turn.due]
    for i, bank in enumerate(banks):
        met[i] += [(q, retrieve(bank, q.text, world)) for q in task.at_end]
    # an answer depends on nothing but the entries that were retrieved when its question was due
    answers = yield from ask(world, answerer, [(q.text, entries) for of_bank in met for q, entries in of_bank])
    rewards = yield from pay(reward, answers, [(q.text, q.gold) for of_bank in met for q, _ in of_bank])
    n = len(task.questions)
    return [
        _trajectory(
            task, world, seed, before, bank, steps, weight, met[i],
            answers[i * n : (i + 1) * n], rewards[i * n : (i + 1) * n],
        )
        for i, (seed, bank, steps, weight) in enumerate(zip(seeds, banks, decided, burdens, strict=True))
    ]  # fmt: skip


def turn_seed(seed: int, number: int) -> int:
    """The seed of one turn's decision: no two turns of a rollout may draw the same numbers."""
    return random.Random(f"{seed}/{number}").getrandbits(62)


def _trajectory(
    task: ReplayTask,
    world: World,
    seed: int,
    before: list[dict[str, str]],
    bank: MemoryBank,
    decided: Sequence[Decided],
    weight: int,
    met: Sequence[tuple[LinkedQuestion, list[MemoryEntry]]],
    answers: Sequence[Answered],
    rewards: Sequence[RewardResult],
) -> Trajectory:
    errors = [r.error for r in rewards if r.error]
    values = [r.value for r in rewards if r.value is not None]
    parts: dict[str, float] = {}
    if values and not errors:
        parts[rewards[0].name] = mean = sum(values) / len(values)
        if world.config.memory.pressure > 0:
            parts["pressure"] = -world.config.memory.pressure * mean * weight / len(decided)
    return Trajectory(
        task_id=task.id,
        group_id=task.id,
        seed=seed,
        steps=(*(d.step for d in decided), *(a.step for a in answers)),
        reward=sum(parts.values()) if parts else None,
        reward_parts=parts,
        outcome={
            "facts": [fact for turn in task.turns for fact in turn.facts],
            "question": " / ".join(q.text for q, _ in met),
            "category": met[0][0].category if met else "",
            "gold": " / ".join(q.gold for q, _ in met),
            "answer": " / ".join(a.answer.text or "(not parsed)" for a in answers),
            "retrieved": shown(list({e.id: e for _, entries in met for e in entries}.values())),
            "selected": sorted({e.id for a in answers for e in a.selected}),
            "bank_before": before,
            "bank_after": shown(bank.entries()),
            "operations": [o for d in decided for o in d.step.parsed["operations"]],
        },
        error="; ".join(errors) or None,
    )
