"""From per-question predictions to a row: what one system reached on one benchmark, and at what cost.

A prediction whose answer is None (unparsable, or the system failed) scores 0.0 and counts in `errors`; a question that
no measure applies to is left out of all means and counted in `unscored`. Nothing is dropped in silence.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from memr1.errors import MemR1Error
from memr1.evaluation.failures import FAILURES, failure
from memr1.evaluation.memories.base import Footprint
from memr1.evaluation.predictions import Prediction, by_question
from memr1.evaluation.scores import TEXT_MEASURES, score
from memr1.evaluation.statistics import Interval, bootstrap_interval, crossed_interval


@dataclass(frozen=True)
class CategoryRow:
    """Results of one question type."""

    category: str
    category_id: int | None
    n: int
    metrics: dict[str, Interval]

    @property
    def label(self) -> str:
        """`2 temporal` where the dataset numbers its categories, otherwise the name."""
        return self.category if self.category_id is None else f"{self.category_id} {self.category}"


@dataclass(frozen=True)
class MemoryRow:
    """What the memories of a system were like: means over dialogues."""

    entries: float
    """Held at the end."""
    growth: tuple[float, ...]
    """Entries held after each tenth of a dialogue's sessions; within a session they are taken to grow evenly."""
    operations: dict[str, float]
    """Applied operations for each decision, by event; empty where nothing decides."""
    rejected: float
    """Operations for each decision that could not be applied."""
    unreadable: float
    """Share of decisions that could not be asked for or parsed."""
    tokens: float
    """Prompt and completion tokens of models while building, for each question asked."""
    seconds: float
    """Spent on building, for each question asked."""


@dataclass(frozen=True)
class JudgeRow:
    """The judge behind a row's `judge` column, and how far to trust it."""

    model: str
    prompt: str
    """Digest of its prompt (`memr1.rollout.judge.PROMPT_ID`)."""
    errors: int
    """Answers without a verdict, left out of its mean."""
    accepts_swapped: float | None
    """Share of deliberately wrong answers that it accepted: the gold of another question."""
    accepts_vague: float | None
    """The same of an answer that would fit every question."""
    probes: int
    """Questions with a verdict on both."""

    def __str__(self) -> str:
        shares = [
            f"{100 * share:.0f} % of {what}"
            for share, what in ((self.accepts_swapped, "swapped"), (self.accepts_vague, "vague"))
            if share is not None
        ]
        lenient = f"accepts {' and '.join(shares)} wrong answers (n = {self.probes})" if shares else "not probed"
        return f"judge {self.model}, prompt {self.prompt}: {lenient}; {self.errors} answers without a verdict"


@dataclass(frozen=True)
class Row:
    """Results of one system on one benchmark. Overall is the micro average over questions."""

    benchmark: str
    system: str
    n: int
    """Questions scored, once for each seed."""
    metrics: dict[str, Interval]
    """By name: the text match first, then the dataset's own measures. Each is over the questions that it applies to."""
    categories: tuple[CategoryRow, ...]
    """By category id, then in order of appearance."""
    errors: int = 0
    """Scored questions without an answer."""
    unscored: int = 0
    """Questions left out because no measure applies to them: they have no gold."""
    prompts_cut: int = 0
    """Scored questions whose prompt did not hold all retrieved entries."""
    evidence_recall: float | None = None
    """Mean over the questions where it is known."""
    prompt_tokens: float = 0.0
    """Mean per question."""
    completion_tokens: float = 0.0
    """Mean per question."""
    seconds: float = 0.0
    """Mean per question, of retrieving and answering."""
    failures: dict[str, int] = field(default_factory=dict)
    """Wrong answers by what went wrong, see `memr1.evaluation.failures`."""
    memory: MemoryRow | None = None
    """What the memories were like, where it is known."""
    judge: JudgeRow | None = None
    """Of the `judge` column, where there is one."""
    measured_on: str = ""
    """Digest of the dialogues with their questions and golds, and of the evaluation's settings: rows that differ in it
    do not belong in one table."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, for `evaluation.jsonl`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Row:
        """The inverse of `to_dict`; other keys (step, stage, time) are ignored. MemR1Error names a missing field."""
        try:
            categories = tuple(
                CategoryRow(c["category"], c["category_id"], c["n"], _intervals(c["metrics"]))
                for c in data["categories"]
            )
            known = {f.name for f in dataclasses.fields(cls)} - {"metrics", "categories", "memory", "judge"}
            plain = {k: v for k, v in data.items() if k in known}
            kept = data.get("memory")
            memory = MemoryRow(**kept | {"growth": tuple(kept["growth"])}) if kept else None
            judge = JudgeRow(**data["judge"]) if data.get("judge") else None
            return cls(**plain, metrics=_intervals(data["metrics"]), categories=categories, memory=memory, judge=judge)
        except (KeyError, TypeError) as error:
            raise MemR1Error(f"evaluation row: {error} is missing or wrong; write rows with Row.to_dict()") from error


def summarize(
    predictions: Sequence[Prediction],
    footprints: Sequence[Footprint] = (),
    *,
    measures: Sequence[str] = (),
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Row:
    """One system's predictions on one benchmark as a Row, overall and by category.

    footprints: of the memories that the answers were drawn from.
    measures: names of `memr1.evaluation.scores.MEASURES` beside the text match.
    Raises MemR1Error when the predictions mix systems or benchmarks, when a question comes twice, and when no question
    can be scored.
    """

    def interval(values: Sequence[Sequence[float]]) -> Interval:
        return bootstrap_interval(values[0], confidence=confidence, resamples=resamples, seed=seed)

    return _row([predictions], footprints, measures, interval)


def summarize_seeds(runs: Sequence[Sequence[Prediction]], measures: Sequence[str] = ()) -> Row:
    """The same of a system that was trained with several seeds: intervals cover the choice of seeds and of questions,
    counts are over the answers of all seeds.

    A measure is taken over the questions that all seeds have it for. Raises MemR1Error as `summarize` does, and when
    seeds answered different questions.
    """
    return summarize(runs[0], measures=measures) if len(runs) == 1 else _row(runs, (), measures, crossed_interval)


def _row(
    runs: Sequence[Sequence[Prediction]],
    footprints: Sequence[Footprint],
    measures: Sequence[str],
    interval: Callable[[Sequence[Sequence[float]]], Interval],
) -> Row:
    """interval: of scores by run and question."""
    owners = list(dict.fromkeys((p.benchmark, p.system) for run in runs for p in run))
    if len(owners) != 1:
        raise MemR1Error(f"summarize: expected predictions of one system on one benchmark, found {owners or 'none'}")
    by_run = [by_question(run) for run in runs]
    if any(set(run) != set(by_run[0]) for run in by_run):
        raise MemR1Error(f"{owners[0][0]}: seeds of {owners[0][1]} answered different questions; evaluate them alike")
    names = [*TEXT_MEASURES, *measures]
    questions = [[run[key] for run in by_run] for key in by_run[0]]  # of each, the answers of all runs
    scored = [ps for ps in questions if any(score(p, m) is not None for p in ps for m in names)]
    if not scored:
        raise MemR1Error(f"{owners[0][0]}: none of {len(questions)} questions of {owners[0][1]} has a gold answer")

    def intervals(group: Sequence[Sequence[Prediction]]) -> dict[str, Interval]:
        out = {}
        for name in names:
            scores = [[score(p, name) for p in ps] for ps in group]
            known = [[s for s in of_question if s is not None] for of_question in scores if None not in of_question]
            if known:
                out[name] = interval([list(of_run) for of_run in zip(*known, strict=True)])
        return out

    groups: dict[tuple[int | None, str], list[list[Prediction]]] = {}
    for ps in scored:
        groups.setdefault((ps[0].category_id, ps[0].category), []).append(ps)
    # sorted is stable: categories without a number keep their order, after those with one
    order = sorted(groups, key=lambda key: (key[0] is None, key[0] or 0))
    answers = [p for ps in scored for p in ps]
    found = [failure(p) for p in answers]
    recalls = [p.evidence_recall for p in answers if p.evidence_recall is not None]
    n = len(answers)
    return Row(
        benchmark=owners[0][0],
        system=owners[0][1],
        n=n,
        metrics=intervals(scored),
        categories=tuple(CategoryRow(c[1], c[0], len(groups[c]) * len(runs), intervals(groups[c])) for c in order),
        errors=sum(p.answer is None for p in answers),
        unscored=len(questions) * len(runs) - n,
        prompts_cut=sum(p.prompt_cut for p in answers),
        evidence_recall=sum(recalls) / len(recalls) if recalls else None,
        prompt_tokens=sum(p.prompt_tokens for p in answers) / n,
        completion_tokens=sum(p.completion_tokens for p in answers) / n,
        seconds=sum(p.seconds for p in answers) / n,
        failures={name: found.count(name) for name in FAILURES},
        memory=_memory(footprints, len(questions)) if footprints else None,
    )


def _memory(footprints: Sequence[Footprint], questions: int) -> MemoryRow:
    decisions = sum(f.upkeep.decisions for f in footprints)
    operations: Counter[str] = Counter()
    for f in footprints:
        operations.update(f.upkeep.operations)

    def mean(values: Iterable[float]) -> float:
        return sum(values) / len(footprints)

    def size_at(f: Footprint, tenth: int) -> float:
        sizes, place = (0, *f.sizes), len(f.sizes) * tenth / 10
        before, after = sizes[int(place)], sizes[min(int(place) + 1, len(f.sizes))]
        return before + (place - int(place)) * (after - before)

    return MemoryRow(
        entries=mean(f.entries for f in footprints),
        growth=tuple(mean(size_at(f, tenth) for f in footprints) for tenth in range(1, 11)),
        operations={event: count / decisions for event, count in sorted(operations.items())} if decisions else {},
        rejected=sum(f.upkeep.rejected for f in footprints) / max(decisions, 1),
        unreadable=sum(f.upkeep.unreadable for f in footprints) / max(decisions, 1),
        tokens=sum(f.upkeep.tokens for f in footprints) / questions,
        seconds=sum(f.seconds for f in footprints) / questions,
    )


def summarize_all(predictions: Iterable[Prediction], **options: Any) -> list[Row]:
    """A Row per benchmark and system, in order of appearance. options: as for `summarize`."""
    groups: dict[tuple[str, str], list[Prediction]] = {}
    for p in predictions:
        groups.setdefault((p.benchmark, p.system), []).append(p)
    return [summarize(group, **options) for group in groups.values()]


def _intervals(data: dict[str, Any]) -> dict[str, Interval]:
    return {name: Interval(**values) for name, values in data.items()}
