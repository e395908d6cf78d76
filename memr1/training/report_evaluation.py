"""The evaluation part of a report: each benchmark's tables, figures and comparisons. Called by `report.py` only."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memr1.errors import MemR1Error
from memr1.evaluation.comparison import compare
from memr1.evaluation.predictions import load_predictions
from memr1.evaluation.rows import Row
from memr1.evaluation.table import cost_cells, failure_cells, memory_cells, notes, table_cells
from memr1.training import report_evaluation_plots as plots


@dataclass(frozen=True)
class Figure:
    """A drawn plot."""

    title: str
    note: str
    path: Path
    wide: bool = False

    @property
    def data_uri(self) -> str:
        """The PNG for embedding."""
        return "data:image/png;base64," + base64.b64encode(self.path.read_bytes()).decode("ascii")


@dataclass(frozen=True)
class Table:
    """Text cells under a title."""

    title: str
    header: list[str]
    body: list[list[str]]
    note: str = ""


@dataclass(frozen=True)
class Benchmark:
    """Final rows of one benchmark."""

    name: str
    header: list[str]
    body: list[list[str]]
    tables: list[Table]
    """By category, failures, cost and memories, those that there is data for."""
    figures: list[Figure]
    notes: list[str]
    comparisons: list[str]
    """The trained system against each other one, paired by question."""


def by_benchmark(evaluation: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[tuple[int, Row]]]]:
    """Benchmark → system → (step, row), systems in the order of the latest evaluation. Rows that were measured on other
    data, or under other settings, than the newest of their benchmark are left out, see `outdated`."""
    out: dict[str, dict[str, list[tuple[int, Row]]]] = {}
    newest = _measured_on(evaluation)
    for line in evaluation:
        row = Row.from_dict(dict(line))
        if row.measured_on != newest[row.benchmark]:
            continue
        systems = out.setdefault(row.benchmark, {})
        systems[row.system] = [*systems.pop(row.system, []), (int(line.get("step", 0)), row)]
    return out


def outdated(evaluation: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences about systems of which there are but rows that `by_benchmark` leaves out."""
    kept = {(name, system) for name, systems in by_benchmark(evaluation).items() for system in systems}
    lost: dict[str, list[str]] = {}
    for name, system in dict.fromkeys((line["benchmark"], line["system"]) for line in evaluation):
        if (name, system) not in kept:
            lost.setdefault(name, []).append(system)
    return [
        f"{name}: {', '.join(systems)} left out, measured on other data or settings than the newest; evaluate anew."
        for name, systems in lost.items()
    ]


def _measured_on(evaluation: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Of each benchmark, what its newest row was measured on."""
    return {str(line.get("benchmark")): line.get("measured_on", "") for line in evaluation}


def describe(run_dir: Path, name: str, systems: Mapping[str, list[tuple[int, Row]]], metric: str) -> Benchmark:
    """What the report says of a benchmark. systems: as `by_benchmark` gives them."""
    folder = run_dir / "plots"
    final = [points[-1][1] for points in systems.values()]
    slug = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "benchmark"
    figures = []
    with_metric = [row for row in final if metric in row.metrics]
    if with_metric:
        path = folder / f"evaluation-{slug}.png"
        plots.draw_systems(with_metric, metric, path)
        figures.append(Figure(f"{name}: {metric} by system", "Bars are 95 % intervals.", path, wide=True))
    if any(sum(row.failures.values()) for row in final):
        path = folder / f"failures-{slug}.png"
        plots.draw_failures(final, path)
        note = "Wrong answers by where their evidence was lost, in percent of all questions."
        figures.append(Figure(f"{name}: what went wrong", note, path, wide=True))
    grown = [row for row in final if row.memory and max(row.memory.growth, default=0) > 0]
    if grown:
        path = folder / f"growth-{slug}.png"
        plots.draw_growth(grown, path)
        note = "Mean over dialogues; systems with the same memory share a line."
        figures.append(Figure(f"{name}: entries held as dialogues go on", note, path))
    repeated = {s: points for s, points in systems.items() if len({step for step, _ in points}) > 1}
    repeated = {s: p for s, p in repeated.items() if all(metric in row.metrics for _, row in p)}
    if repeated:
        path = folder / f"evaluation-{slug}-steps.png"
        plots.draw_progress(repeated, metric, path)
        figures.append(Figure(f"{name}: {metric} during training", "Bands are 95 % intervals.", path))
    header, body = table_cells(final)
    return Benchmark(
        name=name,
        header=header,
        body=body,
        tables=_tables(final, metric),
        figures=figures,
        notes=notes(final),
        comparisons=_comparisons(run_dir / "predictions" / name, list(systems), metric),
    )


def _tables(rows: Sequence[Row], metric: str) -> list[Table]:
    tables = []
    if any(len(row.categories) > 1 for row in rows):
        declined = any("abstained" in row.metrics for row in rows)
        note = "Where declining is right, the share that declined." if declined else ""
        tables.append(Table(f"By category ({metric})", *table_cells(rows, by_category=metric), note))
    lost = (
        "Not stored: some evidence left no memory. Not retrieved: stored, not shown. Not used: shown, and still wrong."
    )
    tables.append(Table("What went wrong, percent of questions", *failure_cells(rows), lost))
    tables.append(Table("Cost of a question", *cost_cells(rows), "Building is shared by all questions of a dialogue."))
    tables.append(
        Table("Memories", *memory_cells(rows), "Operations in percent of decisions; a decision may hold several.")
    )
    return [table for table in tables if table.body]


def _comparisons(folder: Path, systems: Sequence[str], metric: str) -> list[str]:
    """Sentences that compare, question by question, the trained system with each other one and the trained answerer
    with the warm-started one on a perfect bank; from the predictions that the evaluation kept."""
    pairs = [("trained", other) for other in systems if other != "trained"] + [("oracle-trained", "oracle-warm")]
    out = []
    for ours, theirs in pairs:
        paths = [folder / f"{name}.jsonl" for name in (ours, theirs)]
        if {ours, theirs} <= set(systems) and all(path.is_file() for path in paths):
            try:
                out.append(str(compare(*map(load_predictions, paths), metric=metric)))
            except MemR1Error as error:  # for example, one of them was evaluated again on another split
                out.append(f"not compared: {error}")
    return out
