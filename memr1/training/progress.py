"""Progress: what a person watches while a run trains. Called by the training loop once per step.

In a terminal: a bar over the stage, its latest numbers and the time left. Elsewhere (a log file, a job's output): one
plain line per step.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from memr1.errors import MemR1Error
from memr1.training.report_plots import OPERATION_ORDER, duration

if TYPE_CHECKING:
    from rich.console import Console


class Progress:
    """Context manager: `with Progress([("answerer-sft", 12), ("answerer-grpo", 24)]) as progress:`, then `update`.

    The same stage name may come twice; updates are matched to stages in order. A resumed run simply starts with a later
    update: steps done before it are not counted as time.
    """

    def __init__(
        self,
        stages: Sequence[tuple[str, int]],
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """stages: (name, steps) in the order in which they run. clock: seconds; replaced in tests."""
        if not stages:
            raise MemR1Error("progress: there are no stages; a run needs at least one under `stages:`")
        self.stages = list(stages)
        self._console = console
        self._clock = clock
        self._at = 0
        self._done = 0
        self._last = clock()
        # (seconds, steps) seen in this process, per position in `stages`
        self._spent: list[tuple[float, int]] = [(0.0, 0)] * len(self.stages)
        self._live: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        from rich.console import Console

        self._console = self._console or Console(highlight=False)
        self._last = self._clock()
        if self._console.is_terminal:
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as RichProgress

            self._live = RichProgress(
                TextColumn("[bold]{task.fields[stage]}", justify="left"),
                BarColumn(bar_width=24),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TextColumn("{task.fields[numbers]}", markup=False),
                TextColumn("[dim]{task.fields[left]}"),
                console=self._console,
                expand=False,
            )
            self._task = self._live.add_task(
                "train", total=self.stages[0][1], stage=self._title(), numbers="starting", left=""
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(self, stage: str, stage_step: int, metrics: Mapping[str, Any]) -> None:
        """One step is done. stage_step: steps done in the stage, from 1. metrics: as given to `RunLog.log_metrics`.

        Raises MemR1Error for a stage that is not among the remaining ones.
        """
        position = self._find(stage, stage_step)
        now = self._clock()
        same = position == self._at and 0 < self._done < stage_step
        steps = stage_step - self._done if same else 1
        seconds, seen = self._spent[position]
        self._spent[position] = (seconds + now - self._last, seen + steps)
        self._at, self._done, self._last = position, stage_step, now
        numbers, left = numbers_line(metrics), self.time_left()
        eta = "" if left is None else f"{duration(left)} left"
        total = self.stages[position][1]
        if self._live is not None:
            self._live.update(
                self._task, completed=stage_step, total=total, stage=self._title(), numbers=numbers, left=eta
            )
        elif self._console is not None:
            parts = [f"{stage} {stage_step}/{total}", numbers, eta]
            self._console.print(" | ".join(p for p in parts if p), markup=False, soft_wrap=True)

    def time_left(self) -> float | None:
        """Seconds until the last stage ends; None before the first step. A stage that has not begun is taken to be as
        slow per step as the average step so far."""
        seconds, steps = (sum(column) for column in zip(*self._spent, strict=True))
        if steps == 0:
            return None
        left = 0.0
        for i in range(self._at, len(self.stages)):
            remaining = self.stages[i][1] - (self._done if i == self._at else 0)
            spent, seen = self._spent[i]
            left += max(0, remaining) * (spent / seen if seen else seconds / steps)
        return left

    def _find(self, stage: str, stage_step: int) -> int:
        for i in range(self._at, len(self.stages)):
            name, steps = self.stages[i]
            repeated = i == self._at and stage_step <= self._done
            if name == stage and stage_step <= steps and not repeated:
                return i
        left = ", ".join(f"{name} ({steps})" for name, steps in self.stages[self._at :])
        raise MemR1Error(f"progress: step {stage_step} of stage {stage!r} does not follow; stages left: {left}")

    def _title(self) -> str:
        name = self.stages[self._at][0]
        return f"{name} [{self._at + 1}/{len(self.stages)}]".replace("[", r"\[")


def numbers_line(metrics: Mapping[str, Any]) -> str:
    """`reward 0.62 · add 40% update 12% · refused 3% · 118 tok/s`: what a glance needs, from what there is."""
    parts = []
    for name, label in (("reward/mean", "reward"), ("learner/loss", "loss")):
        if _is_number(metrics.get(name)):
            parts.append(f"{label} {metrics[name]:.3f}")
    mix = [
        f"{op} {100 * metrics[n]:.0f}%" for op in OPERATION_ORDER if _is_number(metrics.get(n := f"ops/{op}_fraction"))
    ]
    if mix:
        parts.append(" ".join(mix))
    for name, value in metrics.items():
        if re.search(r"^parse/(reject\w*|fail\w*)_fraction$", name) and _is_number(value):
            parts.append(f"unreadable {100 * value:.0f}%")
            break
    if _is_number(metrics.get("tokens/per_second")):
        parts.append(f"{metrics['tokens/per_second']:.0f} tok/s")
    return " · ".join(parts)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
