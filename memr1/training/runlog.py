"""RunLog: what a run writes down while it trains, and the functions that read it back.

Called by the training loop; read by `report.py`, `view.py` and people with `jq`. Everything is JSON lines:

    run.json                     facts about the run: model, seed, machine, start
    metrics.jsonl                one line per training step: step, stage, stage_step, time, then flat metrics
    rollouts/step_000012.jsonl   one trajectory per line, as played in that step, with its `advantage`
    evaluation.jsonl             one row per evaluated system: step, stage, time, then `evaluation.rows.Row`

NaN and infinity are written as null: JSON has neither.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import logging
import math
import os
import re
import time as clock
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from memr1.errors import MemR1Error
from memr1.trajectory import Trajectory

_log = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
EVALUATION_FILE = "evaluation.jsonl"
ROLLOUTS_DIR = "rollouts"
INFO_FILE = "run.json"
RESERVED = ("step", "stage", "stage_step", "time")
"""Fields of a metrics line that are no metrics."""

_ROLLOUT_NAME = re.compile(r"step_(\d+)\.jsonl$")


class RunLog:
    """Appends to the files of one run. One process writes a run at a time.

    Opening a folder that a crashed run left behind is safe: a torn last line is cut off before anything is appended.
    Call `truncate_after(step)` when resuming from a checkpoint of that step.
    """

    def __init__(self, run_dir: str | Path, *, tensorboard: bool = False) -> None:
        """tensorboard: mirror numbers to `<run_dir>/tensorboard`; when that fails, one warning and no mirror."""
        self.run_dir = Path(run_dir)
        self._rollouts = self.run_dir / ROLLOUTS_DIR
        try:
            self._rollouts.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MemR1Error(
                f"{self.run_dir}: the run folder cannot be made: {error}; set `output` elsewhere"
            ) from error
        for name in (METRICS_FILE, EVALUATION_FILE):
            _mend_tail(self.run_dir / name)
        self._tensorboard_wanted = tensorboard
        self._writer: Any = None
        self._purge_step: int | None = None

    def info(self, info: Mapping[str, Any]) -> None:
        """Merge facts about the run into `run.json`. Shown in the report: model, seed, machine, started, and others."""
        merged = {**read_info(self.run_dir), **info}
        _replace(self.run_dir / INFO_FILE, _dumps(merged, indent=2) + "\n")

    def metrics(
        self, step: int, stage: str, stage_step: int, metrics: Mapping[str, Any], *, time: float | None = None
    ) -> None:
        """Append one step.

        step: optimizer steps of the whole run, from 1. stage_step: the same within the stage. metrics: flat names such
        as `reward/mean` to numbers (Python, numpy or one-element tensors). time: seconds since the epoch, default now.
        Raises MemR1Error for a metric that is no number or has a reserved name.
        """
        numbers: dict[str, float | None] = {}
        for name, value in metrics.items():
            if name in RESERVED:
                raise MemR1Error(
                    f"metric {name!r} at step {step}: the name is reserved; use another, such as train/{name}"
                )
            numbers[name] = _number(name, value, step)
        now = clock.time() if time is None else time
        line = {"step": step, "stage": stage, "stage_step": stage_step, "time": now, **numbers}
        self._append(METRICS_FILE, line)
        self._mirror(step, stage, numbers)

    def rollouts(self, step: int, records: Sequence[Mapping[str, Any] | Trajectory]) -> Path:
        """Write what was played in one step, one line each; a second call for the step replaces the first.

        records: `memr1.training.metrics.trajectory_record` dicts (text and counts, with `advantage`); a Trajectory is
        made one, without an advantage. Raises MemR1Error for outcomes that JSON cannot hold.
        """
        from memr1.training.metrics import trajectory_record

        decoded = [trajectory_record(r, None) if isinstance(r, Trajectory) else r for r in records]
        path = self._rollouts / f"step_{step:06d}.jsonl"
        _replace(path, "".join(_dumps(record) + "\n" for record in decoded))
        return path

    def evaluation(self, step: int, stage: str, row: Mapping[str, Any], *, time: float | None = None) -> None:
        """Append one row (`Row.to_dict()`) of an evaluation done after `step` steps."""
        now = clock.time() if time is None else time
        self._append(EVALUATION_FILE, {"step": step, "stage": stage, "time": now, **row})
        numbers = {
            f"evaluation/{row.get('benchmark')}/{row.get('system')}/{name}": interval.get("mean")
            for name, interval in (row.get("metrics") or {}).items()
        }
        self._mirror(step, stage, numbers)

    def truncate_after(self, step: int) -> None:
        """Drop everything logged for steps beyond `step`, so that a resumed run repeats nothing."""
        self.close()
        for name in (METRICS_FILE, EVALUATION_FILE):
            path = self.run_dir / name
            if path.is_file():
                kept = [line for line in read_jsonl(path) if line.get("step", 0) <= step]
                _replace(path, "".join(_dumps(line) + "\n" for line in kept))
        for logged, path in rollout_files(self.run_dir).items():
            if logged > step:
                path.unlink()
        self._purge_step = step + 1

    def close(self) -> None:
        """Flush the TensorBoard mirror; the other files are flushed at each line."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _append(self, name: str, record: Mapping[str, Any]) -> None:
        # opened anew for each line: a step takes seconds, and `truncate_after` may have replaced the file
        with (self.run_dir / name).open("a", encoding="utf-8") as file:
            file.write(_dumps(record) + "\n")
            file.flush()

    def _mirror(self, step: int, stage: str, numbers: Mapping[str, float | None]) -> None:
        if not self._tensorboard_wanted:
            return
        try:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(self.run_dir / "tensorboard"), purge_step=self._purge_step)
            for name, value in numbers.items():
                if value is not None:
                    self._writer.add_scalar(name, value, step)
            self._writer.flush()
        except Exception as error:  # a mirror of what metrics.jsonl holds must never stop a run
            self._tensorboard_wanted = False
            _log.warning(
                "TensorBoard mirror off from step %d (%s): %s; install memr1[loggers]. %s stays complete.",
                step,
                stage,
                error,
                METRICS_FILE,
            )


def read_metrics(run_dir: str | Path) -> list[dict[str, Any]]:
    """Lines of `metrics.jsonl` in order; empty when nothing was logged yet. Errors as `read_jsonl`."""
    return _read_if_there(run_dir, METRICS_FILE)


def read_evaluation(run_dir: str | Path) -> list[dict[str, Any]]:
    """Lines of `evaluation.jsonl` in order; empty when nothing was evaluated yet. Errors as `read_jsonl`."""
    return _read_if_there(run_dir, EVALUATION_FILE)


def read_info(run_dir: str | Path) -> dict[str, Any]:
    """`run.json`; empty when the run wrote none. MemR1Error names a file that is damaged."""
    path = Path(run_dir) / INFO_FILE
    if not path.is_file():
        return {}
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MemR1Error(f"{path}: not JSON: {error}; repair or delete it") from error
    if not isinstance(info, dict):
        raise MemR1Error(f"{path}: expected an object of facts about the run, found {type(info).__name__}; delete it")
    return info


def rollout_files(run_dir: str | Path) -> dict[int, Path]:
    """Step → file, in order of steps; empty when none were written."""
    folder = Path(run_dir) / ROLLOUTS_DIR
    found = {}
    for path in folder.glob("step_*.jsonl") if folder.is_dir() else ():
        match = _ROLLOUT_NAME.search(path.name)
        if match:
            found[int(match.group(1))] = path
    return dict(sorted(found.items()))


def read_rollouts(path: str | Path) -> list[dict[str, Any]]:
    """Trajectories of one step as dicts (see `RunLog.rollouts`). Errors as `read_jsonl`."""
    return read_jsonl(path)


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Objects of a JSON-lines file. A torn last line (no newline at its end: the writer was killed) is left out with a
    logged warning. MemR1Error names file and line of any other damage."""
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError as error:
        raise MemR1Error(f"{path}: no such file") from error
    out = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8"))
        except ValueError as error:
            if number == len(lines):
                _log.warning("%s:%d: the last line is torn and was left out", path, number)
                break
            raise MemR1Error(f"{path}:{number}: not JSON: {error}; delete the line to go on without it") from error
        if not isinstance(record, dict):
            raise MemR1Error(f"{path}:{number}: expected an object, found {type(record).__name__}; delete the line")
        out.append(record)
    return out


def machine_info() -> dict[str, Any]:
    """Processor, memory, accelerators and versions of this machine, for `info({"machine": ...})`."""
    import platform

    import torch

    info: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        info["memory_gib"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    if torch.cuda.is_available():
        info["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return info


def _read_if_there(run_dir: str | Path, name: str) -> list[dict[str, Any]]:
    path = Path(run_dir) / name
    return read_jsonl(path) if path.is_file() else []


def _mend_tail(path: Path) -> None:
    """Cut a torn last line off, or end a whole one, so that the next line starts on its own."""
    if not path.is_file():
        return
    data = path.read_bytes()
    if not data or data.endswith(b"\n"):
        return
    start = data.rfind(b"\n") + 1
    try:
        json.loads(data[start:])
    except ValueError:
        _log.warning("%s: the last line is torn (a crash while writing) and was cut off", path)
        with path.open("r+b") as file:
            file.truncate(start)
    else:
        with path.open("ab") as file:
            file.write(b"\n")


def _replace(path: Path, text: str) -> None:
    """Write the whole file or nothing."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _number(name: str, value: Any, step: int) -> float | None:
    if value is None:
        return None
    if hasattr(value, "item"):
        try:
            value = value.item()
        except (ValueError, RuntimeError) as error:
            raise MemR1Error(f"metric {name!r} at step {step}: expected one number, found {value!r}") from error
    if not isinstance(value, bool | int | float):
        raise MemR1Error(f"metric {name!r} at step {step}: expected a number, found {value!r}")
    value = int(value) if isinstance(value, bool) else value
    return value if math.isfinite(value) else None


def _dumps(record: Any, *, indent: int | None = None) -> str:
    return json.dumps(plain(record), ensure_ascii=False, allow_nan=False, indent=indent)


def plain(value: Any) -> Any:
    """The value in JSON types; NaN and infinity become None. MemR1Error for types that would lose their meaning."""
    if value is None or (isinstance(value, bool | int) and not isinstance(value, enum.Enum)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, str):
        # lone surrogates (a byte-level tokenizer can emit them) cannot be encoded
        return value.encode("utf-8", errors="replace").decode("utf-8")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(plain(k)): plain(v) for k, v in value.items()}
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy scalars and arrays, tensors
        return plain(value.tolist())
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        return [plain(v) for v in value]
    raise MemR1Error(
        f"the run log cannot write {type(value).__name__} {value!r}; give numbers, text, lists or mappings"
    )
