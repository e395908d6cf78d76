"""Evaluating a run: every system of the table on a benchmark, with predictions and rows kept in the run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from memr1.config import Config, load_config
from memr1.data.types import Dialogue
from memr1.errors import MemR1Error
from memr1.evaluation.systems import TRAINED, UNTRAINED, WARM, System, get_system
from memr1.evaluation.table import Prediction, Row, dump_predictions, rich_table, summarize
from memr1.rollout.pool import RunnerPool
from memr1.training.checkpoints import TrainState
from memr1.training.runlog import RunLog
from memr1.training.worlds import held_out_worlds


def evaluate_run(config: Config, pool: RunnerPool, state: TrainState, log: RunLog, console: Console) -> list[Row]:
    """The table of a finished run on held-out FactWorld worlds, with the systems of `evaluation.systems`."""
    return evaluate(config, pool, state, log, console, "factworld", held_out_worlds(config), config.evaluation.systems)


def evaluate(
    config: Config,
    pool: RunnerPool,
    state: TrainState,
    log: RunLog,
    console: Console,
    benchmark: str,
    dialogues: Sequence[Dialogue],
    systems: Sequence[str],
) -> list[Row]:
    """Evaluate systems one after the other; each row is written to the run folder as soon as it is known.

    Weights come from the run's checkpoints. Systems that need a perfect bank are left out, and said so, where the
    dataset has no oracle operations.
    """
    rows: list[Row] = []
    questions = sum(q.asked_after is None for d in dialogues for q in d.questions)
    console.print(
        f"evaluating {len(systems)} systems on {benchmark}, {len(dialogues)} dialogues, {questions} questions"
    )
    for name in systems:
        system = get_system(name)
        if system.memory == "oracle" and not _has_oracle(dialogues):
            console.print(f"  {name}: left out, {benchmark} has no oracle operations")
            continue
        _load_weights(config.run_dir, pool, state, system)
        results = pool.map("evaluate", dialogues, system=name, benchmark=benchmark)
        predictions: list[Prediction] = [p for part, _ in results for p in part]
        row = summarize(predictions)
        rows.append(row)
        dump_predictions(predictions, config.run_dir / "predictions" / benchmark / f"{name}.jsonl")
        log.evaluation(state.step, "evaluation", row.to_dict() | {"figures": [figures for _, figures in results]})
        em = row.metrics["em_set"]
        console.print(f"  {name}: EM {em.mean:.3f} [{em.low:.3f}, {em.high:.3f}]")
    console.print(rich_table(rows, title=f"{benchmark}, {questions} questions"))
    return rows


def _has_oracle(dialogues: Sequence[Dialogue]) -> bool:
    return all(f.oracle is not None for d in dialogues for _, t in d.turns() for f in t.facts or ())


def weights_folder(run_dir: Path, state: TrainState, role: str, which: str) -> Path | None:
    """Policies of a role as they were after its supervised stage (`warm-started`) or last (`trained`)."""
    ends = list(state.stage_ends.items())
    if which == WARM:
        ends = [(name, step) for name, step in ends if name.endswith(f"-{role}-sft")]
    if which == UNTRAINED or not ends:
        return None
    return run_dir / "checkpoints" / ends[-1][1] / "policies"


def _load_weights(run_dir: Path, pool: RunnerPool, state: TrainState, system: System) -> None:
    for role, which in (("manager", system.manager), ("answerer", system.answerer)):
        if which == UNTRAINED:
            continue  # the system uses the base model, see the harness
        folder = weights_folder(run_dir, state, role, which)
        if folder is None:
            stages = "supervised" if which == WARM else TRAINED
            raise MemR1Error(
                f"{run_dir}: system {system.name} needs the {stages} weights of the {role}, and the run has no "
                "finished stage that made them; leave the system out of evaluation.systems"
            )
        pool.load_policies(str(folder), (role,))


def evaluate_folder(
    run_dir: Path,
    benchmark: str,
    path: Path | None,
    split: str,
    systems: Sequence[str],
    overrides: Sequence[str],
    console: Console,
) -> list[Row]:
    """`memr1 eval`: evaluate a finished run again, on any benchmark, in this process."""
    from memr1.data.load import load_dialogues
    from memr1.rollout.pool import LocalPool
    from memr1.training.checkpoints import committed, load_state

    if not (run_dir / "config.yaml").is_file():
        raise MemR1Error(f"{run_dir}: no run there (no config.yaml); name the folder that `memr1 train` printed")
    config = load_config(run_dir / "config.yaml", [*overrides, f"output={run_dir.parent}", f"name={run_dir.name}"])
    if benchmark == "factworld":
        dialogues = held_out_worlds(config, split)
    else:
        dialogues = load_dialogues(benchmark, str(path) if path else None, split, config.data.factworld)
    checkpoints = committed(run_dir)
    if not checkpoints:
        raise MemR1Error(f"{run_dir}: the run has no committed checkpoint to take weights from; train it first")
    state = load_state(checkpoints[-1])
    pool = LocalPool(config)
    try:
        with RunLog(run_dir) as log:
            return evaluate(
                config, pool, state, log, console, benchmark, dialogues, systems or config.evaluation.systems
            )
    finally:
        pool.close()
