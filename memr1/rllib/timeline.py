"""A timeline of the last steps of a run, when somebody asks for it: which process did what, on which node, and when.

`memr1 timeline RUN` leaves a request in the run folder (of a run at a URL: in its working copy). The driver answers
after its step with `timeline.json`, in Chrome's trace format, for https://ui.perfetto.dev and chrome://tracing. Times
are the driver's, so that nodes whose clocks are apart still fit together: a call of a
runner begins when it is sent and takes as long as its process says, one of a learner lasts from when the driver begins
to wait for it until its answer is there.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from memr1.errors import MemR1Error

_log = logging.getLogger(__name__)

KEPT_STEPS = 20
REQUEST = "timeline.request"
FILE = "timeline.json"
PHASES = ("setup", "rollout", "update", "sync")
DRIVER = "driver"


@dataclass(frozen=True)
class Span:
    """Something that a process did."""

    process: str
    """`runner 3`, `learner 0` or `driver`."""
    node: str
    """IP address; empty for the driver."""
    name: str
    """Method or phase."""
    start: float
    """Seconds since 1970 by the driver's clock."""
    seconds: float


class Timeline:
    """What pool and learners report, kept for the last steps."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._steps: deque[tuple[int, list[Span]]] = deque(maxlen=KEPT_STEPS)
        self._now: list[Span] = []

    def record(self, span: Span) -> None:
        """Take in what a process has done in the step that is under way."""
        self._now.append(span)

    def end_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Close a step; write the file if it has been asked for."""
        start = time.time() - metrics["time/step_s"]
        for phase in PHASES:
            seconds = metrics[f"time/{phase}_s"]
            self._now.append(Span(DRIVER, "", phase, start, seconds))
            start += seconds
        self._steps.append((step, self._now))
        self._now = []
        request = self._run_dir / REQUEST
        try:
            asked = request.read_text()
            request.unlink()
            _replace(self._run_dir / FILE, json.dumps({"request": asked, "traceEvents": list(self._events())}))
        except FileNotFoundError:  # nobody asked
            pass
        except OSError as error:  # a full disk must not end a step for this
            _log.warning("the timeline could not be written: %s", error)

    def _events(self) -> Iterator[dict[str, Any]]:
        """Chrome's events: a process for each node, a thread for each process of the run; times in microseconds."""
        nodes: dict[str, int] = {}
        threads: dict[tuple[int, str], int] = {}
        for step, spans in self._steps:
            for span in spans:
                pid = nodes.setdefault(span.node, len(nodes))
                tid = threads.setdefault((pid, span.process), len(threads))
                place: dict[str, Any] = {"pid": pid, "tid": tid}
                yield place | {
                    "ph": "X",
                    "name": span.name,
                    "ts": span.start * 1e6,
                    "dur": span.seconds * 1e6,
                    "args": {"step": step, "process": span.process, "node": span.node},
                }
        for node, pid in nodes.items():
            yield {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": node or "driver's node"}}
        for (pid, process), tid in threads.items():
            yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": process}}


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def ask(run_dir: Path, wait_s: float) -> list[dict[str, Any]]:
    """Ask the driver of a run for its timeline and wait for it; its events.

    Raises MemR1Error where no run is, or one without Ray, and when no step ends in time.
    """
    config = run_dir / "config.yaml"
    if not config.is_file():
        raise MemR1Error(f"{run_dir}: no run there (no config.yaml); name the folder that `memr1 train` printed")
    if (yaml.safe_load(config.read_text()) or {}).get("backend") == "local":
        raise MemR1Error(
            f"{config}: backend is local, and only runs on Ray keep a timeline; `memr1 train` with backend=ray has one"
        )
    request, answer = run_dir / REQUEST, run_dir / FILE
    nonce = secrets.token_hex(8)
    _replace(request, nonce)
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        if not request.exists() and answer.exists():
            told = json.loads(answer.read_text())
            if told["request"] == nonce:
                return list(told["traceEvents"])
        time.sleep(0.2)
    request.unlink(missing_ok=True)
    raise MemR1Error(
        f"{run_dir}: no answer within {wait_s:.0f} s. The driver of a run with backend=ray answers after its step: "
        "look whether it trains, and give --wait longer than a step takes"
    )


@dataclass(frozen=True)
class Busy:
    """How a process spent the time of a timeline."""

    process: str
    node: str
    seconds: dict[str, float]
    """By method or phase."""
    idle: float
    """Share of the time in which it did nothing."""


def busy(events: list[dict[str, Any]]) -> list[Busy]:
    """Every process of a timeline, the driver first."""
    spans = [e for e in events if e["ph"] == "X"]
    if not spans:
        return []
    window = (max(e["ts"] + e["dur"] for e in spans) - min(e["ts"] for e in spans)) / 1e6
    seconds: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for e in spans:
        seconds[e["args"]["process"], e["args"]["node"]][e["name"]] += e["dur"] / 1e6
    rows = [
        Busy(process, node, dict(by_name), max(0.0, 1 - sum(by_name.values()) / window))
        for (process, node), by_name in seconds.items()
    ]
    return sorted(rows, key=lambda row: (row.process != DRIVER, row.process[0], len(row.process), row.process))
