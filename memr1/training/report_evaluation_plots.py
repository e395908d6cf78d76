"""Figures of the evaluation: scores, failures, growth of memories. Called by `report_evaluation.py` only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from memr1.evaluation.failures import FAILURES
from memr1.evaluation.rows import Row
from memr1.training.report_plots import COLORS, GRID, INK, figure

_ACCENT, _PLAIN = COLORS[1], "#5b6b7d"
_LOST = {"not stored": "#2f5d9b", "not retrieved": "#7fa3cf", "not used": "#c8641b", "no evidence": "#c4c9cf"}


def draw_systems(rows: Sequence[Row], metric: str, path: Path) -> None:
    """Systems of one benchmark as points with intervals, first row on top. Every row needs the metric."""
    with figure(path, size=(9.6, 1.0 + 0.36 * len(rows))) as (_fig, ax):
        for y, row in enumerate(rows):
            interval = row.metrics[metric]
            mean = 100 * interval.mean
            low = mean if interval.low is None else 100 * interval.low
            high = mean if interval.high is None else 100 * interval.high
            color = _ACCENT if row.system.startswith("trained") else _PLAIN
            ax.plot([low, high], [y, y], color=color, linewidth=2.2, solid_capstyle="butt", alpha=0.55)
            ax.plot([mean], [y], "o", color=color, markersize=7)
            ax.text(high + 1.2, y, f"{mean:.1f}", va="center", color=color, fontsize=9.5, fontweight="bold")
        ax.set_yticks(range(len(rows)), [r.system for r in rows])
        ax.set_ylim(len(rows) - 0.4, -0.6)
        top = max(100 * (r.metrics[metric].high or r.metrics[metric].mean) for r in rows)
        ax.set_xlim(0, min(106.0, max(10.0, top + 6)))
        ax.set_xlabel(f"{metric}, percent, with 95 % interval")
        ax.grid(axis="x", color=GRID, linewidth=0.8)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)


def draw_progress(rows: Mapping[str, Sequence[tuple[int, Row]]], metric: str, path: Path) -> None:
    """One metric over training steps for systems that were evaluated more than once. rows: system → (step, row)."""
    with figure(path) as (_fig, ax):
        for i, (system, points) in enumerate(rows.items()):
            color = COLORS[i % len(COLORS)]
            steps = [step for step, _ in points]
            found = [row.metrics[metric] for _, row in points]
            low = [100 * (v.mean if v.low is None else v.low) for v in found]
            high = [100 * (v.mean if v.high is None else v.high) for v in found]
            ax.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
            ax.plot(steps, [100 * v.mean for v in found], "o-", color=color, markersize=4, linewidth=1.8, label=system)
        ax.set_xlabel("step")
        ax.set_ylabel(f"{metric}, percent")
        ax.grid(axis="y", color=GRID, linewidth=0.8)
        ax.legend(frameon=False)


def draw_failures(rows: Sequence[Row], path: Path) -> None:
    """One bar per system: wrong answers by where their evidence was lost, in percent of all questions."""
    rows = [row for row in rows if row.failures]
    with figure(path, size=(9.6, 1.2 + 0.36 * len(rows))) as (_fig, ax):
        for y, row in enumerate(rows):
            left = 0.0
            for name in FAILURES:
                share = 100 * row.failures[name] / row.n
                label = name if y == 0 else None
                ax.barh(
                    y, share, left=left, color=_LOST[name], height=0.66, label=label, edgecolor="white", linewidth=0.8
                )
                if share >= 5:
                    ink = INK if name in ("no evidence", "not retrieved") else "white"
                    ax.text(left + share / 2, y, f"{share:.0f}", ha="center", va="center", color=ink, fontsize=8.5)
                left += share
        ax.set_yticks(range(len(rows)), [r.system for r in rows])
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.set_xlim(0, 100)
        ax.set_xlabel("wrong answers, percent of questions")
        ax.grid(axis="x", color=GRID, linewidth=0.8)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(FAILURES), frameon=False, handlelength=0.9)


def draw_growth(rows: Sequence[Row], path: Path) -> None:
    """Entries held after each tenth of a dialogue; systems that hold the same are one line with all their names."""
    lines: dict[tuple[float, ...], list[str]] = {}
    for row in rows:
        if row.memory is not None:
            lines.setdefault(row.memory.growth, []).append(row.system)
    with figure(path, size=(6.4, 3.6)) as (_fig, ax):
        for i, (growth, systems) in enumerate(sorted(lines.items(), key=lambda line: -line[0][-1])):
            label = ", ".join(systems) if len(systems) < 4 else f"{systems[0]} and {len(systems) - 1} more"
            color, style = COLORS[i % len(COLORS)], ("-", "--", ":")[i // len(COLORS) % 3]
            ax.plot([0, *range(10, 101, 10)], [0, *growth], style, color=color, linewidth=1.8, label=label)
        ax.set_xlim(0, 100)
        ax.set_ylim(bottom=0)
        ax.set_xlabel("sessions told, percent")
        ax.set_ylabel("entries")
        ax.grid(axis="y", color=GRID, linewidth=0.8)
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=8)
