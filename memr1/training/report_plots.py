"""The figures of a report, drawn with matplotlib without a display. Called by `report.py` only.

A panel is a rule that picks metrics by name and says how to draw them; panels whose metrics do not exist are left out,
so every kind of run gets the figures that it has data for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memr1.training.runlog import RESERVED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Distinct in print and for colour-blind readers; dark enough for thin lines on white
COLORS = ("#2f5d9b", "#c8641b", "#2e7d57", "#7b4b94", "#a8862a", "#4a4a4a", "#b03a48", "#4c9aa8")
INK, MUTED, GRID = "#1f2328", "#66707a", "#e6e8eb"

OPERATION_ORDER = ("add", "update", "delete", "noop")


@dataclass(frozen=True)
class Panel:
    """One figure: the metrics whose names match `pattern`."""

    name: str
    title: str
    pattern: str
    note: str
    """What the reader should look for; printed under the figure."""
    kind: str = "lines"
    """`lines`, or `stack` for fractions that add up to 1."""
    smooth: bool = False
    percent: bool = False
    log: bool = False
    """Logarithmic axis, where all values are above 0."""


PANELS: tuple[Panel, ...] = (
    Panel("reward", "Reward", r"^reward/mean$", "Mean over the rollouts of a step; bold: moving average.", smooth=True),
    Panel(
        "match",
        "Match with the gold answer",
        r"(^|/)(em|em_strict|em_squad|em_set|f1|bleu1)(/mean)?$",
        "Mean over the rollouts of a step, sampled at training temperature.",
        smooth=True,
        percent=True,
    ),
    Panel(
        "operations",
        "Operation mix",
        r"^ops/(?!reject|refused|applied|unknown)\w+_fraction$",
        "Share of each memory operation.",
        "stack",
        percent=True,
    ),
    Panel(
        "rejects",
        "Rejected, truncated, failed",
        r"^parse/\w+_fraction$|(^|/)(reject|rejected|unknown_id|truncated|prompt_cut|error)_fraction$",
        "Completions that could not be read or were cut, prompts that were cut, operations that could not be applied.",
        percent=True,
    ),
    Panel("loss", "Loss", r"(^|/)(\w+_)?(loss|nll)$|^loss/(total|mean|policy|sft)$", "Policy or supervised loss."),
    Panel(
        "zero_variance",
        "Groups without variance",
        r"zero_variance|zero_std",
        "Groups whose rollouts all got one reward: they carry no signal.",
        percent=True,
    ),
    Panel("entropy", "Entropy", r"entropy", "Of the sampling distribution, nats per token. A fall to 0 is a collapse."),
    Panel("kl", "KL", r"(^|[/_])kl($|[/_])", "k3 estimates per token: to the weights that sampled, to the reference."),
    Panel(
        "clip",
        "Clipped tokens",
        r"clip_?frac|clip_?(low|high)|clipped",
        "Share of tokens at the clip of the probability ratio.",
        percent=True,
    ),
    Panel(
        "mismatch",
        "Rollout against learner",
        r"mismatch|importance",
        "How far the learner's log-probs are from the rollout's for the same weights; should stay near its floor.",
        log=True,
    ),
    Panel("grad_norm", "Gradient norm", r"grad_norm", "Before clipping."),
    Panel("learning_rate", "Learning rate", r"learning_rate|(^|/)lr$", "As applied."),
    Panel("bank", "Bank size", r"^bank/|bank_size", "Live entries."),
    Panel("length", "Tokens", r"tokens/(prompt|completion)|(completion|prompt)_tokens|_length", "Mean per model call."),
    Panel("recall", "Evidence recall", r"evidence_recall", "Share of gold evidence among the retrieved.", percent=True),
    Panel("throughput", "Tokens per second", r"tokens/per_second|tokens_per_second", "Of whole steps."),
)


def metric_names(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of all metrics in order of appearance, those that are never a number left out."""
    names: dict[str, None] = {}
    for line in metrics:
        for name, value in line.items():
            if name not in RESERVED and isinstance(value, int | float):
                names.setdefault(name)
    return list(names)


def stage_segments(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, int]]:
    """(stage, first line, line after the last) of each contiguous stretch of one stage."""
    out: list[tuple[str, int, int]] = []
    for i, line in enumerate(metrics):
        stage = str(line.get("stage"))
        again = i and line.get("stage_step", 0) <= metrics[i - 1].get("stage_step", 0)
        if out and out[-1][0] == stage and not again:
            out[-1] = (stage, out[-1][1], i + 1)
        else:
            out.append((stage, i, i + 1))
    return out


def moving_average(values: Sequence[float | None], window: int) -> list[float | None]:
    """Mean of the last `window` values that exist; None until there is one."""
    out: list[float | None] = []
    for i in range(len(values)):
        seen = [v for v in values[max(0, i - window + 1) : i + 1] if v is not None]
        out.append(sum(seen) / len(seen) if seen else None)
    return out


def draw_training(metrics: Sequence[Mapping[str, Any]], folder: Path) -> list[tuple[Panel, Path]]:
    """Draw every panel that has data into `folder`; returns panels with their PNG files."""
    names = metric_names(metrics)
    out = []
    for panel in PANELS:
        chosen = [n for n in names if re.search(panel.pattern, n)]
        if not chosen:
            continue
        with figure(folder / f"{panel.name}.png") as (fig, ax):
            if panel.kind == "stack":
                _stack(ax, metrics, chosen)
            else:
                _lines(ax, metrics, chosen, panel)
            _dress(fig, ax, metrics, panel)
        out.append((panel, folder / f"{panel.name}.png"))
    return out


def unplotted(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Metrics that no panel shows; the report lists them in a table."""
    return [
        n
        for n in metric_names(metrics)
        if not any(re.search(p.pattern, n) for p in PANELS) and not re.search(r"^time/\w+_s$", n)
    ]


def time_shares(metrics: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Stage → part → seconds, from `time/<part>_s`. A total (`time/step_s`, `time/total_s`) becomes what its parts
    leave over, as `other`."""
    out: dict[str, dict[str, float]] = {}
    for line in metrics:
        parts = {n[5:-2]: v for n, v in line.items() if re.search(r"^time/\w+_s$", n) and isinstance(v, int | float)}
        total = max((parts.pop(k) for k in ("step", "total") if k in parts), default=None)
        if total is not None:
            parts["other"] = max(0.0, total - sum(parts.values()))
        for name, seconds in parts.items():
            shares = out.setdefault(str(line.get("stage")), {})
            shares[name] = shares.get(name, 0.0) + seconds
    return {stage: parts for stage, parts in out.items() if sum(parts.values()) > 0}


def draw_time(shares: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """One horizontal bar per stage, split by what the time went into."""
    parts = list(dict.fromkeys(name for s in shares.values() for name in s if name != "other"))
    parts += ["other"] if any("other" in s for s in shares.values()) else []
    with figure(path, size=(9.6, 0.9 + 0.52 * len(shares))) as (_fig, ax):
        for y, (_stage, seconds) in enumerate(shares.items()):
            left, total = 0.0, sum(seconds.values())
            for name in parts:
                share = 100 * seconds.get(name, 0.0) / total
                color = "#c4c9cf" if name == "other" else COLORS[parts.index(name) % len(COLORS)]
                label = name if y == 0 else None
                ax.barh(y, share, left=left, color=color, height=0.62, label=label, edgecolor="white", linewidth=0.8)
                if share >= 6:
                    ink = INK if name == "other" else "white"
                    ax.text(left + share / 2, y, f"{share:.0f} %", ha="center", va="center", color=ink, fontsize=8.5)
                left += share
        ax.set_yticks(range(len(shares)), [f"{s}\n{duration(sum(v.values()))}" for s, v in shares.items()])
        ax.invert_yaxis()
        ax.set_xlim(0, 100)
        ax.set_xticks([])
        ax.tick_params(length=0)
        for side in ax.spines.values():
            side.set_visible(False)
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=8, frameon=False, handlelength=0.9)


def duration(seconds: float) -> str:
    """`2 h 05 min`, `12 min 30 s` or `8.4 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if round(seconds) < 3600:
        return f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


@contextmanager
def figure(path: Path, size: tuple[float, float] = (6.4, 3.4)) -> Iterator[tuple[Figure, Axes]]:
    """A figure in the report's style, written to `path` when the block ends. size: inches."""
    import matplotlib

    # the object interface with an explicit canvas: pyplot would keep global state and pick a display
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": INK,
        "axes.edgecolor": "#b8bec5",
        "axes.labelcolor": MUTED,
        "axes.labelsize": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "legend.fontsize": 9,
    }
    with matplotlib.rc_context(style):
        fig = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(fig)
        yield fig, fig.add_subplot()
        path.parent.mkdir(parents=True, exist_ok=True)
        fig.savefig(path, dpi=150, facecolor="white")


def _values(metrics: Sequence[Mapping[str, Any]], name: str) -> list[float | None]:
    return [float(v) if isinstance(v := line.get(name), int | float) else None for line in metrics]


def _lines(ax: Axes, metrics: Sequence[Mapping[str, Any]], names: Sequence[str], panel: Panel) -> None:
    steps = [line["step"] for line in metrics]
    segments = stage_segments(metrics)
    stages = list(dict.fromkeys(s for s, _, _ in segments))
    scale = 100 if panel.percent else 1
    for i, name in enumerate(names):
        values = _values(metrics, name)
        labelled = False
        for stage, start, end in segments:
            pairs = [(x, scale * v) for x, v in zip(steps[start:end], values[start:end], strict=True) if v is not None]
            if not pairs:
                continue
            color = COLORS[(stages.index(stage) if len(names) == 1 else i) % len(COLORS)]
            label = None if len(names) == 1 or labelled else name
            labelled = True
            xs, ys = [x for x, _ in pairs], [y for _, y in pairs]
            marker = "o" if len(xs) <= 40 else ""
            if panel.smooth and len(xs) >= 8:
                mean = moving_average(ys, max(3, len(xs) // 8))
                ax.plot(xs, ys, color=color, linewidth=0.9, alpha=0.4, marker=marker, markersize=2.2)
                ax.plot(xs, [v for v in mean if v is not None], color=color, linewidth=2.2, label=label)
            else:
                ax.plot(xs, ys, color=color, linewidth=1.6, marker=marker, markersize=2.8, label=label)
    if panel.log and all(v > 0 for name in names for v in _values(metrics, name) if v is not None):
        ax.set_yscale("log")
    if len(names) > 1:
        ax.legend(loc="best", handlelength=1.4, framealpha=0.85, edgecolor="none")


def _stack(ax: Axes, metrics: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    def rank(name: str) -> int:
        short = _operation(name)
        return OPERATION_ORDER.index(short) if short in OPERATION_ORDER else len(OPERATION_ORDER)

    ordered = sorted(names, key=rank)
    for _stage, start, end in stage_segments(metrics):
        part = [line for line in metrics[start:end] if any(isinstance(line.get(n), int | float) for n in ordered)]
        if not part:
            continue
        xs = [line["step"] for line in part]
        ys = [[100 * (v or 0.0) for v in _values(part, n)] for n in ordered]
        if len(xs) == 1:  # an area needs two points
            xs, ys = [xs[0] - 0.4, xs[0] + 0.4], [[y[0], y[0]] for y in ys]
        drawn = ax.get_legend_handles_labels()[1]
        labels = [_operation(n).upper() if not drawn else "_hidden" for n in ordered]
        ax.stackplot(xs, ys, labels=labels, colors=COLORS, alpha=0.88, linewidth=0)
    ax.set_ylim(0, 100)
    handles, texts = ax.get_legend_handles_labels()
    ax.legend(handles, texts, frameon=False, ncols=6, loc="lower left", bbox_to_anchor=(0, 1.0), handlelength=0.9)


def _operation(name: str) -> str:
    return name.removeprefix("ops/").removesuffix("_fraction")


def _dress(fig: Figure, ax: Axes, metrics: Sequence[Mapping[str, Any]], panel: Panel) -> None:
    """Axes that all training figures share: the whole run on x, stages marked and named, percent where it is one."""
    from matplotlib.ticker import MaxNLocator

    steps = [line["step"] for line in metrics]
    segments = stage_segments(metrics)
    span = max(1, steps[-1] - steps[0])
    ax.set_xlim(steps[0] - 0.02 * span - 0.5, steps[-1] + 0.02 * span + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    ax.set_xlabel("step")
    ax.set_ylabel(f"{panel.title}, %" if panel.percent else panel.title)
    # matplotlib would put a common factor such as 1e-5 above the axis, where the stage names are
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
    if panel.percent and panel.kind != "stack":
        low, high = ax.get_ylim()
        ax.set_ylim(max(-2.0, low), min(102.0, max(high, low + 4)))
    if panel.kind != "stack":
        ax.grid(axis="y", color=GRID, linewidth=0.8)
    for i, (stage, start, end) in enumerate(segments):
        if i:
            ax.axvline(steps[start] - 0.5, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
        wide = (steps[end - 1] - steps[start] + 1) / span
        if len(segments) > 1 and wide >= 0.16 and panel.kind != "stack":
            middle = (steps[start] + steps[end - 1]) / 2
            above = ax.get_xaxis_transform()
            ax.text(middle, 1.01, stage, transform=above, ha="center", va="bottom", fontsize=8.5, color=MUTED)
