"""MemoryR1Config and MemoryR1: RLlib's names for an experiment and its training.

    algo = MemoryR1Config().experiment("configs/train_local.yaml", ["rollout.num_runners=4"]).build_algo()
    while not (result := algo.train())["done"]:
        print(result["reward"]["mean"])

Shells: the training step is `memr1.training.loop.Trainer.step`. RLlib contributes the actors and their restarts
(EnvRunnerGroup), metrics, callbacks, checkpointing as Tune wants it, and resource requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils import force_list
from ray.tune import PlacementGroupFactory
from ray.util.debug import log_once

from memr1.config import Config
from memr1.config_file import load_config, with_overrides
from memr1.errors import MemR1Error
from memr1.rllib.cluster import connect
from memr1.rllib.embedding import start_embedders
from memr1.rllib.env_runner import DialogueEnvRunner
from memr1.rllib.learner_group import RayLearnerGroup
from memr1.rllib.placement import (
    Node,
    claim,
    cluster_nodes,
    ensure,
    leaving_nodes,
    reserve_learners,
    room_for,
    runner_options,
)
from memr1.rllib.pool import RayPool
from memr1.rllib.recovery import Recovery
from memr1.rllib.resources import Shares, by_collective, shares
from memr1.rllib.telemetry import Telemetry
from memr1.rllib.timeline import Timeline
from memr1.storage import copy
from memr1.training.checkpoints import adopt
from memr1.training.loop import Trainer
from memr1.training.run import prepare_folder
from memr1.training.runlog import RunLog

OWN_CHECKPOINT = "memr1"
"""Folder inside an RLlib checkpoint that holds memr1's own."""


class MemoryR1Config(AlgorithmConfig):
    """An RLlib configuration that carries a memr1 experiment. Settings of RLlib that concern gymnasium environments,
    connectors and RLModules have no effect."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or MemoryR1)
        self.memr1: Config | None = None
        self.memr1_resume = "never"
        self.memr1_search: dict[str, Any] = {}
        self.memr1_waits = False
        self.claims: Shares | None = None
        self.placement_plan: list[str] = []
        self.embedders: tuple[Any, ...] = ()
        self.env_runner_cls: Any = DialogueEnvRunner
        self.log_sys_usage = False
        self.create_local_env_runner = False
        # the pool waits for the runners itself, with a limit
        self.validate_env_runners_after_construction = False
        self.restart_failed_env_runners = True
        self.delay_between_env_runner_restarts_s = 1.0
        # weights go through the pool, which waits for acknowledgements
        self._dont_auto_sync_env_runner_states = True

    def experiment(
        self, config: Config | str | Path, overrides: Sequence[str] = (), *, resume: str = "never"
    ) -> MemoryR1Config:
        """What to train: a memr1 Config or a YAML file with `key=value` overrides.

        resume: as in `memr1 train`: `never`, `auto` or the path of a checkpoint of the run.
        """
        if isinstance(config, Config):
            if overrides:
                raise MemR1Error("overrides change a YAML file; give its path, or change the Config with replace()")
            self.memr1 = config
        else:
            self.memr1 = load_config(config, overrides)
        self.memr1_resume = resume
        return self

    def search(self, space: Mapping[str, Any]) -> MemoryR1Config:
        """Settings for a Tuner to vary: keys as in overrides (`stages.0.learning_rate`), values of `ray.tune`
        (`tune.grid_search([...])`, `tune.loguniform(...)`)."""
        self.memr1_search = dict(space)
        return self

    def validate(self) -> None:
        """Check the experiment and fit the actors to the cluster, where one is connected."""
        log_once("MemoryR1_on_new_api_stack")  # else RLlib warns of a migration that concerns no user of memr1
        super().validate()
        if self.memr1 is None:
            raise MemR1Error("MemoryR1Config: no experiment; call .experiment(path_or_config) first")
        if self.memr1_search:
            self.memr1 = with_overrides(self.memr1, self.memr1_search)
        if not self.memr1.stages:
            raise MemR1Error("stages: the configuration has none; see configs/train_local.yaml for an example")
        self.num_env_runners = self.memr1.rollout.num_runners
        self.num_learners = self.memr1.learner.num_learners
        if not ray.is_initialized():
            return
        experiment = self.memr1

        def claims(nodes: Sequence[Node]) -> Shares:
            cpus, gpus = (sum(n.total.get(r, 0.0) for n in nodes) for r in ("CPU", "GPU"))
            return shares(experiment, cpus, gpus, sum(1 for n in nodes if n.total.get("CPU")))

        if ray.util.get_current_placement_group() is None and not self.memr1_waits:
            self.claims, self.placement_plan = ensure(experiment, claims, cluster_nodes)
        else:  # a Tune trial has reserved what `default_resource_request` asked for
            self.claims = claims(cluster_nodes())
        # RLlib says int, Ray takes fractions
        runner_claims: dict[str, Any] = {
            "num_cpus_per_env_runner": self.claims.runner_cpus,
            "num_gpus_per_env_runner": self.claims.runner_gpus,
        }
        self.env_runners(**runner_claims)
        driver_claim: Any = min(1.0, self.claims.runner_cpus)  # of a Tune trial, whose driver is an actor as well
        self.resources(num_cpus_for_main_process=driver_claim)
        # our own learner group goes by `claims`; these are what a Tune trial reserves
        self.learners(num_cpus_per_learner=self.claims.learner_cpus, num_gpus_per_learner=self.claims.learner_gpus)

    def build_algo(self, *args: Any, **kwargs: Any) -> Any:
        """Start what trains. Connects to a cluster, or starts one on this machine, unless that has been done."""
        connect()
        return super().build_algo(*args, **kwargs)


class RunnerGroup(EnvRunnerGroup):
    """RLlib's group, with a word on where its actors go."""

    _remote_config: Any

    def _make_worker(self, **kwargs: Any) -> Any:
        self._remote_args |= runner_options(self._remote_config.memr1)
        return super()._make_worker(**kwargs)


class MemoryR1(Algorithm):
    """Trains an experiment; one iteration is one optimizer step."""

    config: Any  # a MemoryR1Config; RLlib declares a base class that may be None
    metrics: Any
    trainer: Trainer
    pool: RayPool
    recovery: Recovery
    step_metrics: dict[str, float]
    """Metrics of the last step, by flat name."""
    _embedders: tuple[Any, ...] = ()
    """Actors, where embedders stand apart."""

    @classmethod
    def get_default_config(cls) -> MemoryR1Config:
        """See RLlib."""
        return MemoryR1Config()

    @classmethod
    def default_resource_request(cls, config: Any) -> Any:
        """What a Tune trial reserves. It waits in Tune's queue until there is room, so none has to be free now. Where
        no cluster is connected, every actor wants a whole CPU."""
        waiting = {**config, "memr1_waits": True}
        request: Any = super().default_resource_request(waiting)
        settings: Any = cls.get_default_config().update_from_dict(waiting)
        settings.validate()
        claims = settings.claims or shares(settings.memr1, 0.0, 0.0, 0)
        embedders = range(settings.memr1.placement.num_embedders)
        bundles = [claim(claims.embedder_cpus, claims.embedder_gpus) for _ in embedders]
        return PlacementGroupFactory(request.bundles + bundles, strategy=request.strategy)

    def setup(self, config: Any) -> None:
        """Start the runners and the trainer. Builds none of RLlib's Learners, RLModules and connectors."""
        experiment = self._experiment()
        # a trial that is started again finds its own folder
        checkpoint = prepare_folder(experiment, self.config.memr1_resume if self._storage is None else "auto")
        self.callbacks = [cls() for cls in force_list(self.config.callbacks_class)]
        self._log = RunLog(experiment.run_dir, tensorboard=experiment.tensorboard)
        self._set_up_metrics()
        self.step_metrics = {}
        self._telemetry = Telemetry(experiment.name)
        self._timeline = Timeline(experiment.run_dir)
        self._bundles, self.env_runner_group = None, None
        try:
            self._bundles = reserve_learners(experiment, self.config.claims)
            self._embedders = start_embedders(experiment, self.config.claims)
            self.env_runner_group = RunnerGroup(
                config=self._for_runners(experiment), local_env_runner=False, tune_trial_id=self.trial_id
            )
            self.pool = RayPool(
                self.env_runner_group,
                self._timeline.record,
                parts_per_runner=experiment.rollout.parts_per_runner,
                collective=by_collective(experiment, self.config.claims),
                verify_weights=experiment.rollout.verify_weights,
                push_timeout_s=experiment.rollout.push_timeout_s,
            )
            self.trainer = Trainer(experiment, self.pool, self._make_learners, self._log, checkpoint)
            self.recovery = Recovery(self.trainer)
            make_callback(
                "on_algorithm_init",
                self.callbacks,
                self.config.callbacks_on_algorithm_init,
                kwargs={"algorithm": self, "metrics_logger": self.metrics},
            )
        except BaseException:
            self.cleanup()  # nobody has an algorithm yet that could be stopped
            raise

    def _setup_logdir(self) -> None:
        """Without Tune, RLlib would leave an empty folder in the home directory for every run."""
        if self._storage is not None:
            super()._setup_logdir()
        else:
            self._logdir: Any = str(self._experiment().run_dir)

    def _experiment(self) -> Config:
        """The experiment with paths that mean the same in other processes: actors have other working directories.

        Every trial of a Tuner has a run folder of its own."""
        config = self.config.memr1
        name = config.name if self._storage is None else f"{config.name}-{self._storage.trial_dir_name}"

        def in_full(place: str) -> str:
            return place if "://" in place else str(Path(place).resolve())

        def absolute(name: str) -> str:
            return str(Path(name).resolve()) if Path(name).is_dir() else name

        return replace(
            config,
            name=name,
            output=in_full(config.output),
            model=replace(config.model, name=absolute(config.model.name)),
            data=replace(config.data, cache=config.data.cache and in_full(config.data.cache)),
            memory=replace(config.memory, embedder=absolute(config.memory.embedder)),
            stages=tuple(replace(s, traces=s.traces and str(Path(s.traces).resolve())) for s in config.stages),
        )

    def _for_runners(self, experiment: Config) -> MemoryR1Config:
        """What runners are made from: with the paths of `_experiment`, as learners get them."""
        config: MemoryR1Config = self.config.copy(copy_frozen=False)
        config.memr1, config.embedders = experiment, self._embedders
        return config

    def _make_learners(self, config: Config, role: str, policies: str | None) -> RayLearnerGroup:
        return RayLearnerGroup(config, role, policies, self.config.claims, self._bundles, self._timeline.record)

    def _free_learners(self) -> None:
        if self._bundles is not None:
            ray.util.remove_placement_group(self._bundles)
            self._bundles = None

    # -- an iteration -------------------------------------------------------------------------------------------

    def step(self) -> dict[str, Any]:
        """RLlib's iteration around `training_step`; `done` is true after the last stage, which ends a Tune trial. Where
        learners were lost, the one that gets further than all before (see `Recovery.step`)."""
        result: dict[str, Any] = self.recovery.step(super().step)
        result["done"] = self.trainer.done
        return result

    def training_step(self) -> None:
        """One optimizer step."""
        if self.trainer.done:
            raise MemR1Error("all stages are through; set `done` stops a loop around train() in time")
        logged = set(self.step_metrics)
        self._take_in_runners()
        self.step_metrics = self.trainer.step()
        self._timeline.end_step(self.trainer.state.step, self.step_metrics)  # at once: it counts back from now
        if self._learners_leave():
            self.trainer.save()  # when the node is gone, there is nothing but the step of then to do again
        pool = self.pool
        self._telemetry.publish(self.trainer.state.step, self.step_metrics, pool.num_ready, pool.size, pool.last_busy)
        for name in logged - set(self.step_metrics):
            # a stage without rollouts must not show the rewards of the last one
            self.metrics.delete(*name.split("/"), key_error=False)
        for name, value in self.step_metrics.items():
            self.metrics.log_value(tuple(name.split("/")), value, reduce="item")

    def _learners_leave(self) -> bool:
        """Whether the node of a learner has been told to go."""
        learners = self.trainer.learners
        return isinstance(learners, RayLearnerGroup) and not leaving_nodes().isdisjoint(learners.node_ids)

    def _take_in_runners(self) -> None:
        """Start further runners where nodes that joined have room, up to `placement.max_runners`."""
        experiment = self.config.memr1
        missing = experiment.placement.max_runners - self.pool.size
        if missing <= 0 or ray.util.get_current_placement_group() is not None:
            return
        if room := room_for(experiment, self.config.claims, cluster_nodes(), missing):
            self.pool.grow(room)

    def restore_env_runners(self, env_runner_group: EnvRunnerGroup) -> list[int]:
        """Take back replaced runners, with the current weights; RLlib's own version asks an RLModule for them."""
        self.pool.restore()
        returned, self.pool.returned = self.pool.returned, []
        return returned

    # -- checkpoints --------------------------------------------------------------------------------------------

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        """The iteration. Everything else is in memr1's own checkpoint beside it, see `save_to_path`."""
        return {"training_iteration": self.training_iteration}

    def set_state(self, state: dict[str, Any]) -> None:
        """See `get_state`."""
        self._iteration = state["training_iteration"]

    def get_checkpointable_components(self) -> list[tuple[str, Any]]:
        """None that RLlib could save by itself."""
        return []

    def get_ctor_args_and_kwargs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """`from_checkpoint` goes on in the same run folder."""
        return (self.config.get_state() | {"memr1": self.trainer.config, "memr1_resume": "auto"},), {}

    def save_to_path(self, path: Any = None, **kwargs: Any) -> str:
        """Commit a checkpoint of the run and copy it, whole, into RLlib's format; returns the path."""
        if self.trainer.state.step == 0:
            raise MemR1Error("there is nothing to save before the first step")
        folder = super().save_to_path(path, **kwargs)
        copy(self.trainer.save(), str(Path(folder) / OWN_CHECKPOINT))  # a working copy lacks what is large
        return folder

    def restore_from_path(self, path: Any, *args: Any, **kwargs: Any) -> None:
        """Go back to a checkpoint; the run's log is cut off after it. It becomes one of the run's own: Tune deletes the
        folder that it hands in, and another trial's is not ours to read later."""
        super(Algorithm, self).restore_from_path(path, *args, **kwargs)
        self.trainer.resume_from(adopt(Path(path) / OWN_CHECKPOINT, self.trainer.config.run_dir))

    def cleanup(self) -> None:
        """End learners, runners and embedders, as far as `setup` came."""
        if hasattr(self, "trainer"):
            self.trainer.close()
        elif (runners := getattr(self, "env_runner_group", None)) is not None:
            runners._worker_manager.clear()
        if hasattr(self, "_bundles"):
            self._log.close()
            for embedder in self._embedders:
                ray.kill(embedder)
            self._free_learners()
