"""Runs one system over dialogues: build its memory, ask every question, return predictions.

Called on a runner (`memr1.rollout.runner`), in lockstep over all dialogues so that generation is batched.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from memr1.data.locomo import is_audited
from memr1.data.types import Dialogue, Question
from memr1.envs.answering import Answered, ask, evidence_recall, retrieve
from memr1.envs.episode import Episode, Failure, Speaker, World, drive
from memr1.envs.extracting import prepared
from memr1.envs.ingesting import Ingested, embed_ahead, ingest_with_manager, ingest_without_model, turn_entries
from memr1.errors import MemR1Error
from memr1.evaluation.predictions import Prediction
from memr1.evaluation.remember import Answers, RememberingEngine
from memr1.evaluation.systems import System, get_system
from memr1.memory.bank import MemoryBank
from memr1.memory.types import MemoryEntry
from memr1.rollout.engine import Engine

Retrieve = Callable[[str], list[MemoryEntry]]


@dataclass
class Kept:
    """What evaluated systems left behind for those that share a part with them."""

    banks: dict[tuple[str, int, tuple[str, ...]], list[Ingested]] = field(default_factory=dict)
    """(policy, its weight version, dialogues) -> what that manager made of them."""
    answers: Answers = field(default_factory=dict)


def evaluate_system(
    name: str,
    dialogues: Sequence[Dialogue],
    world: World,
    engine: Engine,
    benchmark: str,
    kept: Kept | None = None,
) -> tuple[list[Prediction], dict[str, float]]:
    """Predictions for every question at the end of every dialogue, and figures about the banks that were built.

    kept: filled and used; with it, banks and answers that another system has computed with the same weights are not
        computed again. The seconds of a prediction are those of an answer that had to be computed.
    """
    system, kept = get_system(name), kept if kept is not None else Kept()
    start = time.perf_counter()
    dialogues = prepared(dialogues, world, engine)
    embed_ahead(dialogues, world)
    retrievers, figures = _memories(system, dialogues, world, engine, kept)
    speaker = Speaker("answerer" if system.answerer != "untrained" else "base")
    asked = [
        (d, q, retrieve(q.text))
        for d, retrieve in zip(dialogues, retrievers, strict=True)
        for q in d.questions
        if q.asked_after is None
    ]
    episodes: list[Episode[list[Answered]]] = [ask(world, speaker, [(q.shown_text, e)]) for _, q, e in asked]
    remembering = RememberingEngine(engine, kept.answers)
    ready = time.perf_counter()
    answers = drive(episodes, remembering)
    answering = (time.perf_counter() - ready) / max(remembering.computed, 1)
    seconds = (ready - start) / max(len(answers), 1) + answering
    predictions = [
        _prediction(benchmark, name, d, q, e, a, seconds) for (d, q, e), a in zip(asked, answers, strict=True)
    ]
    return predictions, figures


def _memories(
    system: System, dialogues: Sequence[Dialogue], world: World, engine: Engine, kept: Kept
) -> tuple[list[Retrieve], dict[str, float]]:
    budget = world.config.evaluation.retrieval_top_k
    if system.memory == "none":
        return [lambda _: [] for _ in dialogues], {}
    if system.memory in ("bm25", "embedding", "full-context"):
        make = {"bm25": _bm25, "embedding": _embedding, "full-context": _full_context}[system.memory]
        return [make(turn_entries(d), world, budget) for d in dialogues], {}
    if system.memory == "manager":
        ingested = _managed(system, dialogues, world, engine, kept)
        banks = [i.bank for i in ingested]
        figures = _figures(ingested)
    else:
        banks = [ingest_without_model(d, world, system.memory) for d in dialogues]
        figures = {}
    figures["bank/entries"] = sum(len(b) for b in banks) / len(banks)

    def from_bank(bank: MemoryBank) -> Retrieve:
        return lambda question: retrieve(bank, question, world)

    return [from_bank(b) for b in banks], figures


def _managed(system: System, dialogues: Sequence[Dialogue], world: World, engine: Engine, kept: Kept) -> list[Ingested]:
    """Banks made by a manager; systems that differ only in their answerer share them."""
    speaker = Speaker("manager" if system.manager != "untrained" else "base")
    key = (speaker.policy, engine.weight_versions()[speaker.policy], tuple(d.id for d in dialogues))
    if key not in kept.banks:
        results = drive([ingest_with_manager(d, world, speaker) for d in dialogues], engine)
        kept.banks[key] = [_no_failure(r) for r in results]
    return kept.banks[key]


def _no_failure(result: Ingested | Failure) -> Ingested:
    if isinstance(result, Failure):
        raise result.error
    return result


def _figures(ingested: Sequence[Ingested]) -> dict[str, float]:
    decisions = max(sum(i.decisions for i in ingested), 1)
    figures = {
        "parse/reject_fraction": sum(i.unparsed for i in ingested) / decisions,
        "ops/rejected_per_decision": sum(i.rejected for i in ingested) / decisions,
        "tokens/per_decision": sum(i.tokens for i in ingested) / decisions,
    }
    for event in ("ADD", "UPDATE", "DELETE", "NOOP"):
        figures[f"ops/{event.lower()}_per_decision"] = sum(i.operations.get(event, 0) for i in ingested) / decisions
    return figures


def _bm25(entries: list[MemoryEntry], world: World, k: int) -> Retrieve:
    from memr1.memory.bm25 import BM25Retriever

    retriever = BM25Retriever([e.text for e in entries])
    return lambda question: [entries[i] for i, _ in retriever.query(question, k)]


def _embedding(entries: list[MemoryEntry], world: World, k: int) -> Retrieve:
    vectors = world.embedder.embed([e.text for e in entries])

    def retrieve(question: str) -> list[MemoryEntry]:
        scores = vectors @ world.embedder.embed([question])[0]
        return [entries[i] for i in (-scores).argsort(kind="stable")[:k]]

    return retrieve


def _full_context(entries: list[MemoryEntry], world: World, k: int) -> Retrieve:
    # what does not fit the window is cut from the end of this list, so that the oldest turns go first; and questions
    # of one dialogue share their prompts' beginnings, which are computed once
    return lambda _: entries[::-1]


def _prediction(
    benchmark: str,
    system: str,
    dialogue: Dialogue,
    question: Question,
    entries: Sequence[MemoryEntry],
    outcome: list[Answered] | Failure,
    seconds: float,
) -> Prediction:
    if not isinstance(outcome, Failure):
        shown = {e.id for e in outcome[0].prompt.entries.values()}  # fewer than retrieved when the prompt was cut
        entries = [e for e in entries if e.id in shown]
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
        evidence_recall=evidence_recall(entries, question.evidence),
        seconds=seconds,
        abstain=question.abstain,
        disputed=is_audited(question),
        evidence=question.evidence,
        shown_turns=tuple(e.provenance.turn_ids for e in entries),
        contract=question.contract,
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
