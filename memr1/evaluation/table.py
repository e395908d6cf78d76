"""From per-question predictions to tables: Row and comparison. Called by the evaluation, the CLI and the report.

A prediction whose answer is None (unparsable, or the system failed) scores 0.0 and counts in `errors`; a question that
no measure applies to is left out of all means and counted in `unscored`. Nothing is dropped in silence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memr1.errors import MemR1Error
from memr1.evaluation.predictions import Prediction
from memr1.evaluation.scores import TEXT_MEASURES, score
from memr1.evaluation.statistics import Interval, PairedDifference, bootstrap_interval, paired_bootstrap

if TYPE_CHECKING:
    from rich.table import Table


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
class Row:
    """Results of one system on one benchmark. Overall is the micro average over questions."""

    benchmark: str
    system: str
    n: int
    """Questions scored."""
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
    """Mean per question."""

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
            known = {f.name for f in dataclasses.fields(cls)} - {"metrics", "categories"}
            plain = {k: v for k, v in data.items() if k in known}
            return cls(**plain, metrics=_intervals(data["metrics"]), categories=categories)
        except (KeyError, TypeError) as error:
            raise MemR1Error(f"evaluation row: {error} is missing or wrong; write rows with Row.to_dict()") from error


@dataclass(frozen=True)
class Comparison:
    """System a against system b over the questions that both answered."""

    benchmark: str
    a: str
    b: str
    metric: str
    mean_a: float
    mean_b: float
    paired: PairedDifference
    only_a: int
    only_b: int

    @property
    def real(self) -> bool:
        """True when the difference is unlikely to come from the choice of questions."""
        return self.paired.real

    def __str__(self) -> str:
        p = self.paired
        span = "" if p.low is None or p.high is None else f" [{100 * p.low:+.1f}, {100 * p.high:+.1f}]"
        verdict = "a real difference" if self.real else "no real difference shown"
        left_out = self.only_a + self.only_b
        note = f"; {left_out} questions answered by one system only were left out" if left_out else ""
        return (
            f"{self.benchmark} {self.metric}: {self.a} {100 * self.mean_a:.1f} against {self.b} "
            f"{100 * self.mean_b:.1f}, difference {100 * p.difference:+.1f}{span} points, "
            f"p = {p.p_value:.3f}, n = {p.n}: {verdict}{note}"
        )


def summarize(
    predictions: Sequence[Prediction],
    *,
    measures: Sequence[str] = (),
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Row:
    """One system's predictions on one benchmark as a Row, overall and by category.

    measures: names of `memr1.evaluation.scores.MEASURES` beside the text match.
    Raises MemR1Error when the predictions mix systems or benchmarks, when a question comes twice, and when no question
    can be scored.
    """
    owners = list(dict.fromkeys((p.benchmark, p.system) for p in predictions))
    if len(owners) != 1:
        raise MemR1Error(f"summarize: expected predictions of one system on one benchmark, found {owners or 'none'}")
    _by_question(predictions)
    names = [*TEXT_MEASURES, *measures]
    scored = [p for p in predictions if any(score(p, m) is not None for m in names)]
    if not scored:
        raise MemR1Error(f"{owners[0][0]}: none of {len(predictions)} questions of {owners[0][1]} has a gold answer")

    def intervals(group: Sequence[Prediction]) -> dict[str, Interval]:
        values = {m: [v for p in group if (v := score(p, m)) is not None] for m in names}
        return {
            m: bootstrap_interval(v, confidence=confidence, resamples=resamples, seed=seed)
            for m, v in values.items()
            if v
        }

    groups: dict[tuple[int | None, str], list[Prediction]] = {}
    for p in scored:
        groups.setdefault((p.category_id, p.category), []).append(p)
    # sorted is stable: categories without a number keep their order, after those with one
    order = sorted(groups, key=lambda key: (key[0] is None, key[0] or 0))
    recalls = [p.evidence_recall for p in scored if p.evidence_recall is not None]
    n = len(scored)
    return Row(
        benchmark=owners[0][0],
        system=owners[0][1],
        n=n,
        metrics=intervals(scored),
        categories=tuple(CategoryRow(c[1], c[0], len(groups[c]), intervals(groups[c])) for c in order),
        errors=sum(p.answer is None for p in scored),
        unscored=len(predictions) - n,
        prompts_cut=sum(p.prompt_cut for p in scored),
        evidence_recall=sum(recalls) / len(recalls) if recalls else None,
        prompt_tokens=sum(p.prompt_tokens for p in scored) / n,
        completion_tokens=sum(p.completion_tokens for p in scored) / n,
        seconds=sum(p.seconds for p in scored) / n,
    )


def summarize_all(predictions: Iterable[Prediction], **options: Any) -> list[Row]:
    """A Row per benchmark and system, in order of appearance. options: as for `summarize`."""
    groups: dict[tuple[str, str], list[Prediction]] = {}
    for p in predictions:
        groups.setdefault((p.benchmark, p.system), []).append(p)
    return [summarize(group, **options) for group in groups.values()]


def compare(
    a: Sequence[Prediction], b: Sequence[Prediction], *, metric: str = "em_set", seed: int = 0, resamples: int = 2000
) -> Comparison:
    """Paired comparison of two systems by question id; questions that only one side has are counted and left out.

    Raises MemR1Error when the sides mix systems, come from different benchmarks, or share no scored question.
    """
    owners_a, owners_b = {(p.benchmark, p.system) for p in a}, {(p.benchmark, p.system) for p in b}
    if len(owners_a) != 1 or len(owners_b) != 1:
        raise MemR1Error(f"compare: each side needs one system's predictions; found {owners_a} and {owners_b}")
    (benchmark, name_a), (other, name_b) = owners_a.pop(), owners_b.pop()
    if benchmark != other:
        raise MemR1Error(f"compare: {name_a} was run on {benchmark} and {name_b} on {other}; compare on one benchmark")
    left, right = _by_question(a), _by_question(b)
    keys = [k for k in left if k in right]
    pairs = [(score(left[k], metric), score(right[k], metric)) for k in keys]
    scored = [(x, y) for x, y in pairs if x is not None and y is not None]
    if not scored:
        raise MemR1Error(f"compare: {name_a} and {name_b} share no scored question; run both on the same questions")
    first, second = [x for x, _ in scored], [y for _, y in scored]
    return Comparison(
        benchmark=benchmark,
        a=name_a,
        b=name_b,
        metric=metric,
        mean_a=sum(first) / len(first),
        mean_b=sum(second) / len(second),
        paired=paired_bootstrap(first, second, seed=seed, resamples=resamples),
        only_a=len(left) - len(keys),
        only_b=len(right) - len(keys),
    )


def markdown_table(rows: Sequence[Row], *, by_category: str | None = None) -> str:
    """The rows as a Markdown table, in their order. Scores are percent, with 95 % intervals in brackets.

    by_category: a metric; then the columns are the categories with that metric, instead of the metrics overall. Where
        declining is the right answer, the category has no match, and its cells are the share that declined.
    """
    header, body = table_cells(rows, by_category=by_category)
    left = _left_columns(header)
    rule = [":--" if i < left else "--:" for i in range(len(header))]
    lines = [header, rule, *[[cell.replace("|", "\\|") for cell in line] for line in body]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def rich_table(rows: Sequence[Row], *, title: str | None = None, by_category: str | None = None) -> Table:
    """The same table for the terminal."""
    from rich.table import Table
    from rich.text import Text

    header, body = table_cells(rows, by_category=by_category)
    table = Table(title=title, title_justify="left", header_style="bold", pad_edge=False)
    left = _left_columns(header)
    for i, name in enumerate(header):
        table.add_column(Text(name), justify="left" if i < left else "right")
    for line in body:
        table.add_row(*[Text(cell) for cell in line])
    return table


def table_cells(rows: Sequence[Row], *, by_category: str | None = None) -> tuple[list[str], list[list[str]]]:
    """Header and body of the table as text cells. A benchmark column appears when the rows have several."""
    several = len({r.benchmark for r in rows}) > 1
    start = ["benchmark", "system"] if several else ["system"]
    if by_category is None:
        names = list(dict.fromkeys(m for r in rows for m in r.metrics))
        header = [*start, "n", *names, *(["no answer"] if any(r.errors for r in rows) else [])]
        cells = [[str(r.n), *[format_interval(r.metrics.get(m)) for m in names]] for r in rows]
        if "no answer" in header:
            cells = [[*line, str(r.errors)] for line, r in zip(cells, rows, strict=True)]
    else:
        sizes: dict[str, set[int]] = {}
        for row in rows:
            for c in row.categories:
                sizes.setdefault(c.label, set()).add(c.n)
        header = [*start, *[f"{label} (n={'/'.join(map(str, sorted(ns)))})" for label, ns in sizes.items()]]
        cells = []
        for row in rows:
            found = {c.label: c.metrics for c in row.categories}
            measured = [found.get(label, {}) for label in sizes]
            cells.append([format_interval(m.get(by_category) or m.get("abstained")) for m in measured])
    begin = [[r.benchmark, r.system] if several else [r.system] for r in rows]
    return header, [[*b, *line] for b, line in zip(begin, cells, strict=True)]


def format_interval(interval: Interval | None) -> str:
    """`41.2 [38.5, 43.9]` in percent; `–` where there is no result."""
    if interval is None:
        return "–"
    if interval.low is None or interval.high is None:
        return f"{100 * interval.mean:.1f}"
    return f"{100 * interval.mean:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _left_columns(header: list[str]) -> int:
    return 2 if header[:1] == ["benchmark"] else 1


def _intervals(data: dict[str, Any]) -> dict[str, Interval]:
    return {name: Interval(**values) for name, values in data.items()}


def _by_question(predictions: Sequence[Prediction]) -> dict[tuple[str, str], Prediction]:
    out: dict[tuple[str, str], Prediction] = {}
    for p in predictions:
        if p.key in out:
            raise MemR1Error(
                f"{p.benchmark}: {p.system} has two predictions for question {p.dialogue_id}/{p.question_id}"
            )
        out[p.key] = p
    return out
