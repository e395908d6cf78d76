"""What training data consist of: counts over dialogues, and over the tasks that were made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from memr1.data.types import Dialogue, Question
from memr1.envs.answering import AnswerTask
from memr1.envs.deciding import DecisionTask
from memr1.envs.evidence import evidence_recall
from memr1.envs.replaying import ReplayTask

Report = dict[str, Any]


def dialogue_report(dialogues: Sequence[Dialogue]) -> Report:
    """Counts over dialogues; questions that a reader repaired, or that lack something, are counted apart."""
    turns = [t for d in dialogues for _, t in d.turns()]
    questions = [q for d in dialogues for q in d.questions]
    evidence = [(d.id, turn) for d in dialogues for turn in {t for q in d.questions for t in q.evidence}]
    last = {(d.id, t) for d in dialogues for q in d.questions if (t := last_evidence(d, q)) is not None}
    categories = Counter((q.category_id or 0, q.category) for q in questions)
    return {
        "dialogues": len(dialogues),
        "sessions": sum(len(d.sessions) for d in dialogues),
        "turns": len(turns),
        "turns with a caption": sum(t.caption is not None for t in turns),
        "turns with facts": sum(bool(t.facts) for t in turns),
        "facts": sum(len(t.facts or ()) for t in turns),
        "questions": len(questions),
        "questions by category": {f"{number} {name}": n for (number, name), n in sorted(categories.items())},
        "questions without an answer": sum(not (q.answer or "").strip() for q in questions),
        "questions without evidence": sum(not q.evidence for q in questions),
        "questions asked before": sum(n - 1 for d in dialogues for n in Counter(q.text for q in d.questions).values()),
        "questions that were repaired": sum(q.note is not None for q in questions),
        "turns of evidence": len(evidence),
        "turns that complete some evidence": len(last),
    }


def last_evidence(dialogue: Dialogue, question: Question) -> str | None:
    """The turn after which a question can be answered; None where it names no evidence."""
    place = {turn.id: i for i, (_, turn) in enumerate(dialogue.turns())}
    return max(question.evidence, key=lambda turn: place[turn], default=None)


def manager_report(dialogues: Sequence[Dialogue], tasks: Sequence[DecisionTask], window: int) -> Report:
    """Counts over decisions and the questions that judge them, and why other questions judge none."""
    by_id = {t.id: t for t in tasks}
    reasons = Counter(_why_unlinked(d, q, by_id, window) for d in dialogues for q in d.questions)
    linked = reasons.pop(None, 0)
    sizes = [len(t.snapshot.state.live) for t in tasks]
    judged = [t for t in tasks if t.questions]
    return {
        "decisions": len(tasks),
        "decisions that some question judges": len(judged),
        "decisions with a demonstration": sum(t.oracle is not None for t in tasks),
        "questions linked to a turn": linked,
        "questions not linked": {str(reason): n for reason, n in sorted(reasons.items(), key=str)},
        "questions per judged decision": _mean([len(t.questions) for t in judged]),
        "entries in a bank": _mean(sizes),
        "entries in the largest bank": max(sizes, default=0),
    }


def _why_unlinked(dialogue: Dialogue, question: Question, tasks: dict[str, DecisionTask], window: int) -> str | None:
    if not (question.answer or "").strip():
        return "no answer"
    if question.asked_after is None and any(q.asked_after and (q.answer or "").strip() for q in dialogue.questions):
        return "asked at the end, in a dialogue with questions after its turns"
    turn = question.asked_after or last_evidence(dialogue, question)
    if turn is None:
        return "no evidence"
    task = tasks.get(f"{dialogue.id}/{turn}")
    if task is None:
        return "the last turn of its evidence holds no fact"
    place = {t.id: i for i, (_, t) in enumerate(dialogue.turns())}
    earlier = set(question.evidence) - {turn}
    if any(f"{dialogue.id}/{other}" not in tasks for other in earlier):
        return "an earlier turn of its evidence holds no fact"
    if window and any(place[turn] - place[other] > window for other in earlier):
        return "earlier evidence is outside the window"
    if all(question.shown_text != asked.text for asked in task.questions):
        return "its turn has more than rollout.questions_per_decision"
    return None


def replay_report(tasks: Sequence[ReplayTask]) -> Report:
    """Counts over replays and the questions that judge them."""
    return {
        "replays": len(tasks),
        "replays that some question judges": sum(bool(t.questions) for t in tasks),
        "decisions in a replay": _mean([len(t.turns) for t in tasks]),
        "questions in a replay": _mean([len(t.questions) for t in tasks]),
        "of these due after a turn": _mean([len(t.questions) - len(t.at_end) for t in tasks]),
    }


def answerer_report(tasks: Sequence[AnswerTask], demonstrations: int) -> Report:
    """Counts over questions and what was retrieved for them."""
    recalls = [r for t in tasks if (r := evidence_recall(t.entries, t.evidence, t.held)) is not None]
    return {
        "questions": len(tasks),
        "questions with a demonstration": demonstrations,
        "entries retrieved": _mean([len(t.entries) for t in tasks]),
        "share of evidence retrieved": _mean(recalls),
        "questions with all evidence retrieved": sum(r == 1.0 for r in recalls),
        "questions with evidence that the bank lacks": sum(bool(t.evidence) and not t.held for t in tasks),
    }


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 3) if values else None
