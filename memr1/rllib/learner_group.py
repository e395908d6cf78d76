"""RayLearnerGroup: DeepSpeed ranks in Ray actors behind the `LearnerGroup` protocol.

RLlib's own LearnerGroup asks learner 0 alone for its state, which never returns when the state is sharded; here every
call goes to every rank. A rank cannot be replaced alone: the group fails as a unit with `LearnersLost`, and
`memr1.rllib.recovery` starts another from the newest checkpoint.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from memr1.config import Config
from memr1.errors import MemR1Error
from memr1.learner.deepspeed_learner import DeepSpeedLearner, UpdateSettings
from memr1.learner.engine import Rendezvous
from memr1.learner.packing import Plan
from memr1.rllib.cluster import use_own_interface
from memr1.rllib.placement import check_shared, in_bundle
from memr1.rllib.resources import Shares
from memr1.rllib.shipment import PART_BYTES, Shipment
from memr1.rllib.timeline import Span
from memr1.rollout.engine import in_parts
from memr1.training.watchdog import watched

if TYPE_CHECKING:
    from memr1.rollout.channel import Manifest

START_TIMEOUT_S = 1800.0
"""Placing the actors, loading the model and, once per machine, compiling DeepSpeed's operation."""
GRACE_S = 10.0
"""After the first failure, how long to listen for the others: the rank that died says more than those it let down."""


class LearnersLost(MemR1Error):
    """A rank of the learner group died or hung; the group is unusable, the last committed checkpoint is intact."""


class LearnerActor:
    """One rank. The process is made first, since the ranks meet at rank 0's address."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.learner: DeepSpeedLearner | None = None

    def address(self) -> tuple[str, int]:
        """IP address of this node and a port that is free there now."""
        import socket

        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def node(self) -> tuple[str, str]:
        """IP address and id of this node."""
        return ray.util.get_node_ip_address(), ray.get_runtime_context().get_node_id()

    def start(self, config: Config, role: str, weights_folder: str | None, rendezvous: Rendezvous) -> Manifest:
        """Build the learner; returns when all ranks have met, with what its weights look like."""
        check_shared(config, f"learner {self.rank}")
        self.watch = (config.stuck_after_s, config.run_dir)
        use_own_interface()
        self.learner = DeepSpeedLearner(config, role, weights_folder, rendezvous)
        return self.learner.manifest()

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the learner."""
        with watched(*self.watch, f"learner {self.rank}: {method}"):
            return getattr(self.learner, method)(*args)

    def ship(self, version: int, parts: Sequence[Sequence[str]], checked: bool) -> Iterator[Any]:
        """See `DeepSpeedLearner.ship`. Ray stores each part before the next is made."""
        assert self.learner is not None
        with watched(*self.watch, f"learner {self.rank}: ship"):
            yield from self.learner.ship(version, parts, checked)

    def apply(self, function: Callable[[Any], Any]) -> Any:
        """Call a function with the learner."""
        return function(self.learner)


class RayLearnerGroup:
    """All ranks of a stage's learner, each in an actor."""

    def __init__(
        self,
        config: Config,
        role: str,
        weights_folder: str | None,
        shares: Shares,
        bundles: Any = None,
        record: Callable[[Span], None] = lambda span: None,
    ) -> None:
        """weights_folder: must be on storage that every node sees. bundles: a placement group with one for each rank
        (`reserve_learners`); the ranks go anywhere without. record: told of everything that a rank has done."""
        self._record = record
        self._role, self._checked = role, config.rollout.verify_weights
        self._nodes: list[str] = []
        self.node_ids: list[str] = []
        """Ray's ids of the nodes where the ranks are."""
        self.timeout_s = config.learner.collective_timeout_s
        size = config.learner.num_learners
        options: dict[str, Any] = {"num_cpus": shares.learner_cpus, "num_gpus": shares.learner_gpus, "max_restarts": 0}
        actor: Any = ray.remote(LearnerActor)
        self.actors: list[Any] = [
            actor.options(**options, **in_bundle(bundles, rank)).remote(rank) for rank in range(size)
        ]
        try:
            address, port = self._get([self.actors[0].address.remote()], "start", START_TIMEOUT_S)[0]
            homes = self._get([a.node.remote() for a in self.actors], "start", START_TIMEOUT_S)
            self._nodes, self.node_ids = [address for address, _ in homes], [node for _, node in homes]
            folder = None if weights_folder is None else os.path.abspath(weights_folder)
            references = [
                a.start.remote(config, role, folder, Rendezvous(rank, size, address, port))
                for rank, a in enumerate(self.actors)
            ]
            self.manifest: Manifest = self._get(references, "start", START_TIMEOUT_S)[0]
        except BaseException:
            self.close()
            raise
        # they travel as float32
        self._parts = in_parts({name: 4 * math.prod(shape) for name, (shape, _) in self.manifest.items()}, PART_BYTES)

    # -- LearnerGroup -------------------------------------------------------------------------------------------

    def update(self, plan: Plan, settings: UpdateSettings) -> list[dict[str, float]]:
        """See `LearnerGroup.update`."""
        if len(plan.ranks) != len(self.actors):
            raise ValueError(f"a plan for {len(plan.ranks)} ranks does not fit {len(self.actors)} learners")
        references = [a.call.remote("update", part, settings) for a, part in zip(self.actors, plan.ranks, strict=True)]
        return self._get(references, "update")

    def ship(self, version: int) -> Shipment:
        """See `LearnerGroup.ship`. The weights go from rank 0 into the object store and not through this process."""
        shipment, begun = self._begin_shipping(version, self._checked)
        self._get(begun, "ship")
        return shipment

    def _begin_shipping(self, version: int, checked: bool) -> tuple[Shipment, list[ray.ObjectRef]]:
        """A shipment that rank 0 is writing, and what to wait for, by rank."""
        first, *others = self.actors
        # the caller's own references, so that the parts outlive the learner
        writing = first.ship.options(num_returns=len(self._parts) + 1)
        *parts, head = writing.remote(version, self._parts, checked)
        attending = [a.call.remote("attend") for a in others]
        return Shipment(self._role, version, head, tuple(parts)), [head, *attending]

    def supports_shared_prefixes(self) -> bool:
        """See `LearnerGroup.supports_shared_prefixes`; all ranks must agree."""
        return all(self._everywhere("supports_shared_prefixes"))

    def save(self, folder: str) -> None:
        """See `LearnerGroup.save`."""
        self._everywhere("save", os.path.abspath(folder))

    def restore(self, folder: str) -> None:
        """See `LearnerGroup.restore`."""
        self._everywhere("restore", os.path.abspath(folder))

    def close(self) -> None:
        """End the actors. Also right for a group that has failed."""
        for actor in self.actors:
            ray.kill(actor)
        self.actors = []

    # -- straight to the runners, see `RayPool.broadcast` ---------------------------------------------------------

    def address(self) -> tuple[str, int]:
        """IP address of rank 0 and a port that is free there."""
        return self._get([self.actors[0].address.remote()], "address")[0]

    def begin(self, method: str, *args: Any) -> list[ray.ObjectRef]:
        """Call a method of every rank's learner without waiting."""
        return [a.call.remote(method, *args) for a in self.actors]

    def finish(self, begun: Sequence[ray.ObjectRef], what: str) -> list[Any]:
        """Answers by rank."""
        return self._get(begun, what)

    def snapshot(self, version: int) -> Shipment:
        """The weights as they are now, unchecked; written while the caller goes on."""
        return self._begin_shipping(version, checked=False)[0]

    # -- RLlib's verbs ------------------------------------------------------------------------------------------

    def foreach_learner(self, func: Callable[[Any], Any]) -> list[Any]:
        """Call a function with every rank's `DeepSpeedLearner`; answers by rank."""
        return self._get([a.apply.remote(func) for a in self.actors], "foreach_learner")

    def save_to_path(self, path: str) -> str:
        """The same as `save`; returns the path."""
        self.save(path)
        return path

    def restore_from_path(self, path: str) -> None:
        """The same as `restore`."""
        self.restore(path)

    def shutdown(self) -> None:
        """The same as `close`."""
        self.close()

    # -- calls --------------------------------------------------------------------------------------------------

    def _everywhere(self, method: str, *args: Any) -> list[Any]:
        return self.finish(self.begin(method, *args), method)

    def _get(self, references: Sequence[ray.ObjectRef], what: str, timeout_s: float | None = None) -> list[Any]:
        """Answers by rank.

        A rank's own work may take any time (a long update), so without `timeout_s` the clock starts when the first
        rank has answered: ranks do the same work and differ by little. A rank that hangs in a collective is ended by
        the timeout of the process group, which is the same. Raises LearnersLost for the dead and the hung, and what a
        rank raised otherwise.
        """
        pending = list(references)
        ranks = {reference: rank for rank, reference in enumerate(references)}
        began, clock = time.monotonic(), time.time()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        failed = False
        while pending:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready, pending = ray.wait(pending, num_returns=1, timeout=left)
            if not ready:
                break
            for reference in ready if self._nodes else ():
                rank = ranks[reference]
                self._record(Span(f"learner {rank}", self._nodes[rank], what, clock, time.monotonic() - began))
            if deadline is None:
                deadline = time.monotonic() + self.timeout_s
            if not failed and any(_failed(r) for r in ready):
                failed = True
                deadline = time.monotonic() + GRACE_S
        return self._collect(references, what)

    def _collect(self, references: Sequence[ray.ObjectRef], what: str) -> list[Any]:
        answers: list[Any] = []
        errors: dict[int, BaseException] = {}
        for rank, reference in enumerate(references):
            try:
                answers.append(ray.get(reference, timeout=0))
            except (RayActorError, RayTaskError, GetTimeoutError) as error:
                errors[rank] = error.cause if isinstance(error, RayTaskError) else error
                errors[rank].__cause__ = None if errors[rank] is error else error
        if not errors:
            return answers
        causes = [e for e in errors.values() if not isinstance(e, RayActorError | GetTimeoutError)]
        lost = len(causes) < len(errors) or any(_is_peer_failure(e) for e in causes)
        if not lost:
            raise causes[0]
        said = "; ".join(f"rank {rank} {_describe(e)}" for rank, e in errors.items())
        raise LearnersLost(
            f"the learner group failed in {what}: {said}. The last committed checkpoint is intact: run again with "
            "--resume auto. Slow collectives are given longer by learner.collective_timeout_s"
        )


def _failed(reference: ray.ObjectRef) -> bool:
    try:
        ray.get(reference, timeout=0)
    except (RayActorError, RayTaskError):
        return True
    return False


def _is_peer_failure(error: BaseException) -> bool:
    """Whether a rank complains about another: torch raises plain RuntimeErrors when a peer is gone or silent."""
    text = str(error).lower()
    signs = ("gloo", "nccl", "connection closed by peer", "connection reset", "timed out waiting", "wait timeout")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)


def _describe(error: BaseException) -> str:
    if isinstance(error, GetTimeoutError):
        return "did not answer"
    if isinstance(error, RayActorError):
        return f"died ({str(error).strip().splitlines()[0]})"
    return f"said {type(error).__name__}: {str(error).strip().splitlines()[0]}"
