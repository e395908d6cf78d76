"""Rows as tables, for the terminal and for Markdown. Called by the evaluation, the CLI and the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from memr1.evaluation.failures import FAILURES
from memr1.evaluation.rows import Row
from memr1.evaluation.statistics import Interval

if TYPE_CHECKING:
    from rich.table import Table


def markdown_table(rows: Sequence[Row], *, by_category: str | None = None) -> str:
    """The rows as a Markdown table, in their order. Scores are percent, with 95 % intervals in brackets.

    by_category: a metric; then the columns are the categories with that metric, instead of the metrics overall. Where
        declining is the right answer, the category has no match, and its cells are the share that declined.
    """
    return markdown(*table_cells(rows, by_category=by_category))


def markdown(header: list[str], body: Sequence[Sequence[str]]) -> str:
    """Text cells as a Markdown table, numbers to the right."""
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


def failure_cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Wrong answers by where their evidence was lost, in percent of all questions scored."""
    header = ["system", "wrong", *FAILURES]
    return header, [
        [
            r.system,
            f"{100 * sum(r.failures.values()) / r.n:.1f}",
            *[f"{100 * r.failures[f] / r.n:.1f}" for f in FAILURES],
        ]
        for r in rows
        if r.failures
    ]


def cost_cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """What an answer costs, and the building of the memory that it is drawn from."""
    header = ["system", "prompt tokens", "completion tokens", "seconds", "building tokens", "building seconds"]
    body = []
    for r in rows:
        built = [f"{r.memory.tokens:.0f}", f"{r.memory.seconds:.2f}"] if r.memory else ["–", "–"]
        body.append([r.system, f"{r.prompt_tokens:.0f}", f"{r.completion_tokens:.1f}", f"{r.seconds:.2f}", *built])
    return header, body


def memory_cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """What the memories held, and the operations that each decision led to."""
    events = ("ADD", "UPDATE", "DELETE", "NOOP")
    header = ["system", "entries", *events, "rejected", "unreadable"]
    body = []
    for r in rows:
        if r.memory is None:
            continue
        rates = [r.memory.operations.get(e, 0.0) for e in events] + [r.memory.rejected, r.memory.unreadable]
        decided = [f"{100 * rate:.1f}" for rate in rates] if any(rates) else ["–"] * len(rates)
        body.append([r.system, f"{r.memory.entries:.1f}", *decided])
    return header, body


def notes(rows: Sequence[Row]) -> list[str]:
    """What must be known to read the table: whose judge it was, what was left out, and whose prompts were cut."""
    said = list(dict.fromkeys(f"{row.judge}." for row in rows if row.judge))
    for row in rows:
        if row.unscored:
            said.append(f"{row.system}: {row.unscored} questions without a gold answer were left out.")
        if row.prompts_cut:
            cut = f"{row.prompts_cut} of {row.n} prompts"
            said.append(f"{row.system}: {cut} were cut to fit rollout.max_prompt_tokens.")
    return said


def format_interval(interval: Interval | None) -> str:
    """`41.2 [38.5, 43.9]` in percent; `–` where there is no result."""
    if interval is None:
        return "–"
    if interval.low is None or interval.high is None:
        return f"{100 * interval.mean:.1f}"
    return f"{100 * interval.mean:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _left_columns(header: list[str]) -> int:
    return 2 if header[:1] == ["benchmark"] else 1
