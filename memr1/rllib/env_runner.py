"""DialogueEnvRunner: RLlib's environment runner as a shell around `memr1.rollout.runner.Runner`.

Made by an EnvRunnerGroup, spoken to by `memr1.rllib.pool.RayPool`. It never lets an exception out of a call: RLlib
ends an actor whose call raises and would go on without it.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import ray
from ray.rllib.env.env_runner import EnvRunner

from memr1.config import Config
from memr1.rllib.cluster import use_own_interface
from memr1.rllib.embedding import RemoteEmbedder
from memr1.rllib.placement import check_shared
from memr1.rllib.shipment import Shipment
from memr1.rollout.engine import WeightUpdate
from memr1.rollout.runner import Play, Runner
from memr1.training.watchdog import watched

if TYPE_CHECKING:
    from memr1.trajectory import Trajectory


@dataclass(frozen=True)
class Answer:
    """What a call gave: a value, an error, or the word that this process has not been armed."""

    value: Any = None
    error: BaseException | None = None
    armed: bool = True
    seconds: float = 0.0
    """How long the call took in the runner."""
    node: str = ""
    """IP address of the runner's node."""
    clock: float = 0.0
    """What the clock of that node said, in seconds since 1970; with the answer to `arm` only."""


class DialogueEnvRunner(EnvRunner):
    """Plays episodes in an actor of its own.

    A process that Ray started in place of a dead one holds untrained weights. It therefore answers nothing until it
    has been armed (`arm`) with the current weights and the caller's token.
    """

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        """config: a `MemoryR1Config` that carries an experiment."""
        super().__init__(config=config, **kwargs)
        check_shared(config.memr1, f"runner {self.worker_index}")
        use_own_interface()
        self.runner = Runner(
            _for_this_process(config.memr1, config.claims.runners_per_node),
            RemoteEmbedder(config.embedders, self.worker_index) if config.embedders else None,
        )
        self._token: str | None = None
        self._node = ray.util.get_node_ip_address()
        self._watch = (config.memr1.stuck_after_s, config.memr1.run_dir)

    def arm(self, token: str, shipments: Sequence[Shipment]) -> Answer:
        """Load weights and accept calls with this token; answers with the weight version by policy."""
        try:
            for shipment in shipments:
                self.runner.load_weights(shipment.receive())
            self._token = token
            return Answer(self.runner.weight_versions(), node=self._node, clock=time.time())
        except Exception as error:
            return Answer(error=_portable(error))

    def call(
        self, token: str, method: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Answer:
        """Call a method of the runner, or `export_weights`. Shipments among args are received."""
        if token != self._token:
            return Answer(armed=False)
        began = time.perf_counter()
        try:
            target: Any = self.export_weights if method == "export_weights" else getattr(self.runner, method)
            values = [a.receive() if isinstance(a, Shipment) else a for a in args]
            with watched(*self._watch, f"runner {self.worker_index}: {method}"):
                value = target(*values, **(kwargs or {}))
            return Answer(value, seconds=time.perf_counter() - began, node=self._node)
        except Exception as error:
            return Answer(error=_portable(error))

    def export_weights(self, roles: Sequence[str]) -> list[WeightUpdate]:
        """The weights of some roles with the versions in use."""
        versions = self.runner.weight_versions()
        return [
            WeightUpdate.build(
                role, versions[role], {n: t.float().numpy() for n, t in self.runner.policies.weights(role).items()}
            )
            for role in roles
        ]

    # -- RLlib's face -------------------------------------------------------------------------------------------

    def sample(
        self, *, plays: Sequence[Play] = (), reward: str = "em_set", temperature: float = 1.0, **kwargs: Any
    ) -> list[Trajectory]:
        """Play tasks and return their trajectories; a task that fails comes back as one with `error` set."""
        return self.runner.play(plays, reward, temperature)

    def get_spaces(self) -> dict[str, tuple[Any, Any]]:
        """Token ids have no gymnasium space."""
        return {}

    def assert_healthy(self) -> None:
        """Raises AssertionError when the constructor has not run through."""
        assert hasattr(self, "runner"), "the runner was not built"

    def get_metrics(self) -> dict[str, float]:
        """Seconds and tokens of the engine since the last call."""
        return self.runner.pop_timings()

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Weight version by policy. The weights themselves travel by `RayPool.push`."""
        return {"weight_versions": self.runner.weight_versions()}

    def set_state(self, state: Any) -> None:
        """Refused: RLlib's own synchronisation waits for no acknowledgement."""
        raise NotImplementedError("weights reach a DialogueEnvRunner through RayPool.push or RayPool.load_policies")

    def stop(self) -> None:
        """Close what leads to servers; memory banks live in the episodes."""
        self.runner.close()


def _for_this_process(config: Config, runners_per_node: int) -> Config:
    """Share the cores of a node among its runners where the configuration leaves the number of threads open."""
    if config.model.threads > 0 or runners_per_node <= 1:
        return config
    threads = max(1, (os.cpu_count() or 1) // runners_per_node)
    return replace(config, model=replace(config.model, threads=threads))


def _portable(error: Exception) -> BaseException:
    """The error with its traceback as a note, as itself if it survives pickling, else as a RuntimeError."""
    from ray import cloudpickle

    text = f"{type(error).__name__}: {error}"
    error.add_note("in the runner:\n" + "".join(traceback.format_exception(error)))
    error.__traceback__ = None
    error.__cause__ = error.__context__ = None
    try:
        return error if isinstance(cloudpickle.loads(cloudpickle.dumps(error)), type(error)) else RuntimeError(text)
    except Exception:  # whatever pickling raises: the text is what can be carried
        return RuntimeError(text)
