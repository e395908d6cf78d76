"""RaySession: the `ray` backend of `memr1 train`."""

from __future__ import annotations

from pathlib import Path

import ray

from memr1.config import Config
from memr1.rllib.algorithm import MemoryR1, MemoryR1Config
from memr1.rllib.cluster import connect
from memr1.training.runlog import RunLog


class RaySession:
    """A training session on a Ray cluster; `LocalSession` has the same face."""

    def __init__(self, config: Config, log: RunLog, resume: Path | None) -> None:
        """log: closed here and reopened by the algorithm, which owns it from then on."""
        self._connected = connect()
        log.close()
        try:
            builder = MemoryR1Config().experiment(config, resume="never" if resume is None else str(resume))
            builder.validate()
            for line in ("placement:", *builder.placement_plan):
                print(line, flush=True)
            self.algorithm: MemoryR1 = builder.build_algo()
            self.trainer = self.algorithm.trainer
        except BaseException:
            self._disconnect()
            raise

    def step(self) -> dict[str, float]:
        """One optimizer step."""
        self.algorithm.train()
        return self.algorithm.step_metrics

    def close(self) -> None:
        """Stop what this session started."""
        try:
            self.algorithm.stop()
        finally:
            self._disconnect()

    def _disconnect(self) -> None:
        if self._connected:
            ray.shutdown()
