"""Where the weights of a service come from: a run, one of its checkpoints, or a model that nobody trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from memr1.config import Config
from memr1.config_file import load_config
from memr1.errors import MemR1Error

if TYPE_CHECKING:
    from memr1.rollout.runner import Runner

DEFAULT_RUN = Path("runs/train_local")
DEFAULT_MODEL = "smollm2-135m"


@dataclass(frozen=True)
class Source:
    """What to load."""

    path: str
    """What `find_source` was given."""
    config: Config
    policies: Path | None
    """Folder with the weights of each role; None: the untrained model."""
    label: str
    """For people and in provenance: `runs/train_local/step_000190`, or the name of the model."""

    @property
    def warning(self) -> str | None:
        """What to tell whoever starts the service; None when all is well."""
        if self.policies is not None:
            return None
        return (
            f"{self.label} was never trained to manage memory: it cannot be relied on to write the format that is "
            "parsed, and what cannot be parsed is refused. Train one with `make train-local`, and name its run"
        )


def find_source(name: str) -> Source:
    """What `memr1 serve NAME` means. `MemR1Error` when it is neither a run, a checkpoint nor a model."""
    path = Path(name)
    if (path / "config.yaml").is_file():
        return _of_run(path)
    if (path / "policies").is_dir() and path.parent.name == "checkpoints":
        return _of_checkpoint(path.parent.parent, path)
    if (path / "checkpoints").is_dir():
        raise MemR1Error(f"{path}: a run without config.yaml; copy that file too")
    config = load_config(None, [f"model.name={name}"])
    from memr1.models.registry import resolve_model

    resolve_model(name)  # refuses what is none, with the names that are known
    return Source(name, config, None, name)


def default_source() -> Source:
    """The last local run where there is one, else the default model, untrained."""
    return _of_run(DEFAULT_RUN) if (DEFAULT_RUN / "config.yaml").is_file() else find_source(DEFAULT_MODEL)


def _of_run(run: Path) -> Source:
    from memr1.training.checkpoints import committed

    checkpoints = committed(run)
    if not checkpoints:
        raise MemR1Error(f"{run}: the run has no committed checkpoint to take weights from; train it first")
    return _of_checkpoint(run, checkpoints[-1])


def _of_checkpoint(run: Path, checkpoint: Path) -> Source:
    from memr1.rollout.runner import ROLES

    for role in ROLES:
        if not (checkpoint / "policies" / role).is_dir():
            raise MemR1Error(f"{checkpoint}: the weights of the {role} are missing; name another checkpoint")
    config = load_config(run / "config.yaml")
    return Source(str(checkpoint), config, checkpoint / "policies", f"{run.name}/{checkpoint.name}")


def load_runner(source: Source, threads: int) -> Runner:
    """The model of a source with its weights, ready to generate. Its own embedder is a small one: banks have theirs."""
    from memr1.rollout.runner import Runner

    config = replace(
        source.config,
        memory=replace(source.config.memory, embedder="hash"),
        model=replace(source.config.model, threads=threads),
    )
    runner = Runner(config)
    if source.policies is not None:
        runner.load_policies(str(source.policies))
    return runner
