"""`memr1 ablate`: the ablations of Memory-R1 (arXiv 2508.19828, section 5.3) as a plan of runs, and their table.

The arms are the paper's: neither role trained, the manager only, the answerer only, both without Memory Distillation,
both. Each is repeated for every reward, objective and seed asked for, and beside them stand the baselines and the
negative controls asked for. An arm is an ordinary run, with the supervised stages of the configuration and a part of
the others, so everything that works for a run works for it; called again, the command goes on where it stopped. Stages
that arms begin with alike are trained once, and a run that was evaluated is not asked for its weights again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from memr1.config import Config, StageConfig
from memr1.config_checks import validate
from memr1.config_file import load_config
from memr1.errors import MemR1Error
from memr1.evaluation.comparison import compare_seeds
from memr1.evaluation.evaluate import evaluate_folder, measured_on, measures_of, table_name
from memr1.evaluation.judging import unjudged
from memr1.evaluation.predictions import Prediction, load_predictions
from memr1.evaluation.rows import Row, summarize_seeds
from memr1.evaluation.systems import WARM, System, get_system
from memr1.storage import pull
from memr1.training.checkpoints import branch, committed, load_state
from memr1.training.folders import owned
from memr1.training.loop import seed_strides
from memr1.training.report_ablation import terminal_table, write_table
from memr1.training.runlog import METRICS_FILE, read_evaluation
from memr1.training.worlds import evaluation_dialogues

ARMS: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("neither", (), True),
    ("manager only", ("manager",), True),
    ("answerer only", ("answerer",), True),
    ("both, without distillation", ("manager", "answerer"), False),
    ("both", ("manager", "answerer"), True),
)
"""Name, roles that learn from rewards, Memory Distillation; in the paper's order."""
SHUFFLED, WIPED = "both, rewards shuffled", "both, bank wiped"
"""The negative controls: the first must gain nothing on `neither`, the second must fall to `no-memory`."""
NOTHING = "no-memory"
"""The system that answers without a memory."""
Key = tuple[str, str, str]
"""What tells rows of the table apart: arm, reward, objective."""
TABLE = "ablation.json"


@dataclass(frozen=True)
class Study:
    """What is asked for."""

    arms: tuple[str, ...] = ()
    """Which of `ARMS` beside `neither`, by the names of their folders, such as `manager_only`; empty takes all."""
    rewards: tuple[str, ...] = ()
    """Replace those of the stages, each giving the arms anew; empty keeps what the stages say."""
    objectives: tuple[str, ...] = ()
    """Likewise."""
    seeds: tuple[int, ...] = ()
    """Every arm is trained with each; empty takes the configuration's."""
    baselines: tuple[str, ...] = ()
    """Systems of `memr1 eval` that are evaluated in the first run of `both`."""
    controls: bool = False
    """Whether the negative controls are run, with `no-memory` beside them."""
    judge: bool = False
    """Whether the configuration's `judge` gives a last column."""


@dataclass(frozen=True)
class Benchmark:
    """What the table is measured on."""

    name: str
    """Of the table in each run, see `memr1.evaluation.evaluate.table_name`."""
    measured_on: str
    """See `memr1.evaluation.rows.Row`."""


@dataclass(frozen=True)
class Arm:
    """One row of the table, of one seed."""

    name: str
    reward: str
    """Empty where nothing is trained on rewards."""
    objective: str
    config: Config
    """Of the run that the row is taken from; without stages, nothing is trained."""
    system: str
    """Which system of the run is the row."""
    asked: tuple[str, str] = ("", "")
    """Reward and objective of the study that it belongs to; that of the first for what belongs to none."""

    @property
    def key(self) -> Key:
        """What the arms of all seeds have in common."""
        return self.name, self.reward, self.objective


def plan(config: Config, study: Study) -> list[Arm]:
    """The arms of a configuration with stages that learn from rewards, seed by seed, in the order they are trained.

    Raises MemR1Error for a configuration without such stages of both roles, and for settings that do not go together.
    """
    learning = [s for s in config.stages if s.objective != "sft"]
    for role in ("manager", "answerer"):
        if all(s.role != role for s in learning):
            raise MemR1Error(f"stages: no stage trains the {role} on rewards, so there is nothing to leave out")
    if study.judge and config.judge is None:
        raise MemR1Error("--judge needs a model that judges; set judge.url and judge.model")
    for what, listed in asdict(study).items():
        if isinstance(listed, tuple) and len(set(listed)) < len(listed):
            raise MemR1Error(f"{what}: {', '.join(map(str, listed))} names one twice; it would count twice")
    for name in study.baselines:
        _check_baseline(get_system(name), config)
    known = [_slug(name) for name, _, _ in ARMS]
    for name in study.arms:
        if name not in known:
            raise MemR1Error(f"arms: there is no {name!r}; choose from {', '.join(known)}")
    if study.arms and "both" not in study.arms and (study.baselines or study.controls):
        raise MemR1Error("baselines and controls stand beside the arm `both`; add it to the arms")
    if study.arms == ("both_without_distillation",) and all(s.objective != "sft" for s in config.stages):
        raise MemR1Error(
            "arms: neither is evaluated in the run of another arm with distillation; add one, such as both"
        )
    arms = [arm for seed in study.seeds or (config.seed,) for arm in _plan_seed(_seeded(config, seed, study), study)]
    for arm in arms:
        validate(arm.config, f"arm {arm.config.name}")
    return arms


def _seeded(config: Config, seed: int, study: Study) -> Config:
    # what is to be judged is answered after training, once, and not also at its end
    evaluation = replace(config.evaluation, at_end=config.evaluation.at_end and not study.judge)
    name = f"{config.name}/seed_{seed}" if study.seeds else config.name
    return replace(config, seed=seed, name=name, evaluation=evaluation)


def _plan_seed(config: Config, study: Study) -> list[Arm]:
    arms: list[Arm] = []
    for reward in study.rewards or ("",):
        for objective in study.objectives or ("",):
            for name, roles, distillation in ARMS:
                if not roles and arms:
                    continue  # what is not trained has neither a reward nor an objective
                if roles and study.arms and _slug(name) not in study.arms:
                    continue
                kept = [s for s in config.stages if s.objective == "sft" or s.role in roles]
                stages = tuple(_changed(s, reward, objective, distillation) for s in kept)
                arms.append(_arm(config, name, reward, objective, stages, distillation))
    first = (study.rewards[0] if study.rewards else "", study.objectives[0] if study.objectives else "")
    both = next((arm for arm in arms if arm.name == "both"), None)
    if both is None:
        return arms
    baselines = study.baselines
    if study.controls:
        dealt = [replace(s, shuffle_rewards=s.objective != "sft") for s in both.config.stages]
        arms.append(_arm(config, SHUFFLED, *first, tuple(dealt), True))
        arms.append(replace(both, name=WIPED, system="wiped"))
        baselines = (NOTHING, *(name for name in baselines if name != NOTHING))
    return arms + [replace(both, name=name, system=name) for name in baselines]


def _check_baseline(system: System, config: Config) -> None:
    """MemR1Error for a system that no run of this configuration can have."""
    supervised = {s.role for s in config.stages if s.objective == "sft"}
    for role, which in (("manager", system.manager), ("answerer", system.answerer)):
        if which == WARM and role not in supervised:
            raise MemR1Error(f"baselines: {system.name} needs a supervised stage of the {role}, and there is none")
    if system.memory == "oracle" and config.agents.extractor != "gold":
        raise MemR1Error(
            f"baselines: {system.name} needs agents.extractor=gold: others' facts have no oracle operations"
        )


def _changed(stage: StageConfig, reward: str, objective: str, distillation: bool) -> StageConfig:
    if stage.objective == "sft":
        return stage
    paid = stage.evidence_reward if distillation else 0.0  # nothing is selected that could be paid
    return replace(stage, reward=reward or stage.reward, objective=objective or stage.objective, evidence_reward=paid)


def _arm(
    config: Config, name: str, reward: str, objective: str, stages: tuple[StageConfig, ...], distillation: bool
) -> Arm:
    words = [name, *((reward, objective) if stages else ())]
    if name == "neither":
        words = words[:1]
    paid = [s for s in stages if s.objective != "sft"]
    system = _system(stages)
    run = replace(
        config,
        name=f"{config.name}/{'-'.join(_slug(w) for w in words if w)}",
        stages=stages,
        agents=replace(config.agents, distillation=distillation),
        data=replace(config.data, cache=str(config.cache_dir)),  # facts and tasks are made once for all arms
        evaluation=replace(config.evaluation, systems=(system,)),
    )
    rewards, objectives = (", ".join(dict.fromkeys(getattr(s, what) for s in paid)) for what in ("reward", "objective"))
    return Arm(name, rewards, objectives, run, system, (reward, objective))


def _slug(words: str) -> str:
    return re.sub("[^A-Za-z0-9_.]+", "_", words)


def _system(stages: Sequence[StageConfig]) -> str:
    """The system whose roles have the weights that these stages leave behind."""
    trained = {s.role for s in stages}
    if trained == {"manager", "answerer"}:
        return "trained"
    return f"{trained.pop()}-only" if trained else "untrained"


def ablate(config: Config, study: Study, split: str, console: Console | None = None) -> list[dict[str, Any]]:
    """Train and evaluate all arms that are not there yet, one after the other; prints and writes the table.

    Rows that earlier calls with other arms have left in the table stay in it. Stopped by Ctrl-C, it writes none and
    returns nothing.
    split: which conversations arms are evaluated on where `data.kind` is a file; generated worlds have their own.
    """
    from memr1.training.run import train

    console = console or Console()
    arms = plan(config, study)
    console.print(plan_table(arms))
    kind, path = config.data.kind, config.data.path
    split = "test" if kind == "factworld" else split
    benchmark = Benchmark(
        table_name(kind, split, judge=config.judge if study.judge else None),
        measured_on(config, evaluation_dialogues(config, kind, path, split)),
    )
    wanted: dict[Path, list[str]] = {}
    for arm in arms:
        wanted.setdefault(_home(arm, arms).run_dir, []).append(arm.system)
    runs = list({arm.config.run_dir: arm.config for arm in arms if arm.config.stages}.values())
    for n, run in enumerate(runs):
        if _is_evaluated(run, wanted[run.run_dir], benchmark):
            continue
        _branch_off(run, runs[:n])
        train(run, resume="auto", console=console)
        done = committed(run.run_dir)
        if not done or load_state(done[-1]).stage < len(run.stages):
            console.print(f"{run.name} was stopped before its end; the same command goes on with it")
            return []
    for run in runs:
        if lacking := _lacking(wanted[run.run_dir], run, benchmark):
            evaluate_folder(run.run_dir, kind, path, split, lacking, (), console, judged=study.judge)
        if left := _lacking(lacking, run, benchmark):
            raise MemR1Error(f"{run.run_dir}: {', '.join(left)} left no row on {benchmark.name}; see its report")
    rows = _rows(arms, benchmark, measures_of(kind, study.judge))
    folder = Path(config.output) / config.name
    rows += _others(folder / TABLE, rows)
    text = json.dumps(rows, indent=2)
    (folder / TABLE).write_text(text + "\n")
    rows = json.loads(text)  # lists for tuples, so that rows of this call and of earlier ones are alike
    console.print(terminal_table(rows))
    page = write_table(rows, config, folder)
    console.print(f"written to {folder / TABLE} and {page}", soft_wrap=True, markup=False)
    return rows


def _branch_off(run: Config, before: Sequence[Config]) -> None:
    """Begin a run that was not begun yet where the earlier one that has most stages in common with it had done them."""

    def shared(other: Config) -> int:
        if replace(other, name=run.name, stages=run.stages, evaluation=run.evaluation) != run:
            return 0
        # seeds of samples follow the sizes of all stages: with others, only what samples nothing is the same
        same_seeds = seed_strides(other) == seed_strides(run)
        pairs = list(zip(other.stages, run.stages, strict=False))
        parted = (n for n, (a, b) in enumerate(pairs) if a != b or not (same_seeds or a.objective == "sft"))
        return next(parted, len(pairs))

    donor = max(before, key=shared, default=None)
    if donor is None or not shared(donor):
        return
    with owned(run.run_dir):
        pull(run.run_dir)
        if not (run.run_dir / METRICS_FILE).exists():
            branch(donor.run_dir, run.run_dir, shared(donor))


def _home(arm: Arm, arms: Sequence[Arm]) -> Config:
    """The run in whose folder an arm is evaluated: its own; for the base model any that shows it the same prompts."""
    if arm.config.stages:
        return arm.config
    fits = (a.config for a in arms if a.config.stages and a.config.seed == arm.config.seed)
    return next(config for config in fits if config.agents == arm.config.agents)


def _evaluated(run: Config, benchmark: Benchmark) -> dict[str, Row]:
    """The newest row of each system of the finished run, where it was measured on what is asked for now."""
    last = sum(stage.steps for stage in run.stages)
    lines = (r for r in read_evaluation(run.run_dir) if r["benchmark"] == benchmark.name and r["step"] == last)
    newest = {line["system"]: Row.from_dict(line) for line in lines}
    return {system: row for system, row in newest.items() if row.measured_on == benchmark.measured_on}


def _lacking(systems: Sequence[str], run: Config, benchmark: Benchmark) -> tuple[str, ...]:
    """Which of the systems have no row of the finished run yet."""
    found = _evaluated(run, benchmark)
    return tuple(dict.fromkeys(s for s in systems if s not in found))


def _is_evaluated(run: Config, systems: Sequence[str], benchmark: Benchmark) -> bool:
    """Whether all that the table takes from a run is there, so that its weights may be gone."""
    from memr1.training.run import check_same_run

    with owned(run.run_dir):
        pull(run.run_dir)
        written = run.run_dir / "config.yaml"
        if not written.is_file() or _lacking(systems, run, benchmark):
            return False
        check_same_run(load_config(written), run, written)
        return True


def _rows(arms: Sequence[Arm], benchmark: Benchmark, measures: Sequence[str]) -> list[dict[str, Any]]:
    """The table: of each arm a `Row` over all seeds, what it gains, and which run it is of."""
    answers: dict[Key, list[list[Prediction]]] = {}
    found: dict[Key, Arm] = {}
    for arm in arms:
        file = _home(arm, arms).run_dir / "predictions" / benchmark.name / f"{arm.system}.jsonl"
        answers.setdefault(arm.key, []).append(load_predictions(file))
        found.setdefault(arm.key, arm)
    seeds = list(dict.fromkeys(arm.config.seed for arm in arms))
    rows = []
    for key, arm in found.items():
        home, own = _home(arm, arms), answers[key]
        judge = _evaluated(home, benchmark)[arm.system].judge
        row = replace(
            summarize_seeds(own, measures),
            judge=judge and replace(judge, errors=sum(map(unjudged, own))),
            measured_on=benchmark.measured_on,
        )
        about = {"arm": arm.name, "reward": arm.reward, "objective": arm.objective, "run": home.name, "seeds": seeds}
        rows.append(about | _gains(arm, arms, answers) | row.to_dict())
    return rows


def _gains(
    arm: Arm, arms: Sequence[Arm], answers: dict[Key, list[list[Prediction]]]
) -> dict[str, dict[str, Any] | None]:
    """Differences of an arm to others; runs of one seed began alike, so they are taken there."""
    both = next((a.key for a in arms if a.name == "both" and (a.asked == arm.asked or not arm.reward)), None)
    nothing = next((a.key for a in arms if a.name == NOTHING and arm.name == WIPED), None)
    pairs = {
        "over_neither": (arm.key, arms[0].key),
        "both_over_it": (both, arm.key),
        "over_no_memory": (arm.key, nothing),
    }
    return {
        name: None if a is None or b is None or a == b
        else asdict(compare_seeds(answers[a], answers[b], paired_seeds=True).paired)
        for name, (a, b) in pairs.items()
    }  # fmt: skip


def _others(table: Path, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the table as it was that are not made now, and were measured on the same with the same seeds."""
    made = {(r["arm"], r["reward"], r["objective"]) for r in rows}
    before = json.loads(table.read_text()) if table.is_file() else []
    alike = [r for r in before if all(r.get(k) == rows[0][k] for k in ("benchmark", "measured_on", "seeds"))]
    return [r for r in alike if (r["arm"], r["reward"], r["objective"]) not in made]


def plan_table(arms: Sequence[Arm]) -> Table:
    """The arms before they are run."""
    table = Table("arm", "reward", "objective", "stages", "run folder", title="plan")
    seen: set[Path] = set()
    for arm in arms:
        stages = ", ".join(f"{s.name} x{s.steps}" for s in arm.config.stages) or "none"
        if arm.config.run_dir in seen:
            stages = "no further"
        seen.add(arm.config.run_dir)
        table.add_row(arm.name, arm.reward, arm.objective, stages, str(_home(arm, arms).run_dir))
    return table
