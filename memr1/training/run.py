"""`memr1 train`: a run folder from its configuration to its report."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from memr1.config import Config
from memr1.config_file import load_config, to_yaml
from memr1.errors import MemR1Error
from memr1.storage import exists, pull, push
from memr1.training.checkpoints import TrainState, committed, discard, load_state
from memr1.training.folders import make_folder, owned
from memr1.training.loop import Trainer
from memr1.training.progress import Progress
from memr1.training.runlog import RunLog, machine_info, read_evaluation, read_info
from memr1.training.watchdog import watched
from memr1.training.worlds import training_dialogues

FREE_TO_CHANGE = (
    "name",
    "output",
    "evaluation",
    "checkpoint",
    "tensorboard",
    "backend",
    "placement",
    "stuck_after_s",
    "learner.num_learners",
    "rollout.num_runners",
    "rollout.parts_per_runner",
    "rollout.max_tokens_per_batch",
    "rollout.weight_transfer",
    "model.threads",
    "data.cache",
)
"""Fields, or groups of fields, that may differ when a run is resumed; the others would make it another run."""

_PLAIN: dict[str, Any] = {"soft_wrap": True, "markup": False}
"""For lines with paths: left whole, so that they can be copied."""


class Session(Protocol):
    """A training session on one backend."""

    trainer: Trainer

    def step(self) -> dict[str, float]:
        """One optimizer step; its metrics."""

    def close(self) -> None:
        """Release runners and learners."""


def train(config: Config, *, resume: str = "never", console: Console | None = None) -> Path:
    """Train all stages, evaluate, write the report; returns the run folder.

    resume: `never` (an existing run is an error), `auto` (continue the newest committed checkpoint if there is one),
    or the path of a checkpoint. Ctrl-C stops after the current step, with a checkpoint and a report; a second Ctrl-C
    stops at once. Raises MemR1Error for configurations and folders that cannot be used.
    """
    console = console or Console()
    if not config.stages:
        raise MemR1Error("stages: the configuration has none; see configs/train_local.yaml for an example")
    learners = config.learner.num_learners
    if config.backend == "local" and learners > 1:
        raise MemR1Error(f"learner.num_learners: is {learners}, and backend=local has one; set it to 1, or backend=ray")
    if config.data.kind != "factworld":
        training_dialogues(config)  # a file that cannot be read is refused before models are loaded
    if resume not in ("never", "auto") and Path(resume).resolve().parent != (config.run_dir / "checkpoints").resolve():
        raise MemR1Error(
            f"{resume}: a checkpoint of another run than {config.run_dir}; set `output` and `name` to its own"
        )
    with owned(config.run_dir):
        pull(config.run_dir)
        try:
            return _train(config, resume, console)
        finally:
            push(config.run_dir)


def _train(config: Config, resume: str, console: Console) -> Path:
    from memr1.training.report import write_report

    run_dir = config.run_dir
    checkpoint = prepare_folder(config, resume)
    if checkpoint is not None and nothing_left(config, load_state(checkpoint)):
        console.print(
            f"{run_dir}: the run is finished and evaluated already; report: {write_report(run_dir)}", **_PLAIN
        )
        return run_dir
    with RunLog(run_dir, tensorboard=config.tensorboard) as log, _stop_after_step() as stopping:
        if "started" not in read_info(run_dir):
            log.info({"model": config.model.name, "seed": config.seed, "backend": config.backend})
            log.info({"started": time.time()})
        log.info({"machine": machine_info()})
        console.print(f"run folder: {run_dir}" + (f", resumed from {checkpoint.name}" if checkpoint else ""), **_PLAIN)
        session = make_session(config, log, checkpoint)
        try:
            _train_stages(config, session, stopping, console)
            trainer = session.trainer
            if trainer.done and config.evaluation.at_end and not stopping:
                from memr1.evaluation.evaluate import evaluate_run

                evaluate_run(config, trainer.pool, trainer.state, log, console, stop=lambda: bool(stopping))
        finally:
            try:
                session.close()
            finally:
                log.info({"seconds": session.trainer.state.seconds})
                console.print(f"report: {write_report(run_dir)}", **_PLAIN)
    return run_dir


def nothing_left(config: Config, state: TrainState) -> bool:
    """Whether all stages are through, and evaluated where that is asked for."""
    from memr1.evaluation.evaluate import is_evaluated

    return state.stage >= len(config.stages) and (not config.evaluation.at_end or is_evaluated(config, state))


def make_session(config: Config, log: RunLog, checkpoint: Path | None) -> Session:
    """Start runners on the configured backend."""
    if config.backend == "local":
        from memr1.training.local import LocalSession

        return LocalSession(config, log, checkpoint)
    from memr1.rllib.session import RaySession

    return RaySession(config, log, checkpoint)


def _train_stages(config: Config, session: Session, stopping: list[bool], console: Console) -> None:
    trainer = session.trainer
    with Progress([(s.name, s.steps) for s in config.stages], console=console) as progress:
        while not trainer.done and not stopping:
            stage = trainer.stage.name
            with watched(config.stuck_after_s, config.run_dir, f"step {trainer.state.step + 1} ({stage})"):
                metrics = session.step()
            at_end = trainer.state.stage_step == 0
            progress.update(stage, _steps_of(config, trainer) if at_end else trainer.state.stage_step, metrics)
    if stopping and not trainer.done:
        path = trainer.checkpoint
        if trainer.state.step > 0 and (path is None or load_state(path).step < trainer.state.step):
            path = trainer.save()
        where = f"checkpoint: {path}. Go on with --resume auto" if path else "no step was finished"
        console.print(f"stopped; {where}", **_PLAIN)


def _steps_of(config: Config, trainer: Trainer) -> int:
    return config.stages[trainer.state.stage - 1].steps


def prepare_folder(config: Config, resume: str) -> Path | None:
    """Check or make the run folder; the checkpoint to start from, or None. `resume` as in `train`.

    Raises MemR1Error where the folder cannot be used, and where that would discard an evaluation.
    """
    run_dir = config.run_dir
    existing = committed(run_dir)
    written = run_dir / "config.yaml"
    if resume == "never":
        if (run_dir / "metrics.jsonl").exists():
            raise MemR1Error(f"{run_dir}: a run is there already; --resume auto goes on with it, or set another `name`")
        checkpoint = None
    elif resume == "auto":
        checkpoint = existing[-1] if existing else None
        if checkpoint is None and (run_dir / "metrics.jsonl").exists():
            if written.exists():
                check_same_run(load_config(written), config, written)
            if read_evaluation(run_dir):
                raise MemR1Error(
                    f"{run_dir}: the run was evaluated and its checkpoints are gone, so what it lacks cannot be made, "
                    "and training anew would discard its results; restore the checkpoints, or remove the folder"
                )
            _discard(run_dir)  # it died before its first checkpoint: nothing can be continued
    else:
        checkpoint = Path(resume)
        if not checkpoint.is_dir():
            raise MemR1Error(f"{resume}: no such checkpoint; the committed ones are {[str(p) for p in existing]}")
        load_state(checkpoint)
    if checkpoint is not None and written.exists():
        old = load_config(written)
        check_same_run(old, config, written)
        _check_world_size(old, config, checkpoint)
    for path in existing:
        if checkpoint is not None and path.name > checkpoint.name:  # what comes now replaces them, in the log as well
            discard(path)
    make_folder(run_dir)
    try:
        written.write_text(to_yaml(config))
    except OSError as error:
        raise MemR1Error(f"{run_dir}: the run folder cannot be written: {error}; set `output` elsewhere") from error
    return checkpoint


def _discard(run_dir: Path) -> None:
    for name in ("metrics.jsonl", "evaluation.jsonl", "run.json"):
        (run_dir / name).unlink(missing_ok=True)
    for name in ("rollouts", "checkpoints"):
        shutil.rmtree(run_dir / name, ignore_errors=True)


def check_same_run(old: Config, new: Config, path: Path) -> None:
    """MemR1Error naming the fields where a run's configuration, read from `path`, is not that of the run asked for."""

    def flat(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            for k, v in value.items():
                yield from flat(v, f"{prefix}{k}.")
        elif isinstance(value, str) and Path(value).exists():
            yield prefix.rstrip("."), str(Path(value).resolve())  # a run may have stored the absolute path
        else:
            yield prefix.rstrip("."), value

    paid_by_judge = any("judge" in stage.reward for stage in new.stages)
    may_change = FREE_TO_CHANGE if paid_by_judge else (*FREE_TO_CHANGE, "judge")  # one that only evaluates

    def free(key: str) -> bool:
        return any(key == name or key.startswith(f"{name}.") for name in may_change)

    before, after = dict(flat(dataclasses.asdict(old), "")), dict(flat(dataclasses.asdict(new), ""))
    changed = [k for k in sorted(before | after) if before.get(k) != after.get(k) and not free(k)]
    if changed:
        raise MemR1Error(
            f"{path}: the run was made with other settings: {', '.join(changed[:5])}. Resume with the same ones, or "
            "set another `name` to start a new run"
        )


def _check_world_size(old: Config, new: Config, checkpoint: Path) -> None:
    before, now = old.learner.num_learners, new.learner.num_learners
    # at ZeRO 0 every rank holds the whole optimizer; at the end of a stage there is none
    if before != now and old.learner.zero_stage > 0 and exists(checkpoint / "learner"):
        raise MemR1Error(
            f"{checkpoint / 'learner'}: an optimizer in {before} shards (learner.zero_stage={old.learner.zero_stage}) "
            f"cannot be read by learner.num_learners={now}; resume with {before}, or from a checkpoint at the end of a "
            "stage, which has no optimizer"
        )


@contextmanager
def _stop_after_step() -> Iterator[list[bool]]:
    """A list that becomes non-empty at the first Ctrl-C (or SIGTERM); the second interrupts at once."""
    stopping: list[bool] = []

    def handle(signum: int, frame: Any) -> None:
        if stopping:
            raise KeyboardInterrupt
        stopping.append(True)

    try:
        previous = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread, for example inside a Tune trial: signals are someone else's
        yield stopping
        return
    try:
        yield stopping
    finally:
        for s, h in previous.items():
            signal.signal(s, h)
