"""The table of `memr1 ablate`: in the terminal, as `ablation.md` and as the page `ablation.html`."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from memr1.config import Config
from memr1.config_file import to_yaml
from memr1.evaluation.rows import Row
from memr1.evaluation.statistics import Interval
from memr1.evaluation.table import format_interval

COLUMNS = ("em_set", "f1", "bleu1", "judge")
GAINS = {"over_neither": "over neither", "both_over_it": "both over it", "over_no_memory": "over no-memory"}
"""Differences of em_set by question: key of a row -> head of a column."""


def table_cells(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and body: percent with 95 % intervals. A column that no row has anything for is left out."""
    columns = [name for name in COLUMNS if any(name in row["metrics"] for row in rows)]
    gains = [name for name in GAINS if any(row[name] for row in rows)]
    header = ["arm", "reward", "objective", *columns, *(GAINS[name] for name in gains), "questions"]
    body = []
    for row in rows:
        found = [row["metrics"].get(name) for name in columns]
        cells = [format_interval(None if values is None else Interval(**values)) for values in found]
        seeds = len(row["seeds"])
        count = f"{row['n'] // seeds} x {seeds}" if seeds > 1 else str(row["n"])
        differences = [_signed(row[name]) for name in gains]
        body.append([row["arm"], row["reward"], row["objective"], *cells, *differences, count])
    return header, body


def terminal_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The same for the terminal."""
    header, body = table_cells(rows)
    table = Table(*header, title="percent, with 95 % intervals")
    for line in body:
        table.add_row(*[Text(cell) for cell in line])
    return table


def write_table(rows: Sequence[Mapping[str, Any]], config: Config, folder: Path) -> Path:
    """Write `ablation.md`, `ablation.html` and their figures in `plots/`; returns the path of the HTML file.

    rows: with the keys of `Row.to_dict()`, and those that `table_cells` takes.
    """
    from memr1.training.report import Report, write_pages
    from memr1.training.report_evaluation import describe

    name, seeds = rows[0]["benchmark"], rows[0]["seeds"]
    systems = {_label(row): [(0, replace(Row.from_dict(dict(row)), system=_label(row)))] for row in rows}
    header, body = table_cells(rows)
    report = Report(
        name=config.name,
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        facts=[("model", config.model.name), ("seeds", ", ".join(map(str, seeds)))],
        headlines=[],
        metric="em_set",
        benchmarks=[replace(describe(folder, name, systems, "em_set"), header=header, body=body)],
        curves=[],
        time=None,
        other_metrics=[],
        rollouts=[],
        config=to_yaml(config),
    )
    if len(seeds) > 1:
        report = replace(report, coverage="They cover the choice of questions and of seeds.")
    return write_pages(report, folder, "ablation")


def _label(row: Mapping[str, Any]) -> str:
    return ", ".join(part for part in (row["arm"], row["reward"], row["objective"]) if part)


def _signed(paired: Mapping[str, Any] | None) -> str:
    if paired is None:
        return ""
    span = "" if paired["low"] is None else f" [{100 * paired['low']:+.1f}, {100 * paired['high']:+.1f}]"
    return f"{100 * paired['difference']:+.1f}{span}"
