"""memr1's own metrics for Prometheus, through Ray, which every node exports them by: `ray_memr1_...`.

Called after each step by `memr1.rllib.algorithm`; drawn by the dashboard in cluster/monitoring.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

GAUGES = {
    "reward/mean": ("memr1_reward_mean", "Mean reward of the last step's trajectories"),
    "learner/loss": ("memr1_loss", "Loss of the last step"),
    "groups/zero_variance_fraction": ("memr1_zero_variance_fraction", "Share of groups without a signal"),
    "tokens/per_second": ("memr1_update_tokens_per_second", "Tokens of the update per second, unshared"),
    "time/step_s": ("memr1_step_seconds", "Duration of the last step"),
    "engine/busiest_runner_s": ("memr1_busiest_runner_seconds", "Playing time of the busiest runner in the last step"),
    "engine/runner_idle_fraction": ("memr1_runner_idle_fraction", "Share of the rollout that runners were not playing"),
}
"""Metric of a step -> name and meaning of its gauge."""
PHASES = {f"time/{name}_s": name for name in ("setup", "rollout", "update", "sync")}
"""Metric of a step -> value of the label `phase`."""
OTHERS = {
    "memr1_phase_seconds": ("Duration of a phase of the last step", "phase"),
    "memr1_step": ("Optimizer steps done",),
    "memr1_step_finished_time_seconds": ("When the last step ended, in seconds since 1970",),
    "memr1_runners": ("Runners by state", "state"),
    "memr1_runner_busy_seconds": ("Playing time of a runner in the last step", "runner", "node"),
}
"""Name of a further gauge -> its meaning and labels."""


class Telemetry:
    """The gauges of one run, all with the label `run`."""

    def __init__(self, run: str) -> None:
        from ray.util.metrics import Gauge

        described = OTHERS | {name: (meaning,) for name, meaning in GAUGES.values()}
        self._gauges: dict[str, Any] = {}
        for name, (meaning, *labels) in described.items():
            self._gauges[name] = Gauge(name, description=meaning, tag_keys=("run", *labels))
            self._gauges[name].set_default_tags({"run": run})

    def publish(
        self, step: int, metrics: Mapping[str, float], ready: int, runners: int, busy: Mapping[tuple[int, str], float]
    ) -> None:
        """Set all gauges after a step. ready, runners: how many answer, and how many there should be. busy: seconds of
        playing by (runner, node). What a step has no metric for keeps its last value, as gauges do."""
        for metric, (name, _) in GAUGES.items():
            if metric in metrics:
                self._gauges[name].set(metrics[metric])
        for metric, phase in PHASES.items():
            if metric in metrics:
                self._gauges["memr1_phase_seconds"].set(metrics[metric], tags={"phase": phase})
        self._gauges["memr1_step"].set(step)
        self._gauges["memr1_step_finished_time_seconds"].set(time.time())
        self._gauges["memr1_runners"].set(ready, tags={"state": "ready"})
        self._gauges["memr1_runners"].set(runners - ready, tags={"state": "away"})
        for (runner, node), seconds in busy.items():
            self._gauges["memr1_runner_busy_seconds"].set(seconds, tags={"runner": str(runner), "node": node})
