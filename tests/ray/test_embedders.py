"""Embedders in actors of their own: the same run as with one in every runner, also when one of them dies."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from memr1.config import Config, MemoryConfig
from memr1.errors import MemR1Error
from memr1.memory.embed import CachedEmbedder, EmbedderLost, load_embedder
from tests.ray.programs import wait_until

APART = ("placement.num_embedders=2", "placement.embedders.cpus=0.2")


@pytest.fixture
def build(ray_cluster, make_config, tmp_path) -> Iterator[Callable[..., Any]]:
    """(name, *overrides) -> an algorithm, which is stopped at the end."""
    from memr1.rllib.algorithm import MemoryR1Config

    with ExitStack() as stack:

        def made(name: str, *overrides: str) -> Any:
            config = make_config(tmp_path, f"name={name}", "checkpoint.every_steps=100", *overrides)
            algorithm = MemoryR1Config().experiment(config).build_algo()
            stack.callback(algorithm.stop)
            return algorithm

        yield made


def started(embedding: Any, embedder: str = "hash", threads: int = 1) -> Any:
    """An embedder that claims no CPU."""
    import ray

    config = Config(memory=MemoryConfig(embedder=embedder))
    return ray.remote(embedding.EmbedderActor).options(num_cpus=0).remote(config, 1, threads)


def in_runner(algorithm: Any, look: Callable[[CachedEmbedder], Any]) -> Any:
    (result,) = algorithm.pool._manager.foreach_actor(lambda env_runner: look(env_runner.runner.world.embedder))
    return result.get()


def embedded(actor: Any) -> int:
    """Texts that an embedder has embedded."""
    import ray

    return ray.get(actor.__ray_call__.remote(lambda embedder: embedder._embedder.misses))


def is_gone(actor: Any) -> bool:
    """Ray ends an actor some time after it was told to."""
    import ray

    try:
        ray.get(actor.about.remote(), timeout=20)
    except ray.exceptions.RayActorError:
        return True
    return False


def tasks(algorithm: Any) -> list[Any]:
    from memr1.training.worlds import training_dialogues

    dialogues = training_dialogues(algorithm.trainer.config)
    return [t.task for t in algorithm.pool.map("build_tasks", dialogues, role="answerer", bank="oracle")]


def test_a_run_whose_embedders_are_apart_is_the_same_run_also_when_they_die(build):
    import ray

    own = build("own")
    expected, shown = [own.train()["learner"]["loss"] for _ in range(2)], tasks(own)
    own.stop()
    apart = build("apart", *APART)
    assert [apart.train()["learner"]["loss"] for _ in range(2)] == pytest.approx(expected, rel=1e-6)
    kind, asked = in_runner(apart, lambda embedder: (type(embedder.inner).__name__, embedder.misses))
    assert kind == "RemoteEmbedder"
    assert sum(map(embedded, apart._embedders)) == asked > 0
    for embedder in apart._embedders:
        ray.kill(embedder, no_restart=False)
    in_runner(apart, lambda embedder: embedder.forget())
    assert tasks(apart) == shown, "the memories that are retrieved for each question"
    assert sum(map(embedded, apart._embedders)) > 0
    assert apart.pool.replaced == 0


def test_another_embedder_is_asked_while_one_is_away_and_the_vectors_are_the_same(ray_cluster, monkeypatch):
    import ray

    from memr1.rllib import embedding

    texts = ["Ana lives in Porto", "Ben plays chess", "Ana lives in Porto"]
    expected = load_embedder("hash").embed(texts)
    made = [started(embedding) for _ in range(2)]
    try:
        remote = embedding.RemoteEmbedder(made, first=1)
        assert (remote.name, remote.dim) == ("hash-256", 256)
        np.testing.assert_array_equal(remote.embed(texts), expected)
        assert [embedded(e) for e in made] == [0, 2], "each text once, by the one that is first asked"
        ray.kill(made[1])
        wait_until(lambda: is_gone(made[1]), 60)
        np.testing.assert_array_equal(remote.embed(texts), expected)
        assert embedded(made[0]) == 2
        many = [f"memory {i}" for i in range(2 * embedding.CHUNK + 1)]
        np.testing.assert_array_equal(remote.embed(many), load_embedder("hash").embed(many))
        assert remote.embed([]).shape == (0, 256)
        monkeypatch.setattr(embedding, "AWAY_S", 2.0)
        ray.kill(made[0])
        wait_until(lambda: is_gone(made[0]), 60)
        with pytest.raises(EmbedderLost, match="none of 2 embedders answered .*--resume auto.*num_embedders=0"):
            CachedEmbedder(remote).embed(["something new"])
    finally:
        for embedder in made:
            ray.kill(embedder)


def test_an_answer_that_is_lost_with_its_node_is_asked_for_again(ray_cluster, monkeypatch):
    import ray
    from ray.exceptions import ObjectFetchTimedOutError, ObjectLostError, OwnerDiedError

    from memr1.rllib import embedding

    get, errors = ray.get, [ObjectLostError, OwnerDiedError, ObjectFetchTimedOutError]

    def lose(call: Any, **options: Any) -> Any:
        answer = get(call, **options)
        if errors:
            raise errors.pop()(call.hex(), "", "")
        return answer

    texts = ["Ana lives in Porto", "Ben plays chess"]
    actor = started(embedding)
    try:
        remote = embedding.RemoteEmbedder([actor])
        monkeypatch.setattr(ray, "get", lose)
        np.testing.assert_array_equal(remote.embed(texts), load_embedder("hash").embed(texts))
        assert errors == []
    finally:
        ray.kill(actor)


def test_an_embedder_that_hangs_is_passed_over(ray_cluster, monkeypatch):
    import ray

    from memr1.rllib import embedding

    made = [started(embedding) for _ in range(2)]
    try:
        remote = embedding.RemoteEmbedder(made)
        assert [embedded(e) for e in made] == [0, 0]
        made[0].__ray_call__.remote(lambda embedder: time.sleep(600))
        monkeypatch.setattr(embedding, "CALL_TIMEOUT_S", 5.0)
        assert remote.embed(["Ana lives in Porto"]).shape == (1, 256)
        assert embedded(made[1]) == 1
    finally:
        for embedder in made:
            ray.kill(embedder)


def test_embedders_that_die_at_once_are_told_from_those_that_are_late(ray_cluster, make_config, tmp_path, monkeypatch):
    from memr1.rllib import embedding
    from memr1.rllib.resources import Shares

    class Dies:
        def __init__(self, *_: Any) -> None: ...

        def about(self) -> tuple[str, int]:
            os._exit(1)

    config, claims = make_config(tmp_path, *APART), Shares(1, 0, 1, 0, 1, embedder_cpus=0.2)
    with monkeypatch.context() as patch:
        patch.setattr(embedding, "EmbedderActor", Dies)
        with pytest.raises(EmbedderLost, match="num_embedders: 2 embedders with 'hash' did not all live through"):
            embedding.start_embedders(config, claims)
    monkeypatch.setattr(embedding, "START_TIMEOUT_S", 0.0)
    with pytest.raises(EmbedderLost, match="2 embedders with 'hash' were not ready within 0 s"):
        embedding.start_embedders(config, claims)


@pytest.mark.model
def test_an_embedder_computes_with_the_threads_it_is_given(ray_cluster):
    import ray

    from memr1.rllib import embedding

    def threads(actor: Any) -> int:
        import torch

        actor.embed(["Ana lives in Porto"])
        return torch.get_num_threads()

    actor = started(embedding, "minilm", threads=2)
    try:
        assert ray.get(actor.__ray_call__.remote(threads)) == 2, "Ray gives an actor without CPUs one thread"
    finally:
        ray.kill(actor)


def test_an_embedder_is_given_as_many_threads_as_it_claims_cpus(ray_cluster, make_config, tmp_path, monkeypatch):
    import ray

    from memr1.rllib import embedding
    from memr1.rllib.resources import Shares

    class Told:
        def __init__(self, config: Config, number: int, threads: int) -> None:
            self.told = number, threads

        def about(self) -> tuple[int, int]:
            return self.told

    monkeypatch.setattr(embedding, "EmbedderActor", Told)
    for cpus, overrides, told in [(0.2, APART, [(1, 1), (2, 1)]), (2.0, ("placement.num_embedders=1",), [(1, 2)])]:
        config = make_config(tmp_path, *overrides)
        actors = embedding.start_embedders(config, Shares(1, 0, 1, 0, 1, embedder_cpus=cpus))
        assert ray.get([a.about.remote() for a in actors]) == told
        for actor in actors:
            ray.kill(actor)


def test_an_embedder_that_takes_long_writes_where_it_is(make_config, tmp_path):
    from memr1.rllib.embedding import EmbedderActor

    config = make_config(tmp_path, "stuck_after_s=0.1")
    actor = EmbedderActor(config, 3, 1)
    actor.__dict__["_embedder"] = SimpleNamespace(embed=lambda texts: time.sleep(2))
    actor.embed(["Ana lives in Porto"])
    (stacks,) = (config.run_dir / "stuck").iterdir()
    assert "embedder 3: embed has taken" in stacks.read_text()


def test_a_model_that_is_not_there_is_told_before_any_runner_starts(build):
    with pytest.raises(MemR1Error, match="embedder '/no/such/folder'"):
        build("nothing", "memory.embedder=/no/such/folder", *APART)


def test_a_tune_trial_reserves_room_for_its_embedders(ray_cluster, make_config, tmp_path, monkeypatch):
    import ray

    from memr1.rllib.algorithm import MemoryR1, MemoryR1Config

    def bundles(*overrides: str) -> list[dict[str, float]]:
        settings = MemoryR1Config().experiment(make_config(tmp_path, *overrides))
        return MemoryR1.default_resource_request(settings.to_dict()).bundles

    without, apart = bundles(), bundles(*APART)
    assert len(apart) == len(without) + 2
    assert apart[-2:] == [{"CPU": 0.2}] * 2
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert bundles("placement.num_embedders=2")[-2:] == [{"CPU": 1.0}] * 2, "a cluster is not there yet"
