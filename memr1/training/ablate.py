"""`memr1 ablate`: the ablations of Memory-R1 (arXiv 2508.19828, section 5.3) as a plan of runs, and their table.

The arms are the paper's: neither role trained, the manager only, the answerer only, both without Memory Distillation,
both. Each is repeated for every reward and objective asked for. An arm is an ordinary run in `<output>/<name>/<arm>`,
with the supervised stages of the configuration and a part of the others, so everything that works for a run works for
it; called again, the command goes on where it stopped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from memr1.config import Config, StageConfig
from memr1.config_checks import validate
from memr1.errors import MemR1Error
from memr1.evaluation.statistics import Interval
from memr1.evaluation.table import format_interval
from memr1.training.checkpoints import committed, load_state
from memr1.training.runlog import read_evaluation

ARMS: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("neither", (), True),
    ("manager only", ("manager",), True),
    ("answerer only", ("answerer",), True),
    ("both, without distillation", ("manager", "answerer"), False),
    ("both", ("manager", "answerer"), True),
)
"""Name, roles that learn from rewards, Memory Distillation; in the paper's order."""
COLUMNS = ("em_set", "f1", "bleu1")
TABLE = "ablation.json"


@dataclass(frozen=True)
class Arm:
    """One row of the table."""

    name: str
    reward: str
    """Empty where nothing is trained on rewards."""
    objective: str
    config: Config
    """Of the run that the row is taken from; without stages, nothing is trained."""
    system: str
    """Which system of the run is the row."""


def plan(config: Config, rewards: Sequence[str] = (), objectives: Sequence[str] = ()) -> list[Arm]:
    """The arms of a configuration with stages that learn from rewards.

    rewards, objectives: replace those of the stages, each pair giving the arms anew; empty keeps what the stages say.
    Raises MemR1Error for a configuration without such stages of both roles, and for settings that do not go together.
    """
    learning = [s for s in config.stages if s.objective != "sft"]
    for role in ("manager", "answerer"):
        if all(s.role != role for s in learning):
            raise MemR1Error(f"stages: no stage trains the {role} on rewards, so there is nothing to leave out")
    arms: list[Arm] = []
    for reward in rewards or ("",):
        for objective in objectives or ("",):
            for name, roles, distillation in ARMS:
                if not roles and arms:
                    continue  # what is not trained has neither a reward nor an objective
                kept = [s for s in config.stages if s.objective == "sft" or s.role in roles]
                stages = tuple(_changed(s, reward, objective, distillation) for s in kept)
                paid = [s for s in stages if s.objective != "sft"]
                arm = Arm(
                    name=name,
                    reward=", ".join(dict.fromkeys(s.reward for s in paid)),
                    objective=", ".join(dict.fromkeys(s.objective for s in paid)),
                    config=_run_config(config, name, reward, objective, stages, distillation),
                    system=_system(stages),
                )
                validate(arm.config, f"arm {arm.config.name}")
                arms.append(arm)
    return arms


def _changed(stage: StageConfig, reward: str, objective: str, distillation: bool) -> StageConfig:
    if stage.objective == "sft":
        return stage
    paid = stage.evidence_reward if distillation else 0.0  # nothing is selected that could be paid
    return replace(stage, reward=reward or stage.reward, objective=objective or stage.objective, evidence_reward=paid)


def _run_config(
    config: Config, arm: str, reward: str, objective: str, stages: tuple[StageConfig, ...], distillation: bool
) -> Config:
    words = [arm, *((reward, objective) if stages else ())]
    if arm == "neither":
        words = words[:1]
    return replace(
        config,
        name=f"{config.name}/{'-'.join(re.sub('[^A-Za-z0-9_.]+', '_', w) for w in words if w)}",
        stages=stages,
        agents=replace(config.agents, distillation=distillation),
        data=replace(config.data, cache=str(config.cache_dir)),  # facts and tasks are made once for all arms
        evaluation=replace(config.evaluation, systems=(_system(stages),)),
    )


def _system(stages: Sequence[StageConfig]) -> str:
    """The system whose roles have the weights that these stages leave behind."""
    trained = {s.role for s in stages}
    if trained == {"manager", "answerer"}:
        return "trained"
    return f"{trained.pop()}-only" if trained else "untrained"


def ablate(
    config: Config, rewards: Sequence[str], objectives: Sequence[str], split: str, console: Console | None = None
) -> list[dict[str, Any]]:
    """Train and evaluate all arms that are not there yet, one after the other; prints and writes the table.

    split: which conversations arms are evaluated on where `data.kind` is a file; generated worlds have their own.
    """
    from memr1.training.run import train

    console = console or Console()
    arms = plan(config, rewards, objectives)
    console.print(plan_table(arms))
    for arm in arms:
        if arm.config.stages:
            train(arm.config, resume="auto", console=console)
    rows = []
    for arm in arms:
        home = arm if arm.config.stages else arms[-1]  # the base model can be evaluated in the folder of any run
        rows.append(_row(arm, home.config.name, _measured(arm, home.config.run_dir, config, split, console)))
    folder = Path(config.output) / config.name
    (folder / TABLE).write_text(json.dumps(rows, indent=2) + "\n")
    console.print(_result_table(rows))
    console.print(f"written to {folder / TABLE}", soft_wrap=True, markup=False)
    return rows


def _measured(arm: Arm, run_dir: Path, config: Config, split: str, console: Console) -> dict[str, Any]:
    """The row of the arm's system, from the run's folder; evaluated first where it is not there."""
    kind = config.data.kind
    label = kind if split == "test" or kind == "factworld" else f"{kind}-{split}"

    def found() -> dict[str, Any] | None:
        step = load_state(committed(run_dir)[-1]).step
        rows = [
            r for r in read_evaluation(run_dir)
            if r["system"] == arm.system and r["benchmark"] == label and r["step"] == step
        ]  # fmt: skip
        return rows[-1] if rows else None

    row = found()
    if row is None:
        from memr1.evaluation.evaluate import evaluate_folder

        path = Path(config.data.path) if config.data.path else None
        part = "test" if kind == "factworld" else split
        evaluate_folder(run_dir, kind, path, part, (arm.system,), (), console)
        row = found()
    if row is None:
        raise MemR1Error(f"{run_dir}: {arm.system} was evaluated on {label} and left no row; see its report")
    return row


def _row(arm: Arm, run: str, measured: dict[str, Any]) -> dict[str, Any]:
    metrics = {name: measured["metrics"][name] for name in COLUMNS if name in measured["metrics"]}
    return {
        "arm": arm.name, "reward": arm.reward, "objective": arm.objective, "run": run,
        "system": arm.system, "questions": measured["n"], "metrics": metrics,
    }  # fmt: skip


def plan_table(arms: Sequence[Arm]) -> Table:
    """The arms before they are run."""
    table = Table("arm", "reward", "objective", "stages", "run folder", title="plan")
    for arm in arms:
        stages = ", ".join(f"{s.name} x{s.steps}" for s in arm.config.stages) or "none"
        where = str(arm.config.run_dir) if arm.config.stages else "(that of the last arm)"
        table.add_row(arm.name, arm.reward, arm.objective, stages, where)
    return table


def _result_table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table("trained", "reward", "objective", *COLUMNS, "questions", title="percent, with 95 % intervals")
    for row in rows:
        found = [row["metrics"].get(name) for name in COLUMNS]
        cells = [format_interval(None if values is None else Interval(**values)) for values in found]
        table.add_row(row["arm"], row["reward"], row["objective"], *cells, str(row["questions"]))
    return table
