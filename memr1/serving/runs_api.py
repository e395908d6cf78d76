"""Training runs for whoever keeps the service: a list, curves of metrics, decoded rollouts. Nothing here writes.

Reads what `memr1.training.runlog` wrote, while a run goes on, too. A run is a folder right under `ServingConfig.runs`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field, FiniteFloat

from memr1.errors import MemR1Error
from memr1.memory.scopes import Scope
from memr1.serving.errors import ApiError, not_found
from memr1.serving.requests import Administrator, Caller
from memr1.serving.schemas import ERRORS
from memr1.training.runlog import (
    METRICS_FILE,
    RESERVED,
    read_info,
    read_metrics,
    read_rollouts,
    rollout_files,
)

logger = logging.getLogger(__name__)

router = APIRouter(prefix="/v1/runs", tags=["runs"], responses=ERRORS)

RunName = Annotated[str, Path(min_length=1, max_length=255, examples=["train_local"])]


class Run(BaseModel):
    """A run at a glance."""

    name: str
    model: str | None
    steps: int
    stage: str | None = Field(description="Of the last step.")
    reward: FiniteFloat | None = Field(description="The last mean reward there was.")
    updated: FiniteFloat = Field(description="When the last step ended, in seconds since 1970.")


class RunList(BaseModel):
    """Runs, the one that went on last first."""

    runs: list[Run]


class Stretch(BaseModel):
    """Steps of one stage without a break."""

    stage: str
    first: int
    last: int


class RunInfo(Run):
    """A run, and what can be asked about it."""

    info: dict[str, Any] = Field(description="Facts that the run noted: seed, machine, …")
    stages: list[Stretch]
    metrics: list[str]
    rollouts: list[int] = Field(description="Steps whose rollouts were kept.")


class Curves(BaseModel):
    """Metrics by step."""

    steps: list[int]
    values: dict[str, list[FiniteFloat | None]] = Field(description="Of each metric, one value for each step.")


class Rollout(BaseModel):
    """One episode, decoded."""

    index: int = Field(description="Its place among those of the step.")
    task_id: str
    group_id: str
    seed: int
    reward: float | None
    reward_parts: dict[str, float | None]
    advantage: float | None
    outcome: dict[str, Any]
    error: str | None
    steps: list[dict[str, Any]] = Field(description="Calls of the model: role, prompt, completion, what was read.")


class RolloutPage(BaseModel):
    """Some of the rollouts of a step."""

    rollouts: list[Rollout]
    total: int
    offset: int


# plain functions: reading files is done in threads


@router.get("", summary="List training runs")
def list_runs(caller: Administrator) -> RunList:
    """Folders with metrics in them."""
    found = []
    for path in _folder(caller).iterdir():
        with suppress(ApiError), _reading(path):  # one that cannot be read hides no other
            if (path / METRICS_FILE).is_file():
                found.append(_run(path))
    return RunList(runs=sorted(found, key=lambda run: -run.updated))


@router.get("/{run}", summary="A training run")
def get_run(run: RunName, caller: Administrator) -> RunInfo:
    """Its stages, the names of its metrics, and which rollouts were kept."""
    from memr1.training.report_plots import stage_segments

    path = _path(caller, run)
    with _reading(path):
        lines = read_metrics(path)
        return RunInfo(
            **_run(path).model_dump(),
            info=read_info(path),
            stages=[
                Stretch(stage=stage, first=lines[i]["step"], last=lines[j - 1]["step"])
                for stage, i, j in stage_segments(lines)
            ],
            metrics=_names(lines),
            rollouts=list(rollout_files(path)),
        )


@router.get("/{run}/metrics", summary="Metrics of a run by step")
def get_curves(
    run: RunName, caller: Administrator, name: Annotated[list[str], Query(min_length=1, max_length=20)]
) -> Curves:
    """Null where a step has none of this name."""
    path = _path(caller, run)
    with _reading(path):
        lines = read_metrics(path)
        if unknown := set(name) - set(_names(lines)):
            raise not_found(f"the metric {min(unknown)!r}")
        return Curves(steps=[line["step"] for line in lines], values={n: [line.get(n) for line in lines] for n in name})


@router.get("/{run}/rollouts/{step}", summary="Rollouts of one step")
def get_rollouts(
    run: RunName,
    step: Annotated[int, Path(ge=0, le=2**53)],
    caller: Administrator,
    offset: Annotated[int, Query(ge=0, le=2**53)] = 0,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    filter: Annotated[str | None, Query(max_length=1000, examples=["reward<0.5"])] = None,
) -> RolloutPage:
    """With the filters of `memr1 view`: `reward<0.5`, `advantage>0`, `role:manager`, `task:…`, `error:`, or words."""
    from memr1.training.view import make_filter

    path = _path(caller, run)
    file = rollout_files(path).get(step)
    if file is None:
        raise not_found("the step")
    keep = make_filter(filter)
    with _reading(path):
        found = [Rollout(index=i, **record) for i, record in enumerate(read_rollouts(file)) if keep(record)]
    return RolloutPage(rollouts=found[offset : offset + limit], total=len(found), offset=offset)


def _folder(caller: Caller) -> FilePath:
    """Where runs are. What somebody trains is no tenant's memory: 404 for whom it does not concern, in the words for a
    service that shows no runs."""
    settings, everybody = caller.services.settings, caller.services.keys is None
    if settings.runs is None or not (everybody or caller.scope == Scope(tenant=settings.runs_tenant)):
        raise ApiError(404, "no_runs", "no training runs are shown to this key; see --runs of `memr1 serve`")
    return FilePath(settings.runs)


def _path(caller: Caller, name: str) -> FilePath:
    """A name is looked for, never joined to a path."""
    for path in _folder(caller).iterdir():
        if path.name == name and (path / METRICS_FILE).is_file():
            return path
    raise not_found("the run")


@contextmanager
def _reading(path: FilePath) -> Iterator[None]:
    """`ApiError` for a run that is damaged or no run of ours; what is wrong, and where, is for the service's log."""
    try:
        yield
    except ApiError:
        raise
    except (MemR1Error, OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("training run %s cannot be read: %s", path, error)
        said = f"the files of run {path.name!r} cannot be read; the service's log says what is wrong with them"
        raise ApiError(500, "damaged_run", said) from error


def _run(path: FilePath) -> Run:
    lines = read_metrics(path)
    last = lines[-1] if lines else {}
    rewards = [line["reward/mean"] for line in lines if line.get("reward/mean") is not None]
    return Run(
        name=path.name,
        model=read_info(path).get("model"),
        steps=last.get("step", 0),
        stage=last.get("stage"),
        reward=rewards[-1] if rewards else None,
        updated=last.get("time") or path.stat().st_mtime,
    )


def _names(lines: list[dict[str, Any]]) -> list[str]:
    return sorted({name for line in lines for name in line} - set(RESERVED))
