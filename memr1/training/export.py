"""`memr1 export`: a run's weights in the formats of transformers and peft, for use without memr1."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from memr1.config import Config
from memr1.config_file import load_config
from memr1.errors import MemR1Error
from memr1.storage import reading
from memr1.training.checkpoints import TrainState, committed, load_state


@dataclass(frozen=True)
class Exported:
    """What was written for one role."""

    role: str
    folder: Path
    kind: str
    """`adapter` (peft; its base is `model.name` of the run) or `model` (transformers, with its tokenizer)."""
    step: int
    """Optimizer steps of the run after which the weights were taken."""


def export_run(run_dir: Path, to: Path, *, merged: bool = False) -> list[Exported]:
    """Write the newest committed weights of every role that the run has trained to `to`/<role>.

    merged: add adapters into the base's weights, so that `AutoModelForCausalLM.from_pretrained` alone reads them;
    without it they are written as `PeftModel.from_pretrained` reads them. Full weights are whole models either way.
    The run's configuration is put beside them, by which `memr1 serve` knows how the roles are spoken to.
    Raises MemR1Error for a folder that is no run, a run without a checkpoint, and a target that is not empty.
    """
    from memr1.models.adapters import PolicyModel

    if not (run_dir / "config.yaml").is_file():
        raise MemR1Error(f"{run_dir}: no run there (no config.yaml); name the folder that `memr1 train` printed")
    checkpoints = committed(run_dir)
    if not checkpoints:
        raise MemR1Error(f"{run_dir}: the run has no committed checkpoint to take weights from; train it first")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise MemR1Error(f"{to}: is there already and not empty; give --to a new folder")
    config, state = load_config(run_dir / "config.yaml"), load_state(checkpoints[-1])
    m = config.model
    partial = to.with_name(to.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    written = []
    for role in _trained_roles(config, state):
        policies = PolicyModel.create(m.name, (role,), m.weights, m.lora, dtype=m.dtype, device=m.device)
        with reading(checkpoints[-1] / "policies") as folder:
            policies.load(role, folder / role)
        whole = merged or m.weights == "full"
        (policies.export_merged if whole else policies.save)(role, partial / role)
        written.append(Exported(role, to / role, "model" if whole else "adapter", state.step))
    shutil.copy(run_dir / "config.yaml", partial / "config.yaml")
    if to.exists():
        to.rmdir()
    os.replace(partial, to)  # a half-written export is never found under its name
    return written


def _trained_roles(config: Config, state: TrainState) -> list[str]:
    begun = config.stages[: state.stage + (state.stage_step > 0)]
    return sorted({stage.role for stage in begun})
