"""Runs one system over dialogues: build its memory, ask every question, return predictions.

Called on a runner (`memr1.rollout.runner`), in lockstep over all dialogues so that generation is batched.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from memr1.data.locomo import is_audited
from memr1.data.types import Dialogue, Question
from memr1.envs.answering import Answered, ask
from memr1.envs.episode import Episode, Failure, Speaker, World, drive
from memr1.envs.evidence import evidence_recall, held_evidence
from memr1.envs.extracting import prepared
from memr1.envs.ingesting import embed_ahead
from memr1.errors import MemR1Error
from memr1.evaluation.failures import reached
from memr1.evaluation.memories import MEMORIES, Memory
from memr1.evaluation.memories.base import Footprint
from memr1.evaluation.predictions import Prediction
from memr1.evaluation.remember import Answers, RememberingEngine
from memr1.evaluation.systems import UNTRAINED, System, get_system
from memr1.memory.types import MemoryEntry
from memr1.rollout.engine import Engine


@dataclass
class Kept:
    """What evaluated systems left behind for those that share a part with them."""

    memories: dict[tuple[str, str, int, tuple[str, ...]], tuple[list[Memory], float]] = field(default_factory=dict)
    """(kind of memory, the manager's policy, its weight version, dialogues) -> the memories, seconds to build one."""
    answers: Answers = field(default_factory=dict)


def evaluate_system(
    name: str,
    dialogues: Sequence[Dialogue],
    world: World,
    engine: Engine,
    benchmark: str,
    kept: Kept | None = None,
) -> tuple[list[Prediction], list[Footprint]]:
    """Predictions for every question at the end of every dialogue, and the footprint of each dialogue's memory.

    kept: filled and used; with it, memories and answers that another system has computed with the same weights are not
        computed again. The seconds of a prediction, the mean of all, count an answer as it was when it was computed.
    """
    system, kept = get_system(name), kept if kept is not None else Kept()
    dialogues = prepared(dialogues, world, engine)
    memories, building = _memories(system, dialogues, world, engine, kept)
    start = time.perf_counter()
    speaker = Speaker("answerer" if system.answerer != UNTRAINED else "base")
    asked = [
        (d, q, memory, memory.retrieve(q.text))
        for d, memory in zip(dialogues, memories, strict=True)
        for q in d.questions
        if q.asked_after is None
    ]
    episodes: list[Episode[list[Answered]]] = [ask(world, speaker, [(q.shown_text, e)]) for _, q, _, e in asked]
    remembering = RememberingEngine(engine, kept.answers)
    answers = drive(episodes, remembering)
    seconds = (time.perf_counter() - start + remembering.saved) / max(len(asked), 1)
    predictions = [
        _prediction(benchmark, name, d, q, m, e, a, seconds) for (d, q, m, e), a in zip(asked, answers, strict=True)
    ]
    return predictions, [Footprint(len(m.entries), m.sizes, m.upkeep, building) for m in memories]


def _memories(
    system: System, dialogues: Sequence[Dialogue], world: World, engine: Engine, kept: Kept
) -> tuple[list[Memory], float]:
    """A memory for each dialogue, and the seconds that building one took; systems with the same one share it."""
    speaker = Speaker("manager" if system.manager != UNTRAINED else "base")
    version = engine.weight_versions()[speaker.policy]
    key = (system.memory, speaker.policy, version, tuple(d.id for d in dialogues))
    if key not in kept.memories:
        start = time.perf_counter()
        embed_ahead(dialogues, world)
        build = MEMORIES[system.memory]
        built = [_no_failure(r) for r in drive([build(d, world, speaker) for d in dialogues], engine)]
        kept.memories[key] = (built, (time.perf_counter() - start) / max(len(dialogues), 1))
    return kept.memories[key]


def _no_failure(result: Memory | Failure) -> Memory:
    if isinstance(result, Failure):
        raise result.error
    return result


def _prediction(
    benchmark: str,
    system: str,
    dialogue: Dialogue,
    question: Question,
    memory: Memory,
    entries: Sequence[MemoryEntry],
    outcome: list[Answered] | Failure,
    seconds: float,
) -> Prediction:
    if not isinstance(outcome, Failure):
        shown = {e.id for e in outcome[0].prompt.entries.values()}  # fewer than retrieved when the prompt was cut
        entries = [e for e in entries if e.id in shown]
    held = held_evidence(memory.entries, question.evidence, question.answer, memory.behind)
    unanswered = Prediction(
        benchmark=benchmark,
        system=system,
        dialogue_id=dialogue.id,
        question_id=question.id,
        category=question.category,
        category_id=question.category_id,
        question=question.text,
        gold=question.answer,
        answer=None,
        retrieved=tuple(e.text for e in entries),
        evidence_recall=evidence_recall(entries, question.evidence, held),
        seconds=seconds,
        abstain=question.abstain,
        disputed=is_audited(question),
        evidence=question.evidence,
        shown_turns=tuple(e.provenance.turn_ids for e in entries),
        contract=question.contract,
        reached=reached(question.evidence, held, memory.ended, entries),
    )
    if isinstance(outcome, Failure):
        if not isinstance(outcome.error, MemR1Error):
            raise outcome.error  # a bug, not an outcome of the system
        return replace(unanswered, error=str(outcome.error))
    (answered,) = outcome
    return replace(
        unanswered,
        answer=answered.answer.text,
        selected=tuple(e.id for e in answered.selected),
        prompt_tokens=len(answered.prompt.ids),
        completion_tokens=len(answered.completion.ids),
        prompt_cut=answered.prompt.cut > 0,
        error=answered.answer.error,
    )
