"""New weights on their way into an engine: strict, checked, versioned, and never beside old caches.

The journey between processes is tested where Ray is (tests/ray).
"""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from memr1.errors import MemR1Error
from memr1.models.adapters import PolicyModel
from memr1.rollout.engine import Completion, GenerationRequest, SamplingParams, WeightUpdate, checksum, in_parts
from memr1.rollout.transformers_engine import TransformersEngine
from tests.unit.small_models import build

PROMPTS = [tuple(range(3, 3 + n)) for n in (4, 20, 30)]


def make_engine(mode: str = "lora") -> TransformersEngine:
    return TransformersEngine(PolicyModel.create(build("llama"), ("manager", "answerer"), mode), (1,), 2)


def noisy(engine: TransformersEngine, role: str, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    weights = engine.policies.weights(role)
    return {n: (w.numpy() + 0.2 * rng.standard_normal(w.shape)).astype(np.float32) for n, w in weights.items()}


def play(engine: TransformersEngine, policy: str) -> list[Completion]:
    return engine.generate([GenerationRequest(p, policy, SamplingParams(8, 1.0, i)) for i, p in enumerate(PROMPTS)])


def outputs(completions: list[Completion]) -> list[Any]:
    return [(c.ids, c.logprobs) for c in completions]


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_after_new_weights_an_engine_that_has_generated_equals_a_fresh_one(mode: str) -> None:
    used = make_engine(mode)
    before = play(used, "manager")
    update = WeightUpdate.build("manager", 1, noisy(used, "manager", 0))
    assert used.load_weights(update) == 1
    after = play(used, "manager")
    fresh = make_engine(mode)
    fresh.load_weights(update)
    assert outputs(after) == outputs(play(fresh, "manager"))
    assert outputs(after) != outputs(before)
    gap = max(abs(a.logprobs[0] - b.logprobs[0]) for a, b in zip(before, after, strict=True))
    assert gap > 0.05


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_an_update_of_one_policy_leaves_the_others_bit_for_bit(mode: str) -> None:
    engine = make_engine(mode)
    engine.load_weights(WeightUpdate.build("answerer", 1, noisy(engine, "answerer", 5)))
    before = {policy: outputs(play(engine, policy)) for policy in ("base", "answerer")}
    engine.load_weights(WeightUpdate.build("manager", 1, noisy(engine, "manager", 0)))
    assert {policy: outputs(play(engine, policy)) for policy in before} == before
    assert before["base"] != before["answerer"] != outputs(play(engine, "manager"))


def test_completions_carry_the_version_of_the_policy_that_wrote_them() -> None:
    engine = make_engine()
    assert engine.weight_versions() == {"base": 0, "manager": 0, "answerer": 0}
    engine.load_weights(WeightUpdate.build("manager", 7, noisy(engine, "manager", 0)))
    assert engine.weight_versions() == {"base": 0, "manager": 7, "answerer": 0}
    for policy, version in (("manager", 7), ("answerer", 0), ("base", 0)):
        assert {c.weight_version for c in play(engine, policy)} == {version}


def damage(weights: dict[str, np.ndarray], how: str) -> dict[str, np.ndarray]:
    names = sorted(weights)
    if how == "missing":
        return {n: weights[n] for n in names[1:]}
    if how == "unknown":
        return {**weights, "model.layers.9.lora_A.weight": weights[names[0]]}
    return {**weights, names[0]: weights[names[0]][:-1]}


@pytest.mark.parametrize("how", ["missing", "unknown", "wrong shape"])
def test_weights_that_do_not_fit_are_refused_whole_and_named(how: str) -> None:
    engine = make_engine()
    before, kept = outputs(play(engine, "manager")), engine.policies.weights("manager")
    update = WeightUpdate.build("manager", 1, damage(noisy(engine, "manager", 0), how))
    with pytest.raises(MemR1Error, match=f"weights for role 'manager' do not fit this model; {how}: "):
        engine.load_weights(update)
    assert engine.weight_versions()["manager"] == 0
    assert all(torch.equal(w, kept[n]) for n, w in engine.policies.weights("manager").items())
    assert outputs(play(engine, "manager")) == before


def test_the_base_cannot_be_overwritten() -> None:
    engine = make_engine()
    with pytest.raises(MemR1Error, match="'base' is not a role"):
        engine.load_weights(WeightUpdate.build("base", 1, noisy(engine, "manager", 0)))


def test_a_flipped_bit_is_refused_by_the_checksum() -> None:
    engine = make_engine()
    update = WeightUpdate.build("manager", 3, noisy(engine, "manager", 0))
    tensors = {n: t.copy() for n, t in update.tensors.items()}
    name = sorted(tensors)[4]
    tensors[name].view(np.uint32).flat[0] ^= 1
    with pytest.raises(ValueError, match="manager v3 were damaged on the way"):
        engine.load_weights(replace(update, tensors=tensors))
    assert engine.weight_versions()["manager"] == 0


@pytest.mark.parametrize("how", ["missing", "unknown", "wrong shape"])
def test_tensors_that_differ_from_their_manifest_are_refused_and_named(how: str) -> None:
    update = WeightUpdate.build("manager", 3, {"b": np.ones((3, 2), np.float32), "a": np.zeros(2, np.float32)})
    update.verify()
    name = "model.layers.9.lora_A.weight" if how == "unknown" else "a"
    with pytest.raises(ValueError, match=rf"manager v3 do not match their manifest: \['{name}'\]"):
        replace(update, tensors=damage(dict(update.tensors), how)).verify()


def test_the_checksum_depends_on_names_and_values_and_not_on_order_or_memory_layout() -> None:
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(2, np.float32)
    reference = checksum({"a": a, "b": b})
    assert checksum({"b": b, "a": np.asfortranarray(a)}) == reference
    assert checksum({"a": a, "c": b}) != reference
    assert checksum({"a": a + 1, "b": b}) != reference


def test_loaded_weights_do_not_alias_read_only_arrays() -> None:
    engine = make_engine("full")
    weights = noisy(engine, "manager", 0)
    for w in weights.values():
        w.setflags(write=False)
    update = WeightUpdate.build("manager", 1, weights)
    engine.load_weights(update)
    with torch.no_grad():
        for p in engine.policies.trainable_parameters("manager").values():
            p.add_(1.0)
    update.verify()


def test_an_update_without_a_checksum_still_checks_names_and_shapes() -> None:
    engine = make_engine()
    update = WeightUpdate.build("manager", 3, noisy(engine, "manager", 0), checked=False)
    assert update.checksum is None
    assert engine.load_weights(update) == 3
    with pytest.raises(ValueError, match="do not match their manifest"):
        engine.load_weights(replace(update, tensors=damage(dict(update.tensors), "wrong shape")))


def test_parts_of_weights_keep_every_tensor_whole_and_in_order_and_within_the_size() -> None:
    sizes = {f"w{i}": 4 * n for i, n in enumerate((1, 2, 3, 50, 1, 1, 1, 1))}
    assert in_parts(sizes, 20) == [["w0", "w1"], ["w2"], ["w3"], ["w4", "w5", "w6", "w7"]]
    assert in_parts(dict(reversed(sizes.items())), 10**9) == [sorted(sizes)] and in_parts({}, 8) == []


def test_runners_have_as_long_for_new_weights_as_is_said_and_a_fifth_of_it_to_meet() -> None:
    from memr1.rllib.env_runner import Answer
    from memr1.rllib.pool import RayPool
    from memr1.rllib.shipment import Shipment

    asked: dict[str, tuple[float, Any]] = {}

    class Manager:
        """One runner that is always there."""

        actor_ids = healthy_actor_ids = lambda self: [1]

        def actors(self) -> dict[int, None]:
            return {1: None}

        def foreach_actor(self, methods: Any, *, kwargs: Any, timeout_seconds: float, **_: Any) -> list[Any]:
            (sent,) = kwargs
            asked[sent.get("method", methods[0])] = timeout_seconds, sent.get("args")
            answer = Answer(4, clock=time.time())
            return [SimpleNamespace(actor_id=1, ok=True, get=lambda: answer)]

    nothing: Any = None
    group: Any = SimpleNamespace(_worker_manager=Manager())
    learners: Any = SimpleNamespace(
        address=lambda: ("127.0.0.1", 1),
        begin=lambda *_: [],
        finish=lambda *_: [True],
        manifest={},
        snapshot=lambda version: Shipment("answerer", version, nothing, ()),
    )
    pool = RayPool(group, collective=True, push_timeout_s=50.0)
    pool.push(Shipment("answerer", 4, nothing, ()))
    assert asked["load_weights"][0] == 50.0
    assert pool.broadcast(learners, "answerer", 4)
    assert asked["receive_weights"][0] == asked["open_channel"][0] == 50.0
    assert asked["open_channel"][1][0].timeout_s == 10.0


@pytest.mark.usefixtures("learner_process")
@pytest.mark.parametrize(("mode", "dtype"), [("lora", "float32"), ("full", "float32"), ("full", "bfloat16")])
def test_in_one_process_a_runner_copies_from_the_learner_s_own_memory(
    mode: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Colocated: from the learner's parameters to the runner's there is one copy, the last one."""
    from memr1.learner.group import LocalLearnerGroup
    from memr1.models import weight_files
    from memr1.rollout.pool import LocalPool
    from tests.unit.scripted import make_config

    config = make_config(f"model.weights={mode}", f"model.dtype={dtype}")
    pool, group = LocalPool(config), LocalLearnerGroup(config, "manager", None)
    arrived: dict[str, torch.Tensor] = {}
    copy_into = weight_files.copy_into

    def watched(parameters: Any, weights: Any, what: str) -> None:
        arrived.update(weights)
        copy_into(parameters, weights, what)

    monkeypatch.setattr(weight_files, "copy_into", watched)
    try:
        own = group.learner.policies.trainable_parameters("manager")
        with torch.no_grad():
            for p in own.values():
                p.add_(0.5)
        pool.push(group.ship(1))
        mine = pool.runner.policies.trainable_parameters("manager")
        assert arrived.keys() == own.keys() == mine.keys()
        for name, p in own.items():
            assert arrived[name].data_ptr() == p.data_ptr()
            assert torch.equal(mine[name], p) and mine[name].data_ptr() != p.data_ptr()
    finally:
        group.close()
