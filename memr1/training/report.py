"""write_report: a run folder as `report.md` and a self-contained `report.html`, with figures in `plots/`.

Called by `memr1 report RUN` and at the end of a run. Reads only what `runlog.py` wrote and `config.yaml`; works at any
moment of a run and says what is not there yet. Figures are drawn by `report_plots.py`.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memr1.errors import MemR1Error
from memr1.evaluation.rows import Row
from memr1.evaluation.scores import TEXT_MEASURES
from memr1.evaluation.table import format_interval, markdown
from memr1.training import report_plots as plots
from memr1.training.report_evaluation import Benchmark, Figure, by_benchmark, describe, outdated
from memr1.training.runlog import read_evaluation, read_info, read_metrics, read_rollouts, rollout_files

CONFIG_FILE = "config.yaml"
_MAX_PROMPT_CHARS = 6000


@dataclass(frozen=True)
class Report:
    """Everything the templates print."""

    name: str
    created: str
    facts: list[tuple[str, str]]
    headlines: list[tuple[str, str, str]]
    """(label, value, remark) of the numbers at the top."""
    metric: str
    benchmarks: list[Benchmark]
    curves: list[Figure]
    time: Figure | None
    other_metrics: list[list[str]]
    rollouts: list[dict[str, Any]]
    config: str | None
    missing: list[str] = field(default_factory=list)
    """Sentences about what the run has not written yet, or only for other data."""
    coverage: str = "They cover the choice of questions, not the seed of the run."
    """What the intervals cover."""


def write_report(run_dir: str | Path, *, metric: str = "em_set") -> Path:
    """Write `report.md`, `report.html` and `plots/*.png` into the run folder; returns the path of the HTML file.

    metric: the one that figures and category tables show. Raises MemR1Error when the folder does not exist or a file in
    it is damaged (with file and line).
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise MemR1Error(f"{run_dir}: no such run folder; a run's folder is <output>/<name> of its config")
    if metric not in TEXT_MEASURES:
        raise MemR1Error(f"report: metric {metric!r} is not one of {', '.join(TEXT_MEASURES)}")
    return write_pages(collect(run_dir, metric), run_dir, "report")


def write_pages(report: Report, folder: Path, name: str) -> Path:
    """Write `<name>.md` and `<name>.html` into a folder, beside the figures in its `plots/`; returns the latter's."""
    (folder / f"{name}.md").write_text(render_markdown(report), encoding="utf-8")
    path = folder / f"{name}.html"
    path.write_text(render_html(report), encoding="utf-8")
    return path


def collect(run_dir: Path, metric: str) -> Report:
    """Read the run, draw its figures, and gather what the templates print."""
    metrics, evaluation = read_metrics(run_dir), read_evaluation(run_dir)
    folder = run_dir / "plots"
    for old in folder.glob("*.png") if folder.is_dir() else ():
        old.unlink()  # a figure of an earlier report whose metrics are gone would mislead
    missing = []
    if not metrics:
        missing.append("No training step was logged yet.")
    if not evaluation:
        missing.append("No evaluation was done yet.")
    if not rollout_files(run_dir):
        missing.append("No rollouts were saved yet.")
    missing += outdated(evaluation)
    config_path = run_dir / CONFIG_FILE
    config = config_path.read_text(encoding="utf-8") if config_path.is_file() else None
    if config is None:
        missing.append(f"The run folder holds no {CONFIG_FILE}.")
    benchmarks = [describe(run_dir, name, rows, metric) for name, rows in by_benchmark(evaluation).items()]
    shares = plots.time_shares(metrics)
    time_figure = None
    if shares:
        plots.draw_time(shares, folder / "time.png")
        time_figure = Figure("Where the time went", "Share of each part, by stage.", folder / "time.png", wide=True)
    curves = [Figure(p.title, p.note, path) for p, path in plots.draw_training(metrics, folder)] if metrics else []
    return Report(
        name=run_dir.resolve().name,
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        facts=_facts(read_info(run_dir), metrics, config),
        headlines=_headlines(metrics, by_benchmark(evaluation), metric),
        metric=metric,
        benchmarks=benchmarks,
        curves=curves,
        time=time_figure,
        other_metrics=_other_metrics(metrics),
        rollouts=sample_rollouts(run_dir),
        config=config,
        missing=missing,
    )


def render_html(report: Report) -> str:
    """The report as one HTML page without outside references."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("memr1.training", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report_template.html.j2").render(report=report)


def render_markdown(report: Report) -> str:
    """The report as Markdown, with figures as links into `plots/`."""
    out = [f"# {report.name}", "", f"Report of {report.created}.", ""]
    out += [f"> {sentence}\n" for sentence in report.missing]
    out += ["| | |", "| :-- | :-- |", *[f"| {k} | {_cell(v)} |" for k, v in report.facts], ""]
    out += [f"- **{label}: {value}**{' – ' + remark if remark else ''}" for label, value, remark in report.headlines]
    if report.benchmarks:
        out += ["", "## Evaluation", "", f"Percent, with 95 % bootstrap intervals. {report.coverage}", ""]
    for b in report.benchmarks:
        out += [f"### {b.name}", "", markdown(b.header, b.body), *[f"{note}\n" for note in b.notes]]
        out += [f"![{f.title}](plots/{f.path.name})\n" for f in b.figures]
        if b.comparisons:
            out += ["Paired by question:", "", *[f"- {sentence}" for sentence in b.comparisons], ""]
        for table in b.tables:
            out += [
                f"{table.title}:",
                "",
                *([table.note, ""] if table.note else []),
                markdown(table.header, table.body),
            ]
    if report.curves:
        out += ["", "## Training", ""]
        out += [f"### {f.title}\n\n{f.note}\n\n![{f.title}](plots/{f.path.name})\n" for f in report.curves]
    if report.other_metrics:
        out += [
            "",
            "### Other metrics",
            "",
            "| metric | first | last | least | most |",
            "| :-- | --: | --: | --: | --: |",
        ]
        out += ["| " + " | ".join(line) + " |" for line in report.other_metrics]
    if report.time:
        out += ["", f"## {report.time.title}", "", f"![{report.time.title}](plots/{report.time.path.name})"]
    if report.rollouts:
        out += ["", "## Rollouts", ""]
    for r in report.rollouts:
        out += [f"### {r['title']}", "", *[f"- {k}: {_cell(v)}" for k, v in r["facts"]], ""]
        for call in r["calls"]:
            out += [f"{call['title']}:", "", _fenced(call["completion"]), ""]
    if report.config:
        out += ["", "## Config", "", _fenced(report.config, "yaml")]
    return "\n".join(out) + "\n"


def sample_rollouts(run_dir: Path, per_step: int = 2) -> list[dict[str, Any]]:
    """Decoded rollouts of the first and the last saved step: of each, the best and the worst paid."""
    files = rollout_files(run_dir)
    steps = list(dict.fromkeys([*list(files)[:1], *list(files)[-1:]]))
    out = []
    for step in steps:
        rollouts = read_rollouts(files[step])
        paid = sorted((r for r in rollouts if r.get("reward") is not None), key=lambda r: -r["reward"])
        chosen = paid if len(paid) <= per_step else [*paid[: per_step - 1], paid[-1]]
        out += [_rollout(step, r) for r in chosen or rollouts[:1]]
    return out


def _rollout(step: int, rollout: Mapping[str, Any]) -> dict[str, Any]:
    outcome = rollout.get("outcome") or {}
    facts = [(k, str(outcome[k])) for k in ("question", "gold", "answer", "category") if outcome.get(k) is not None]
    if outcome.get("facts"):
        facts.insert(0, ("facts", " / ".join(map(str, outcome["facts"]))))
    if outcome.get("operations"):
        facts.append(("operations", "; ".join(map(operation_text, outcome["operations"]))))
    parts = ", ".join(f"{k} {v:.3g}" for k, v in (rollout.get("reward_parts") or {}).items())
    reward, advantage = rollout.get("reward"), rollout.get("advantage")
    facts.append(("reward", "none" if reward is None else f"{reward:.3g}" + (f" ({parts})" if parts else "")))
    if advantage is not None:
        facts.append(("advantage", f"{advantage:+.3g}"))
    if rollout.get("error"):
        facts.append(("error", str(rollout["error"])))
    calls = []
    for s in rollout.get("steps") or []:
        prompt = str(s.get("prompt_text", ""))
        if len(prompt) > _MAX_PROMPT_CHARS:
            half = _MAX_PROMPT_CHARS // 2
            prompt = f"{prompt[:half]}\n[… {len(prompt) - 2 * half} characters …]\n{prompt[-half:]}"
        title = f"{s.get('role', 'model')} ({s.get('finish_reason', '?')})"
        calls.append({"title": title, "prompt": prompt, "completion": str(s.get("completion_text", ""))})
    return {"title": f"Step {step}, {rollout.get('task_id', 'task')}", "facts": facts, "calls": calls}


def operation_text(operation: Mapping[str, Any]) -> str:
    """`UPDATE 3 "Lives in Rome" – rejected: unknown id`."""
    head = " ".join(str(operation[k]) for k in ("event", "id") if operation.get(k) is not None)
    text = f' "{operation["text"]}"' if operation.get("text") else ""
    end = "" if operation.get("ok", True) else f" – rejected: {operation.get('reason') or 'no reason given'}"
    return head + text + end


def _facts(info: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], config: str | None) -> list[tuple[str, str]]:
    settings = _yaml(config)
    model = settings.get("model")
    known = {"model": model.get("name") if isinstance(model, Mapping) else model, "seed": settings.get("seed")}
    merged = {**{k: v for k, v in known.items() if v is not None}, **info}
    facts = [(str(k), _fact_text(v)) for k, v in merged.items() if k not in ("started", "seconds")]
    if isinstance(started := merged.get("started"), int | float):
        moment = datetime.datetime.fromtimestamp(started, datetime.UTC)
        facts.append(("started", moment.strftime("%Y-%m-%d %H:%M UTC")))
    if isinstance(seconds := merged.get("seconds"), int | float):
        facts.append(("training time", plots.duration(seconds)))
    if metrics:
        segments = plots.stage_segments(metrics)
        facts.append(("stages", ", ".join(f"{stage} ({end - start} steps)" for stage, start, end in segments)))
        if len(metrics) > 1:
            facts.append(
                ("wall time", plots.duration(metrics[-1]["time"] - metrics[0]["time"]) + ", first to last step")
            )
    return facts


def _headlines(
    metrics: Sequence[Mapping[str, Any]], benchmarks: Mapping[str, Mapping[str, list[tuple[int, Row]]]], metric: str
) -> list[tuple[str, str, str]]:
    out = []
    for name, systems in benchmarks.items():
        final = {s: points[-1][1] for s, points in systems.items()}
        final = {s: row for s, row in final.items() if metric in row.metrics}
        if not final:
            continue
        best = max(final.values(), key=lambda r: r.metrics[metric].mean)
        shown = final.get("trained", best)
        label = f"{name}, {shown.system}"
        remark = f"{metric}, n = {shown.metrics[metric].n}"
        rivals = {s: r for s, r in final.items() if s != shown.system}
        if rivals:
            rival = max(rivals.values(), key=lambda r: r.metrics[metric].mean)
            remark += f"; next best {rival.system} {100 * rival.metrics[metric].mean:.1f}"
            if rival.metrics[metric].mean > shown.metrics[metric].mean:
                remark = remark.replace("next best", "behind")
        out.append((label, format_interval(shown.metrics[metric]), remark))
    for stage, start, end in plots.stage_segments(metrics):
        values = [v for line in metrics[start:end] if isinstance(v := line.get("reward/mean"), int | float)]
        if len(values) >= 4:
            k = max(1, len(values) // 5)
            first, last = sum(values[:k]) / k, sum(values[-k:]) / k
            remark = f"mean of the first and last {k} of {len(values)} steps"
            out.append((f"Reward, {stage}", f"{first:.2f} → {last:.2f}", remark))
    return out


def _other_metrics(metrics: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    out = []
    for name in plots.unplotted(metrics):
        values = [float(v) for line in metrics if isinstance(v := line.get(name), int | float)]
        out.append([name, *[f"{v:.4g}" for v in (values[0], values[-1], min(values), max(values))]])
    return out


def _fact_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_fact_text(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(_fact_text, value))
    return str(value)


def _yaml(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    import yaml

    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise MemR1Error(f"{CONFIG_FILE} of the run: not readable as YAML: {error}; restore or delete it") from error
    return loaded if isinstance(loaded, dict) else {}


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _fenced(text: str, language: str = "") -> str:
    """A code block whose fence is longer than any run of backticks in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
