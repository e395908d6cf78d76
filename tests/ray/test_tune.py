"""A search over two settings with Ray Tune, and the parts of RLlib that memr1 stands on."""

from __future__ import annotations

import dis
import inspect
import shutil
from pathlib import Path
from typing import Any

import pytest

from memr1.errors import MemR1Error


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_tuner_searches_over_two_settings_and_the_best_trial_goes_on_from_its_checkpoint(
    ray_cluster, make_config, tmp_path
):
    from ray import tune
    from ray.rllib.algorithms.algorithm import Algorithm

    from memr1.rllib.algorithm import MemoryR1, MemoryR1Config
    from memr1.training.runlog import read_metrics

    rates, sizes = [1e-2, 1e-4], [2, 4]
    space = {
        "stages.0.learning_rate": tune.grid_search(rates),
        "stages.0.examples_per_step": tune.grid_search(sizes),
    }
    config = make_config(tmp_path, "stages.0.steps=4")
    tuner = tune.Tuner(
        MemoryR1,
        param_space=MemoryR1Config().experiment(config).search(space),
        tune_config=tune.TuneConfig(metric="learner/loss", mode="min", max_concurrent_trials=1),
        run_config=tune.RunConfig(
            storage_path=str(tmp_path / "tune"),
            stop={"training_iteration": 3},
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=2),
            verbose=0,
        ),
    )
    results = tuner.fit()
    assert len(results) == 4 and not results.errors
    runs = {p.name: p for p in (tmp_path).glob("tiny-*")}
    assert len(runs) == 4, "every trial has a run folder of its own"
    seen = set()
    for result in results:
        search = result.config["memr1_search"]
        seen.add((search["stages.0.learning_rate"], search["stages.0.examples_per_step"]))
        lines = read_metrics(runs[f"tiny-{Path(result.path).name}"])
        assert [m["step"] for m in lines] == [1, 2, 3]
        assert lines[-1]["learner/learning_rate"] == search["stages.0.learning_rate"]
        assert lines[-1]["learner/loss"] == pytest.approx(result.metrics["learner"]["loss"])
    assert seen == {(rate, size) for rate in rates for size in sizes}
    best = results.get_best_result()
    assert best.config["memr1_search"]["stages.0.learning_rate"] == 1e-2  # the other one hardly moves in three steps
    again = Algorithm.from_checkpoint(best.checkpoint.path)
    try:
        assert again.training_iteration in (2, 3)  # every second step, and at the end
        while not again.trainer.done:
            again.train()
        assert again.training_iteration == 4
        assert again.trainer.config.stages[0].learning_rate == 1e-2
        assert [m["step"] for m in read_metrics(again.trainer.config.run_dir)] == [1, 2, 3, 4]
    finally:
        again.stop()


def test_a_setting_that_does_not_exist_is_refused_before_a_trial_starts(ray_cluster, make_config, tmp_path):
    from memr1.rllib.algorithm import MemoryR1Config

    config = MemoryR1Config().experiment(make_config(tmp_path)).search({"stages.0.learning_rat": 1e-3})
    with pytest.raises(MemR1Error, match=r"stages\.0\.learning_rat is not a field .*did you mean learning_rate"):
        config.validate()


def test_restoring_in_place_goes_back_to_the_checkpoint(ray_cluster, make_config, tmp_path):
    from memr1.rllib.algorithm import MemoryR1Config

    heard: list[int] = []
    builder = MemoryR1Config().experiment(make_config(tmp_path, "stages.0.learning_rate=1e-2"))
    builder.callbacks(on_checkpoint_loaded=lambda algorithm, **_: heard.append(algorithm.training_iteration))
    algorithm = builder.build_algo()
    try:
        algorithm.train()
        folder = algorithm.save_to_path(str(tmp_path / "saved"))
        losses = [algorithm.train()["learner"]["loss"] for _ in range(2)]
        algorithm.restore(folder)
        shutil.rmtree(folder)  # as Tune does with what it fetched
        assert heard == [1]
        assert algorithm.trainer.checkpoint.parent == algorithm.trainer.config.run_dir / "checkpoints"
        assert algorithm.training_iteration == 1
        assert [algorithm.train()["learner"]["loss"] for _ in range(2)] == pytest.approx(losses, abs=1e-7)
    finally:
        algorithm.stop()


def attributes(cls: type) -> set[str]:
    """What methods of a class keep in its instances, and its own names."""
    methods = (inspect.unwrap(f) for c in cls.__mro__ for f in vars(c).values() if inspect.isfunction(f))
    return {i.argval for f in methods for i in dis.get_instructions(f) if i.opname == "STORE_ATTR"} | set(dir(cls))


def test_the_surface_of_rllib_that_memr1_uses_is_there():
    """Names and parameters that memr1 calls or overrides, some of them not public. A release of Ray that changes one
    shows here by name, before it shows as a hang."""
    from ray.rllib.algorithms.algorithm import Algorithm
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from ray.rllib.callbacks.utils import make_callback
    from ray.rllib.env.env_runner import EnvRunner
    from ray.rllib.env.env_runner_group import EnvRunnerGroup
    from ray.rllib.utils import force_list
    from ray.rllib.utils.actor_manager import CallResult, FaultTolerantActorManager
    from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

    surface: dict[Any, dict[str, list[str] | None]] = {
        Algorithm: {
            "setup": ["config"],
            "step": [],
            "training_step": [],
            "restore_env_runners": ["env_runner_group"],
            "get_state": ["components", "not_components", "kwargs"],
            "set_state": ["state"],
            "get_checkpointable_components": [],
            "get_ctor_args_and_kwargs": [],
            "save_to_path": ["path", "state", "filesystem", "use_msgpack"],
            "restore_from_path": ["path", "args", "kwargs"],
            "cleanup": [],
            "get_default_config": [],
            "default_resource_request": ["config"],
            "_set_up_metrics": [],
            "_setup_logdir": [],
        },
        AlgorithmConfig: {
            "validate": [],
            "build_algo": ["env", "use_copy"],
            "get_state": [],
            "update_from_dict": ["config_dict"],
            "copy": ["copy_frozen"],
            "callbacks": None,
        },
        EnvRunnerGroup: {"add_workers": ["num_workers", "validate"], "_make_worker": None},
        EnvRunner: {
            "sample": ["kwargs"],
            "ping": [],
            "get_spaces": [],
            "assert_healthy": [],
            "get_metrics": [],
            "stop": [],
        },
        FaultTolerantActorManager: {
            "num_actors": [],
            "num_healthy_actors": [],
            "healthy_actor_ids": [],
            "actor_ids": [],
            "actors": [],
            "set_actor_state": ["actor_id", "healthy"],
            "clear": [],
        },
        CallResult: {"get": []},
        MetricsLogger: {"delete": ["key", "key_error"]},
    }
    for cls, methods in surface.items():
        for method, expected in methods.items():
            # Ray adds one to methods of classes that were made actors
            names = inspect.signature(getattr(cls, method)).parameters
            found = [p for p in names if p not in ("self", "cls", "_ray_trace_ctx")]
            assert expected is None or found == expected, f"{cls.__name__}.{method} has parameters {found}"
    taken: dict[Any, set[str]] = {
        FaultTolerantActorManager.foreach_actor: {"func", "kwargs", "remote_actor_ids", "timeout_seconds"},
        EnvRunnerGroup: {"config", "local_env_runner", "tune_trial_id"},
        AlgorithmConfig.env_runners: {"num_cpus_per_env_runner", "num_gpus_per_env_runner"},
        AlgorithmConfig.learners: {"num_cpus_per_learner", "num_gpus_per_learner"},
        AlgorithmConfig.resources: {"num_cpus_for_main_process"},
        MetricsLogger.log_value: {"key", "value", "reduce"},
        make_callback: {"callback_name", "callbacks_objects", "callbacks_functions", "kwargs"},
    }
    for function, some in taken.items():
        assert some <= inspect.signature(function).parameters.keys(), function.__qualname__
    kept: dict[Any, set[str]] = {
        Algorithm: {
            *("_storage", "_iteration", "_logdir", "training_iteration", "trial_id"),
            *("config", "metrics", "callbacks", "env_runner_group"),
        },
        EnvRunner: {"config", "worker_index"},
        EnvRunnerGroup: {"_worker_manager", "_remote_args", "_remote_config"},
        CallResult: {"ok", "actor_id"},
    }
    for cls, names in kept.items():
        assert names <= attributes(cls), f"{cls.__name__} lacks {names - attributes(cls)}"
    assert force_list(None) == [] and force_list(int) == [int]
    config = AlgorithmConfig()
    for field in (
        "restart_failed_env_runners", "delay_between_env_runner_restarts_s", "create_local_env_runner",
        "validate_env_runners_after_construction", "_dont_auto_sync_env_runner_states", "env_runner_cls",
        "log_sys_usage", "callbacks_class", "callbacks_on_algorithm_init", "callbacks_on_env_runners_recreated",
        "num_env_runners", "num_learners",
    ):  # fmt: skip
        assert hasattr(config, field), field
