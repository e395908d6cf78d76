"""Evaluating a run: every system of the table on a benchmark, with predictions and rows kept in the run folder."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from memr1.config import Config
from memr1.config_file import load_config
from memr1.data.load import get_source
from memr1.data.types import Dialogue
from memr1.errors import MemR1Error
from memr1.evaluation.judging import judge_predictions, unjudged
from memr1.evaluation.predictions import Prediction, dump_predictions
from memr1.evaluation.rows import Row, summarize
from memr1.evaluation.scores import TEXT_MEASURES
from memr1.evaluation.statistics import Interval
from memr1.evaluation.systems import UNTRAINED, WARM, System, get_system
from memr1.evaluation.table import format_interval, notes, rich_table
from memr1.rollout.endpoint import EndpointConfig
from memr1.rollout.judge import PROMPT_ID, LLMJudge
from memr1.rollout.pool import RunnerPool
from memr1.training.checkpoints import TrainState
from memr1.training.runlog import RunLog, read_evaluation, read_info
from memr1.training.worlds import evaluation_dialogues, held_out_worlds

EVALUATED = "evaluated_with"
"""Fact of `run.json`: the name of the table of the run, and the evaluation settings under which it was finished."""

SAME_ROWS = (
    "backend",
    "data.cache",
    "evaluation.systems",
    "judge",
    "model.device",
    "model.threads",
    "rollout.engine",
    "rollout.max_tokens_per_batch",
)
"""Fields, or groups of fields, that `memr1 eval --set` may change without making rows that another table must hold."""


def evaluate_run(
    config: Config,
    pool: RunnerPool,
    state: TrainState,
    log: RunLog,
    console: Console,
    stop: Callable[[], bool] = lambda: False,
) -> list[Row]:
    """The table of a finished run with the systems of `evaluation.systems`: on the validation split of its data where
    they are a file that has one, else on held-out FactWorld worlds."""
    kind, name = config.data.kind, "factworld"
    if kind == "factworld":
        dialogues = held_out_worlds(config)
    else:
        try:
            dialogues = evaluation_dialogues(config, kind, config.data.path, "validation")
            name = table_name(kind, "validation", False, False, ())
        except MemR1Error as error:
            console.print(f"no validation data: {error}", soft_wrap=True, markup=False)
            kind, dialogues = "factworld", held_out_worlds(config)
    systems, measures = config.evaluation.systems, get_source(kind).measures
    rows = evaluate(config, pool, state, log, console, name, dialogues, systems, stop, measures)
    if not stop():
        log.info({EVALUATED: _settings(config, name)})
    return rows


def is_evaluated(config: Config, state: TrainState) -> bool:
    """Whether the run folder holds the whole table that `evaluate_run` would make now."""
    made = read_info(config.run_dir).get(EVALUATED) or {}
    name = made.get("benchmark", "")
    rows = [r for r in read_evaluation(config.run_dir) if r["step"] == state.step and r["benchmark"] == name]
    return bool(rows) and made == _settings(config, name)


def _settings(config: Config, name: str) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(config.evaluation) | {"benchmark": name}))  # as `run.json` gives it back


def evaluate(
    config: Config,
    pool: RunnerPool,
    state: TrainState,
    log: RunLog,
    console: Console,
    benchmark: str,
    dialogues: Sequence[Dialogue],
    systems: Sequence[str],
    stop: Callable[[], bool] = lambda: False,
    measures: Sequence[str] = (),
    judge: LLMJudge | None = None,
) -> list[Row]:
    """Evaluate systems one after the other; each row is written to the run folder as soon as it is known.

    Weights come from the run's checkpoints. Systems that the dataset or the run lacks something for are left out, and
    said so; MemR1Error when that leaves none, or no question is there. Where an audit disputes labels, a second row
    leaves those questions out.

    benchmark: the name under which rows and predictions are kept.
    stop: asked before each system; True ends the evaluation there.
    measures: what tables show beside the text match, see `memr1.evaluation.scores`.
    judge: gives the verdicts of the measure `judge`.
    """
    rows: list[Row] = []
    lacks: list[str] = []
    questions = sum(q.asked_after is None for d in dialogues for q in d.questions)
    if not questions:
        raise MemR1Error(
            f"{benchmark}: nothing to evaluate, since no dialogue has a question that is asked at its end; add some to "
            "the data (in JSON Lines: questions without asked_after)"
        )
    digest = measured_on(config, dialogues)
    console.print(
        f"evaluating {len(systems)} systems on {benchmark}, {len(dialogues)} dialogues, {questions} questions"
    )
    for name in systems:
        system = get_system(name)
        if stop():
            console.print("stopped; --resume auto evaluates all systems again")
            return rows
        lack = _lack(config, state, system, dialogues)
        if lack is not None:
            console.print(f"  {name}: left out, {lack}")
            lacks.append(f"{name}: {lack}")
            continue
        _load_weights(config.run_dir, pool, state, system)
        results = pool.map("evaluate", dialogues, system=name, benchmark=benchmark)
        predictions: list[Prediction] = [p for part, _ in results for p in part]
        judged = None
        if judge is not None:
            # answers took longer than verdicts will: they are there, whatever becomes of the judge
            dump_predictions(predictions, config.run_dir / "predictions" / benchmark / f"{name}.jsonl")
            predictions, judged = judge_predictions(predictions, judge)
        footprints = [f for _, part in results for f in part]
        sure = [replace(p, benchmark=f"{benchmark}-undisputed") for p in predictions if not p.disputed]
        whole: Row | None = None
        for part in [predictions] if len(sure) == len(predictions) else [predictions, sure]:
            row = summarize(part, footprints, measures=measures)
            whole = whole or row
            # a memory was built for all questions, and is no dearer for those that are left
            judged_part = judged and replace(judged, errors=unjudged(part))
            row = replace(row, judge=judged_part, memory=whole.memory, measured_on=digest)
            rows.append(row)
            dump_predictions(part, config.run_dir / "predictions" / row.benchmark / f"{name}.jsonl")
            log.evaluation(state.step, "evaluation", row.to_dict())
        console.print(f"  {name}: {', '.join(f'{m} {format_interval(v)}' for m, v in _shown(rows[-1]))}")
    if not rows:
        raise MemR1Error(f"{config.run_dir}: no system can be evaluated on {benchmark}; {'; '.join(lacks)}")
    console.print(rich_table(rows, title=f"{benchmark}, {questions} questions"))
    for note in notes(rows):
        console.print(note, soft_wrap=True, markup=False)
    return rows


def _shown(row: Row) -> list[tuple[str, Interval]]:
    """What a line of progress says of a row: exact match and the dataset's own measures."""
    return [(m, v) for m, v in row.metrics.items() if m == "em_set" or m not in TEXT_MEASURES]


def _lack(config: Config, state: TrainState, system: System, dialogues: Sequence[Dialogue]) -> str | None:
    """What the dataset or the run lacks for a system; None when nothing."""
    extractor = config.agents.extractor
    if system.memory == "oracle" and not (extractor == "gold" and _has_oracle(dialogues)):
        return f"there are no oracle operations for the facts of agents.extractor={extractor}"
    for role, which in _weights(system):
        if which != UNTRAINED and weights_folder(config.run_dir, state, role, which) is None:
            return f"the run has no finished {'supervised ' if which == WARM else ''}stage of the {role}"
    return None


def _has_oracle(dialogues: Sequence[Dialogue]) -> bool:
    turns = [t for d in dialogues for _, t in d.turns()]
    return all(t.facts is not None and all(f.oracle is not None for f in t.facts) for t in turns)


def _weights(system: System) -> tuple[tuple[str, str], ...]:
    return ("manager", system.manager), ("answerer", system.answerer)


def weights_folder(run_dir: Path, state: TrainState, role: str, which: str) -> Path | None:
    """Policies of a role as they were after its supervised stage (`warm-started`) or last (`trained`)."""
    ends = list(state.stage_ends.items())
    if which == WARM:
        ends = [(name, step) for name, step in ends if name.endswith(f"-{role}-sft")]
    if which == UNTRAINED or not ends:
        return None
    return run_dir / "checkpoints" / ends[-1][1] / "policies"


def _load_weights(run_dir: Path, pool: RunnerPool, state: TrainState, system: System) -> None:
    for role, which in _weights(system):
        folder = weights_folder(run_dir, state, role, which)
        if folder is not None:  # otherwise the system uses the base model, see the harness
            pool.load_policies(str(folder), (role,))


NOT_IN_A_ROW = ("num_worlds", "systems", "at_end")
"""Settings of the evaluation that change no row: they choose the dialogues, which rows there are, and when."""


def measured_on(config: Config, dialogues: Sequence[Dialogue]) -> str:
    """`Row.measured_on` of what is evaluated now."""
    settings = {name: value for name, value in asdict(config.evaluation).items() if name not in NOT_IN_A_ROW}
    return hashlib.sha256(repr((settings, list(dialogues))).encode()).hexdigest()[:16]


def measures_of(benchmark: str, judged: bool) -> tuple[str, ...]:
    """What tables on a benchmark show beside the text match: the dataset's own measures, and last the judge."""
    return (*get_source(benchmark).measures, *(["judge"] if judged else []))


def table_name(
    benchmark: str,
    split: str,
    adversarial: bool = False,
    corrected: bool = False,
    overrides: Sequence[str] = (),
    judge: EndpointConfig | None = None,
) -> str:
    """The name under which rows are kept: those over other questions or labels, under other settings than the run's
    (`factworld-memory.answerer_top_k=20`), or judged by another model or prompt, must never meet in one table."""
    options = {split: split != "test", "adversarial": adversarial, "corrected": corrected}
    chosen = [name for name, is_chosen in options.items() if is_chosen]
    changed = sorted(o for o in overrides if not any(f"{o.partition('=')[0]}.".startswith(f"{s}.") for s in SAME_ROWS))
    judged = [f"judge={judge.model}.{PROMPT_ID}"] if judge is not None else []
    return "-".join([benchmark, *chosen, *(re.sub(r"[^A-Za-z0-9_.=]+", "_", o) for o in (*changed, *judged))])


def evaluate_folder(
    run_dir: Path,
    benchmark: str,
    path: str | Path | None,
    split: str,
    systems: Sequence[str],
    overrides: Sequence[str],
    console: Console,
    adversarial: bool = False,
    audit: Path | None = None,
    judged: bool = False,
) -> list[Row]:
    """`memr1 eval`: evaluate a finished run again, on any benchmark, in this process.

    judged: with the judge of the config's `judge`, in a table that is named after it.
    """
    from memr1.rollout.pool import LocalPool
    from memr1.training.checkpoints import committed, load_state

    if not (run_dir / "config.yaml").is_file():
        raise MemR1Error(f"{run_dir}: no run there (no config.yaml); name the folder that `memr1 train` printed")
    config = load_config(run_dir / "config.yaml", [*overrides, f"output={run_dir.parent}", f"name={run_dir.name}"])
    systems = systems or config.evaluation.systems
    for name in systems:
        get_system(name)  # before models are loaded
    dialogues = evaluation_dialogues(
        config,
        benchmark,
        str(path) if path else None,
        split,
        adversarial=adversarial,
        audit=str(audit) if audit else None,
    )
    if judged and config.judge is None:
        raise MemR1Error("--judge needs a model that judges; add --set judge.url=... --set judge.model=...")
    judging = config.judge if judged else None
    checkpoints = committed(run_dir)
    if not checkpoints:
        raise MemR1Error(f"{run_dir}: the run has no committed checkpoint to take weights from; train it first")
    state = load_state(checkpoints[-1])
    pool = LocalPool(config)
    judge = LLMJudge(judging) if judging is not None else None
    try:
        with RunLog(run_dir) as log:
            label = table_name(benchmark, split, adversarial, audit is not None, overrides, judging)
            measures = measures_of(benchmark, judged)
            return evaluate(
                config, pool, state, log, console, label, dialogues, systems, measures=measures, judge=judge
            )
    finally:
        pool.close()
        if judge is not None:
            judge.close()
