"""The answerer's episode: one question over retrieved entries, one completion, one reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from memr1.agents.protocol import Answer, displayed_date
from memr1.agents.roles import Prompt
from memr1.envs.episode import Episode, Speaker, World, request, step
from memr1.envs.evidence import Held, evidence_recall
from memr1.memory.bank import MemoryBank
from memr1.memory.types import MemoryEntry
from memr1.rewards.base import Reward, RewardResult
from memr1.rollout.engine import Completion
from memr1.trajectory import Step, Trajectory


@dataclass(frozen=True)
class AnswerTask:
    """A question and the entries retrieved for it, most relevant first."""

    id: str
    question: str
    gold: str
    category: str
    entries: tuple[MemoryEntry, ...]
    evidence: tuple[str, ...] = ()
    """Ids of the turns that hold the answer."""
    held: Held = field(default_factory=dict)
    """What of it entries of the whole bank hold, retrieved or not."""


@dataclass(frozen=True)
class Answered:
    """A question that was asked, with everything that a reward, a table or a viewer wants to know."""

    answer: Answer
    prompt: Prompt
    completion: Completion
    step: Step

    @property
    def selected(self) -> list[MemoryEntry]:
        """Entries that the answerer chose; numbers that were not displayed are left out."""
        return [self.prompt.entries[str(n)] for n in self.answer.selected if str(n) in self.prompt.entries]


def retrieve(bank: MemoryBank, question: str, world: World) -> list[MemoryEntry]:
    """The entries that the answerer is shown for a question, the nearest first: `memory.answerer_top_k` of them.

    With `memory.per_speaker` that number is divided equally among the speakers of the entries, as in Memory-R1 (60 are
    30 of each); what one speaker cannot fill is not given to another.
    """
    memory = world.config.memory
    if not memory.per_speaker:
        return [h.entry for h in bank.search(question, memory.answerer_top_k)]
    ranked = [h.entry for h in bank.search(question, max(len(bank), 1))]
    speakers = sorted({str(e.provenance.speaker) for e in ranked})
    left = {s: memory.answerer_top_k // len(speakers) + (i < memory.answerer_top_k % len(speakers))
            for i, s in enumerate(speakers)}  # fmt: skip
    chosen = []
    for entry in ranked:
        speaker = str(entry.provenance.speaker)
        if left[speaker]:
            left[speaker] -= 1
            chosen.append(entry)
    return chosen


def ask(
    world: World,
    speaker: Speaker,
    questions: Sequence[tuple[str, Sequence[MemoryEntry]]],
    seeds: Sequence[int] | None = None,
) -> Episode[list[Answered]]:
    """Ask questions, each over its own entries, in one batch. seeds: one for each, for a speaker that samples."""
    answerer = world.agents.answerer
    prompts = [answerer.prompt(text, entries) for text, entries in questions]
    limit = world.config.rollout.answer_max_new_tokens
    completions = yield [
        request(p, speaker, limit, s) for p, s in zip(prompts, seeds or [0] * len(prompts), strict=True)
    ]
    out = []
    for prompt, completion in zip(prompts, completions, strict=True):
        text = world.agents.codec.decode(completion.ids)
        answer = answerer.read(text)
        parsed = {"answer": answer.text, "selected": list(answer.selected)}
        if answer.error:
            parsed["error"] = answer.error
        out.append(Answered(answer, prompt, completion, step("answerer", speaker, prompt, completion, text, parsed)))
    return out


def pay(reward: Reward, answers: Sequence[Answered], asked: Sequence[tuple[str, str]]) -> Episode[list[RewardResult]]:
    """The reward of each answer. asked: (question, gold) of each.

    A turn is let pass between beginning and asking, so that a judge works on the answers of all episodes at once.
    """
    for answered, (question, gold) in zip(answers, asked, strict=True):
        reward.begin(answered.answer.text, gold, question)
    yield []
    return [reward(a.answer.text, gold, question) for a, (question, gold) in zip(answers, asked, strict=True)]


@dataclass(frozen=True)
class Selection:
    """How well the selected memories are those that hold evidence, among those that were shown."""

    precision: float | None
    """Share of the selected ones that hold evidence; None where none was selected."""
    recall: float | None
    """Share of the shown ones with evidence that were selected; None where none of them was shown."""

    @property
    def f1(self) -> float | None:
        """Harmonic mean; 0 where evidence was shown and none selected, None where none was shown."""
        if self.recall is None:
            return None
        total = (self.precision or 0.0) + self.recall
        return 2 * (self.precision or 0.0) * self.recall / total if total else 0.0


def selection(answered: Answered, evidence: Sequence[str], held: Held) -> Selection:
    """The memories that an answer selected, against the evidence (ids of turns)."""
    holds = {e.id for e in answered.prompt.entries.values() if e.id in held}
    chosen = {e.id for e in answered.selected}
    hits = len(holds & chosen)
    named = bool(chosen) and bool(evidence)
    return Selection(hits / len(chosen) if named else None, hits / len(holds) if holds else None)


def play_answers(
    task: AnswerTask,
    world: World,
    speaker: Speaker,
    reward: Reward,
    seeds: Sequence[int],
    evidence_reward: float = 0.0,
) -> Episode[list[Trajectory]]:
    """A group of trajectories of the answerer, one for each seed.

    evidence_reward: weight of the selection's F1 in the reward; an answer that cannot be parsed has selected nothing.
    """
    answers = yield from ask(world, speaker, [(task.question, task.entries)] * len(seeds), seeds)
    results = yield from pay(reward, answers, [(task.question, task.gold)] * len(seeds))
    return [
        _trajectory(task, answered, result, seed, evidence_reward)
        for answered, result, seed in zip(answers, results, seeds, strict=True)
    ]


def _trajectory(
    task: AnswerTask, answered: Answered, result: RewardResult, seed: int, evidence_reward: float
) -> Trajectory:
    chosen = selection(answered, task.evidence, task.held)
    parts = {} if result.value is None else {result.name: result.value}
    if parts and evidence_reward > 0 and chosen.f1 is not None:
        parts["evidence"] = evidence_reward * chosen.f1
    return Trajectory(
        task_id=task.id,
        group_id=task.id,
        seed=seed,
        steps=(answered.step,),
        reward=sum(parts.values()) if parts else None,
        reward_parts=parts,
        outcome={
            "question": task.question,
            "category": task.category,
            "gold": task.gold,
            "answer": answered.answer.text,
            "retrieved": shown(task.entries),
            "selected": [e.id for e in answered.selected],
            "evidence_recall": evidence_recall(task.entries, task.evidence, task.held),
            "selection_precision": chosen.precision,
            "selection_recall": chosen.recall,
        },
        error=result.error,
    )


def shown(entries: Sequence[MemoryEntry]) -> list[dict[str, str]]:
    """Entries for reports and viewers."""
    return [{"id": e.id, "text": e.text, "date": displayed_date(e.event_time)} for e in entries]
