"""RayPool: runners in Ray actors behind the `RunnerPool` protocol. Made by `memr1.rllib.algorithm`.

RLlib's EnvRunnerGroup makes the actors and its FaultTolerantActorManager notices the dead; what is decided here is who
plays what, that a part whose runner died is played again, and that nobody plays with old weights.
"""

from __future__ import annotations

import logging
import os
import secrets
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import ray
from ray.exceptions import RayActorError, RayError

from memr1.errors import MemR1Error
from memr1.rllib.dispatch import MAX_LOSSES, Dispatch, split
from memr1.rllib.env_runner import Answer
from memr1.rllib.learner_group import LearnersLost
from memr1.rllib.shipment import Shipment, WeightsLost
from memr1.rllib.timeline import Span
from memr1.rollout.channel import Meeting
from memr1.rollout.engine import WeightUpdate
from memr1.rollout.pool import check_acknowledged
from memr1.rollout.runner import ROLES

if TYPE_CHECKING:
    from ray.rllib.env.env_runner_group import EnvRunnerGroup
    from ray.rllib.utils.actor_manager import FaultTolerantActorManager

    from memr1.rllib.learner_group import RayLearnerGroup

_log = logging.getLogger(__name__)

START_TIMEOUT_S = 900.0
"""A runner loads the language model and, on a cold machine, reads it over the network."""
ANSWER_TIMEOUT_S = 300.0
"""Longest wait for what a runner knows without work."""
CALL_TIMEOUT_S = 3600.0
"""A runner that takes longer over its part of one step is taken for hung and is replaced."""
CHANNEL_SHARE = 0.2
"""Share of the time for a push that learner and runners wait for each other in a collective."""
MAX_CHANNEL_FAILURES = 2
"""Each costs a step up to that time."""
STRAGGLER = 2.0
"""A runner that plays for this many times the median of all is reported by name."""
CLOCKS_APART_S = 5.0
"""Clocks of nodes that are further apart are reported. Nothing is decided by them."""

T = TypeVar("T")
Call = tuple[str, Sequence[Any], Mapping[str, Any]]
"""(method, positional arguments, keyword arguments)."""


@dataclass(frozen=True)
class Channel:
    """A way from learners to runners (`memr1.rollout.channel`), and who is at its ends."""

    learners: RayLearnerGroup
    processes: dict[int, int]
    """Runner -> number of its process."""

    def joins(self, learners: RayLearnerGroup, processes: dict[int, int]) -> bool:
        """Whether it is between these."""
        return self.learners is learners and self.processes == processes


class RayPool:
    """The runners of an EnvRunnerGroup. Every call waits for all its answers.

    Raises MemR1Error when runners cannot be started or keep dying; an error raised inside a runner comes out as it is.
    """

    def __init__(
        self,
        group: EnvRunnerGroup,
        record: Callable[[Span], None] = lambda span: None,
        *,
        parts_per_runner: int = 1,
        collective: bool = False,
        verify_weights: bool = True,
        push_timeout_s: float = 300.0,
    ) -> None:
        """record: told of everything that a runner has done. parts_per_runner: see the configuration. collective:
        whether `broadcast` may be used. verify_weights: with a checksum. push_timeout_s: see the configuration."""
        self._group, self._record, self._parts_per_runner = group, record, parts_per_runner
        self._collective, self._checked, self._push_timeout_s = collective, verify_weights, push_timeout_s
        self._channel: Channel | None = None
        self._failures = 0  # of channels, in a row
        self._manager: FaultTolerantActorManager = group._worker_manager
        self._token = secrets.token_hex(8)
        self._weights: dict[str, Shipment] = {}
        """Current weights by role, for runners that come later; a role that was never touched is not there."""
        self._unarmed = set(self._manager.actor_ids())
        self._processes: Counter[int] = Counter()  # processes armed so far, by runner
        self._asked: dict[int, ray.ObjectRef] = {}
        """By lost runner: the question whether it is back, which it has not answered yet."""
        self._given_up: set[int] = set()
        """Lost runners that cannot be made: their constructor raises."""
        self._background = ThreadPoolExecutor(1, "play-ahead")
        self._closed = False
        self.replaced = 0
        """Runners replaced so far."""
        self._busy: dict[tuple[int, str], float] = defaultdict(float)
        self._wall = 0.0
        self.last_busy: dict[tuple[int, str], float] = {}
        """Seconds of playing by (runner, node) in the last step that played."""
        self.returned: list[int] = []
        """Ids of runners that came back since somebody last emptied this list."""
        self._arm(START_TIMEOUT_S)

    # -- RunnerPool ---------------------------------------------------------------------------------------------

    def map(self, method: str, items: Sequence[Any], **kwargs: Any) -> list[Any]:
        """See `RunnerPool.map`. Items are cut in contiguous parts, one for each runner or, where they are played,
        `parts_per_runner`; whoever is free takes the next one, see `memr1.rllib.dispatch`."""
        parts = split(items, len(self.ready()) * (self._parts_per_runner if method == "play" else 1))
        began = time.monotonic()
        results = Dispatch(self, method, kwargs, CALL_TIMEOUT_S).run(parts)
        if method == "play":
            self._wall += time.monotonic() - began
        return results

    def first(self, method: str, *args: Any) -> Any:
        """See `RunnerPool.first`. Path arguments must be absolute or mean the same on every node."""
        for _ in range(1 + MAX_LOSSES):
            runner = self.ready()[0]
            answers = self._call({runner: (method, args, {})}, CALL_TIMEOUT_S)
            if runner in answers:
                return answers[runner]
        raise MemR1Error(f"{1 + MAX_LOSSES} runners died one after the other in {method}; see the logs of Ray")

    def begin(self, work: Callable[[], T]) -> Future[T]:
        """See `RunnerPool.begin`."""
        return self._background.submit(work)

    def broadcast(self, learners: RayLearnerGroup, policy: str, version: int) -> bool:
        """See `RunnerPool.broadcast`. After the loss of a runner, or of the way to it, the next channel is made without
        it. A way that fails for `MAX_CHANNEL_FAILURES` times in a row although nobody is lost is not tried again."""
        if not self._collective:
            return False
        replaced = self.replaced
        if self._broadcast(learners, policy, version):
            self._failures = 0
            return True
        self._channel = None
        self._failures += self.replaced == replaced
        if self._failures >= MAX_CHANNEL_FAILURES:
            self._collective = False
            _log.warning(
                "weights did not get from the learner to the runners directly, %d times in a row; from now on they go "
                "through Ray's object store. Set rollout.weight_transfer=objects to have that from the start, or set "
                "NCCL_SOCKET_IFNAME (without GPUs GLOO_SOCKET_IFNAME) on every node to the network device between them",
                self._failures,
            )
        return False

    def _broadcast(self, learners: RayLearnerGroup, policy: str, version: int) -> bool:
        ids = self.ready()
        processes = {i: self._processes[i] for i in ids}
        if self._channel is None or not self._channel.joins(learners, processes):
            self._channel = self._open_channel(learners, processes)
        if self._channel is None:
            return False
        update = WeightUpdate(policy, version, {}, learners.manifest, None)
        sending = learners.begin("send_weights", self._checked)
        versions = self._call({i: ("receive_weights", (update,), {}) for i in ids}, self._push_timeout_s)
        sent = all(learners.finish(sending, "send_weights"))
        if not sent or set(versions) != set(ids) or None in versions.values():
            return False
        check_acknowledged(update, list(versions.values()))
        self._weights[policy] = learners.snapshot(version)
        return True

    def _open_channel(self, learners: RayLearnerGroup, processes: dict[int, int]) -> Channel | None:
        """A channel between these, or None where not all of them came."""
        meeting = Meeting(*learners.address(), 1 + len(processes), CHANNEL_SHARE * self._push_timeout_s)
        opening = learners.begin("open_channel", meeting)
        calls: dict[int, Call] = {i: ("open_channel", (meeting, n), {}) for n, i in enumerate(processes, start=1)}
        came = self._call(calls, self._push_timeout_s)
        opened = all(learners.finish(opening, "open_channel"))
        return Channel(learners, processes) if opened and len(came) == len(processes) and all(came.values()) else None

    def push(self, shipment: Shipment) -> None:
        """See `RunnerPool.push`."""
        versions = self._everywhere("load_weights", shipment, timeout_s=self._push_timeout_s)
        check_acknowledged(shipment, list(versions.values()))
        self._weights[shipment.policy] = shipment

    def load_policies(self, folder: str, roles: Sequence[str] = ROLES) -> None:
        """See `RunnerPool.load_policies`. The folder must be on storage that every node sees."""
        for role in roles:
            self._weights.pop(role, None)  # not needed by who comes meanwhile, and perhaps lost with a learner's node
        self._everywhere("load_policies", os.path.abspath(folder), tuple(roles), timeout_s=START_TIMEOUT_S)
        # kept as weights, not as a path: old checkpoints are deleted while the run goes on
        for update in self.first("export_weights", tuple(roles)):
            self._weights[update.policy] = Shipment.send(update)

    def pop_timings(self) -> dict[str, float]:
        """See `RunnerPool.pop_timings`. Also how evenly the runners were busy, of which one process knows nothing."""
        totals: dict[str, float] = defaultdict(float, self._balance())
        for timings in self._everywhere("pop_timings", timeout_s=ANSWER_TIMEOUT_S).values():
            for name, value in timings.items():
                totals[name] += value
        return dict(totals)

    def _balance(self) -> dict[str, float]:
        """Seconds of the busiest runner, and the share of time that runners waited for each other or were away."""
        self.last_busy, self._busy = dict(self._busy), defaultdict(float)
        wall, self._wall = self._wall, 0.0
        seconds = self.last_busy
        if not seconds or not wall:
            return {}
        busiest = max(seconds, key=lambda key: seconds[key])
        usual = statistics.median(seconds.values())
        if len(seconds) > 2 and seconds[busiest] > STRAGGLER * usual and seconds[busiest] - usual > 1.0:
            _log.warning("runner %d on %s played for %.1f s, others about %.1f", *busiest, seconds[busiest], usual)
        idle = 1 - sum(seconds.values()) / (wall * self.size)
        return {"busiest_runner_s": seconds[busiest], "runner_idle_fraction": max(0.0, idle)}

    def grow(self, runners: int) -> None:
        """Start further runners. They join when they are up; nobody waits for them."""
        before = set(self._manager.actor_ids())
        self._group.add_workers(runners)
        for new in set(self._manager.actor_ids()) - before:
            self._manager.set_actor_state(new, healthy=False)  # a probe takes it in when its model is loaded
            self._unarmed.add(new)

    @property
    def size(self) -> int:
        """Runners, those that are away or still starting included."""
        return int(self._manager.num_actors())

    @property
    def num_ready(self) -> int:
        """Runners that answered when they were last asked."""
        return int(self._manager.num_healthy_actors())

    def close(self) -> None:
        """End the actors, and with them what `begin` began."""
        self._closed = True
        self._manager.clear()
        self._background.shutdown()

    # -- who is there -------------------------------------------------------------------------------------------

    def restore(self) -> list[int]:
        """Take replaced runners back, armed with the current weights; their ids. Waits only when none is left."""
        if self._closed:
            raise MemR1Error("the pool of runners is closed")
        self._look()
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._manager.healthy_actor_ids():
            if time.monotonic() > deadline:
                raise MemR1Error(
                    f"all runners are dead and none came back within {START_TIMEOUT_S:.0f} s; see Ray's logs"
                )
            time.sleep(0.5)  # a call to an actor that is being started may fail at once
            self._look(5.0)
        return self._arm(START_TIMEOUT_S)

    def _look(self, wait_s: float = 0.0) -> None:
        """Notice lost runners that are back. Each is asked once and listened to whenever this is called: there may be
        no room for it for hours, and every wait for it would be a wait for all."""
        healthy = set(self._manager.healthy_actor_ids())
        for i, actor in self._manager.actors().items():
            if i not in healthy | self._given_up and i not in self._asked:
                self._asked[i] = actor.ping.remote()
        if not self._asked:
            return
        asked = list(self._asked.values())
        if wait_s:
            ray.wait(asked, num_returns=1, timeout=wait_s)
        answered = set(ray.wait(asked, num_returns=len(asked), timeout=0)[0])
        for i in [i for i, reference in self._asked.items() if reference in answered]:
            try:
                ray.get(self._asked.pop(i))
            except RayError as error:
                if (refusal := _refusal(error)) is not None:
                    _log.warning("runner %d cannot be made, and the others go on without it: %s", i, refusal)
                    self._given_up.add(i)
                continue  # else it is being started: asked again the next time
            self._manager.set_actor_state(i, healthy=True)
            self._unarmed.add(i)

    def ready(self) -> list[int]:
        """Ids of runners that are alive and hold the current weights, at least one."""
        self.restore()
        while not (ids := self._manager.healthy_actor_ids()):
            self.restore()
        return ids

    def _arm(self, timeout_s: float) -> list[int]:
        """Give the current weights to runners that do not have them; ids of those that took them. Raises LearnersLost
        where the only copy went with a learner's node: everybody then goes back to the newest checkpoint."""
        wanted = [i for i in self._manager.healthy_actor_ids() if i in self._unarmed]
        if not wanted:
            return []
        arguments = {"token": self._token, "shipments": list(self._weights.values())}
        began = time.time()
        try:
            answers = self._send(
                {i: ("arm", arguments) for i in wanted}, timeout_s, f"was not ready after {timeout_s:.0f} s"
            )
        except WeightsLost as error:  # the learners that had them as well are gone, or the group is of no use
            raise LearnersLost(
                f"no runner can join any more: {error}. The last committed checkpoint is intact: run again with "
                "--resume auto"
            ) from error
        for i, answer in answers.items():
            apart = answer.clock - min(max(answer.clock, began), time.time())
            if abs(apart) > CLOCKS_APART_S:
                _log.warning(
                    "runner %d: the clock of %s is %.0f s %s the driver's, and times in logs and metrics do not fit "
                    "together; set the clocks of all nodes by NTP",
                    *(i, answer.node, abs(apart), "ahead of" if apart > 0 else "behind"),
                )
        self._unarmed -= set(answers)
        self._processes.update(list(answers))
        self.returned += [i for i in answers if self._processes[i] > 1]
        return list(answers)

    # -- calls --------------------------------------------------------------------------------------------------

    def _everywhere(self, method: str, *args: Any, timeout_s: float) -> dict[int, Any]:
        """Call a method of every runner that is ready; answers by runner. One that dies meanwhile is left out: it gets
        the current weights when it is back, but a change that is under way has to reach it as well."""
        answers: dict[int, tuple[int, Any]] = {}  # with the number of the process that gave it
        for _ in range(2 + MAX_LOSSES):
            missing = [i for i in self.ready() if i not in answers or answers[i][0] != self._processes[i]]
            if not missing:
                return {i: value for i, (_, value) in answers.items()}
            values = self._call({i: (method, args, {}) for i in missing}, timeout_s)
            answers |= {i: (self._processes[i], value) for i, value in values.items()}
        raise MemR1Error(f"runners keep dying in {method}; see the logs of Ray")

    def _call(self, calls: Mapping[int, Call], timeout_s: float) -> dict[int, Any]:
        """Values by runner; runners that died or had to be armed anew are missing. Raises what a runner raised."""
        sent = {
            i: ("call", {"token": self._token, "method": method, "args": tuple(args), "kwargs": dict(kwargs)})
            for i, (method, args, kwargs) in calls.items()
        }
        methods = {method for method, _, _ in calls.values()}
        clock = time.time()
        answers = self._send(sent, timeout_s, f"did not answer {', '.join(methods)} within {timeout_s:.0f} s")
        for i, answer in answers.items():
            self._note(i, calls[i][0], clock, answer)
        return {i: a.value for i, a in answers.items() if a.armed}

    def free(self) -> list[int]:
        """Ids of runners that were alive when they were last asked, and hold the current weights."""
        return [i for i in self._manager.healthy_actor_ids() if i not in self._unarmed]

    @property
    def missing(self) -> bool:
        """Whether a runner is alive that has no weights yet."""
        return bool(self._unarmed & set(self._manager.healthy_actor_ids()))

    def send(self, runner: int, method: str, part: list[Any], kwargs: Mapping[str, Any]) -> ray.ObjectRef:
        """Begin a call of one runner, to be taken in by `receive`."""
        call = {"token": self._token, "method": method, "args": (part,), "kwargs": dict(kwargs)}
        reference: ray.ObjectRef = self._manager.actors()[runner].call.remote(**call)
        return reference

    def receive(self, runner: int, method: str, clock: float, reference: ray.ObjectRef) -> Answer | None:
        """The answer to a call that has ended; None when the runner was lost. clock: when it was sent."""
        try:
            answer: Answer = ray.get(reference)
        except RayError as error:
            self._lost(runner, error)
            return None
        self._note(runner, method, clock, answer)
        return answer

    def give_up(self, runner: int, why: str) -> None:
        """Have Ray start a runner anew that takes too long."""
        self._lost(runner, TimeoutError(why))
        ray.kill(self._manager.actors()[runner], no_restart=False)

    def _note(self, runner: int, method: str, clock: float, answer: Answer) -> None:
        """Take down what a runner did, or that a new process has taken its place before anybody noticed."""
        if not answer.armed:
            self._unarmed.add(runner)
            return
        self._record(Span(f"runner {runner}", answer.node, method, clock, answer.seconds))
        if method == "play":
            self._busy[runner, answer.node] += answer.seconds

    def _send(self, calls: Mapping[int, tuple[str, dict[str, Any]]], timeout_s: float, late: str) -> dict[int, Answer]:
        ids = list(calls)
        results = self._manager.foreach_actor(
            [calls[i][0] for i in ids],
            kwargs=[calls[i][1] for i in ids],
            remote_actor_ids=ids,
            timeout_seconds=timeout_s,
        )
        answers: dict[int, Answer] = {}
        heard = set()
        result: Any
        for result in results:
            heard.add(result.actor_id)
            if result.ok:
                answers[result.actor_id] = result.get()
            else:
                self._lost(result.actor_id, result.get())
        for i in set(ids) - heard:
            self.give_up(i, late)
        for i, answer in answers.items():
            if answer.error is not None:
                answer.error.add_note(f"(runner {i})")
                raise answer.error
        return answers

    def _lost(self, runner: int, error: BaseException) -> None:
        """Take a runner out of service. Raises what its constructor raised: it would raise again."""
        if (refusal := _refusal(error)) is not None:
            raise refusal
        _log.warning("runner %d is lost and will be replaced: %s", runner, str(error).strip().split("\n")[0])
        self._manager.set_actor_state(runner, healthy=False)
        self._unarmed.add(runner)
        self.replaced += 1


def _refusal(error: BaseException) -> BaseException | None:
    """What the constructor of a runner raised, if that is why it is not there."""
    if not (isinstance(error, RayActorError) and error.actor_init_failed):
        return None
    cause = getattr(error.args[0] if error.args else None, "cause", None)
    return cause if isinstance(cause, MemR1Error) else error
