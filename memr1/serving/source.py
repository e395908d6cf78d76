"""Where the model of a service comes from: a run, one of its checkpoints, an export, or an untrained model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from memr1.config import Config
from memr1.config_file import load_config
from memr1.errors import MemR1Error
from memr1.rollout.runner import ROLES, Runner
from memr1.serving.inference import Inference, watched
from memr1.serving.settings import ServingConfig

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
    """For people and in provenance: `train_local/step_000190`, or the name of the model."""
    roles: tuple[str, ...] = ROLES
    """Those whose weights are there; the others are the untrained model."""

    @property
    def warning(self) -> str | None:
        """What to tell whoever starts the service; None when all is well."""
        untrained = [role for role in ROLES if self.policies is None or role not in self.roles]
        if not untrained:
            return None
        return (
            f"{self.label}: no trained weights of the {' and the '.join(untrained)}. An untrained model cannot be "
            "relied on to write the format that is parsed, and what cannot be parsed is refused. Train one with "
            "`make train-local`, and name its run"
        )


def find_source(name: str) -> Source:
    """What `memr1 serve NAME` means. `MemR1Error` when it is no run, no checkpoint, no export and no model."""
    path = Path(name)
    exported = tuple(role for role in ROLES if (path / role).is_dir())
    if (path / "config.yaml").is_file():
        return _of_export(path, exported) if exported else _of_run(path)
    if (path / "policies").is_dir() and path.parent.name == "checkpoints":
        return _of_checkpoint(path.parent.parent, path)
    if (path / "checkpoints").is_dir():
        raise MemR1Error(f"{path}: a run without config.yaml; copy that file too")
    if exported:
        raise MemR1Error(f"{path}: an export without config.yaml; copy that file too, or export again")
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
    for role in ROLES:
        if not (checkpoint / "policies" / role).is_dir():
            raise MemR1Error(f"{checkpoint}: the weights of the {role} are missing; name another checkpoint")
    config = load_config(run / "config.yaml")
    return Source(str(checkpoint), config, checkpoint / "policies", f"{run.name}/{checkpoint.name}")


def _of_export(folder: Path, roles: tuple[str, ...]) -> Source:
    config = load_config(folder / "config.yaml")
    whole = [role for role in roles if (folder / role / "config.json").is_file()]
    if whole:  # merged: models of their own, which need no base and bring their tokenizer
        model = replace(config.model, weights="full", name=str(folder / whole[0]))
        config = replace(config, model=model)
    return Source(str(folder), config, folder, folder.name, roles)


def load_runner(source: Source, threads: int) -> Runner:
    """The model of a source with its weights, ready to generate. Its own embedder is a small one: banks have theirs."""
    config = replace(
        source.config,
        memory=replace(source.config.memory, embedder="hash"),
        model=replace(source.config.model, threads=threads),
    )
    runner = Runner(config)
    if source.policies is not None:
        runner.load_policies(str(source.policies), source.roles)
    return runner


def load_model(source: Source, settings: ServingConfig) -> Inference:
    """The model of a source at work in this process. `MemR1Error` where weights are missing or damaged."""
    engine = watched(load_runner(source, settings.threads).engine)
    return Inference(engine, max_queue=settings.max_queue, max_batch=settings.max_batch)
