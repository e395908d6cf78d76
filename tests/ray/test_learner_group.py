"""Learner groups of two ranks over gloo: the same mathematics as one rank, and no hang when a rank is lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from memr1.learner.deepspeed_learner import UpdateSettings
from memr1.learner.packing import TrainSequence, plan_microbatches
from memr1.rllib.resources import Shares
from memr1.training.run import prepare_folder

HALF = Shares(runner_cpus=0.5, runner_gpus=0.0, learner_cpus=0.5, learner_gpus=0.0, runners_per_node=1)


def sequences(seed: int, count: int = 12) -> list[TrainSequence]:
    """Prompts in pairs, so that prefixes are shared; advantages that do not sum to zero exercise every term."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(count):
        prompt = tuple(np.random.default_rng(1000 * seed + i // 2).integers(5, 200, 20).tolist())
        completion = tuple(rng.integers(5, 200, int(rng.integers(3, 9))).tolist())
        logprobs = tuple((-5.5 + 0.1 * rng.standard_normal(len(completion))).tolist())
        out.append(TrainSequence(prompt, completion, (True,) * len(completion), float(rng.normal()), logprobs))
    return out


def train(
    config, work: Sequence[Sequence[TrainSequence]], *, restore: str | None = None, save: str | None = None
) -> tuple[dict[str, np.ndarray], list[float]]:
    from memr1.rllib.learner_group import RayLearnerGroup

    prepare_folder(config, "auto")
    group = RayLearnerGroup(config, "answerer", None, HALF)
    try:
        losses = []
        if restore is not None:
            group.restore(restore)
        for batch in work:
            plan = plan_microbatches(
                batch,
                num_ranks=config.learner.num_learners,
                max_tokens_per_microbatch=64,
                pad_id=0,
                share_prefixes=group.supports_shared_prefixes(),
            )
            settings = UpdateSettings("grpo", 1e-3, plan.trained_tokens, plan.trained_sequences, temperature=1.0)
            losses.append(sum(s["loss"] for s in group.update(plan, settings)))
        if save is not None:
            group.save(save)
        return dict(group.ship(1).receive().tensors), losses
    finally:
        group.close()


@pytest.fixture(scope="module")
def one_rank(ray_cluster, make_config, tmp_path_factory):
    return train(make_config(tmp_path_factory.mktemp("one")), [sequences(1), sequences(2)])


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_two_ranks_train_the_same_weights_as_one(ray_cluster, make_config, tmp_path, one_rank, zero_stage):
    config = make_config(tmp_path, "learner.num_learners=2", f"learner.zero_stage={zero_stage}")
    weights, losses = train(config, [sequences(1), sequences(2)])
    expected, expected_losses = one_rank
    assert losses == pytest.approx(expected_losses, abs=1e-5)
    assert weights.keys() == expected.keys()
    gaps = {name: float(np.abs(weights[name] - expected[name]).max()) for name in weights}
    assert max(gaps.values()) < 1e-5, max(gaps.items(), key=lambda item: item[1])
    moved = max(float(np.abs(w).max()) for name, w in weights.items() if "lora_B" in name)
    assert moved > 1e-3  # the second half of an adapter starts at zero


def test_at_zero_0_one_rank_goes_on_where_two_stopped(ray_cluster, make_config, tmp_path, one_rank):
    folder = str(tmp_path / "learner")
    _, first = train(make_config(tmp_path, "learner.num_learners=2"), [sequences(1)], save=folder)
    weights, second = train(make_config(tmp_path), [sequences(2)], restore=folder)
    expected, expected_losses = one_rank
    assert first + second == pytest.approx(expected_losses, abs=1e-5)
    assert max(float(np.abs(weights[name] - expected[name]).max()) for name in weights) < 1e-5


def test_a_rank_that_dies_or_hangs_fails_the_group_with_its_name(ray_cluster, make_config, tmp_path):
    import ray

    from memr1.rllib.learner_group import LearnersLost, RayLearnerGroup

    config = make_config(tmp_path, "learner.num_learners=2", "learner.collective_timeout_s=8", "stuck_after_s=2")
    batch = sequences(3)
    plan = plan_microbatches(batch, num_ranks=2, max_tokens_per_microbatch=64, pad_id=0)
    settings = UpdateSettings("grpo", 1e-3, plan.trained_tokens, plan.trained_sequences, temperature=1.0)
    prepare_folder(config, "auto")
    group = RayLearnerGroup(config, "answerer", None, HALF)
    stopped = 0
    try:
        stopped = group.foreach_learner(lambda learner: os.getpid())[1]
        os.kill(stopped, signal.SIGSTOP)
        start = time.monotonic()
        with pytest.raises(LearnersLost, match="failed in update: rank 0 said .*rank 1 did not answer"):
            group.update(plan, settings)
        assert time.monotonic() - start < 8 + 10 + 10
        stacks = "\n".join(path.read_text() for path in (config.run_dir / "stuck").iterdir())
        assert "learner 0: update has taken" in stacks and "all_reduce" in stacks, "where the other rank waits for it"
        os.kill(stopped, signal.SIGCONT)
        stopped = 0
        ray.kill(group.actors[1])
        with pytest.raises(LearnersLost, match="rank 1 died"):
            group.supports_shared_prefixes()
    finally:
        if stopped:
            os.kill(stopped, signal.SIGCONT)  # a stopped process cannot be ended by Ray
        group.close()


def test_weights_go_from_rank_0_to_the_store_in_parts_and_outlive_it(ray_cluster, make_config, tmp_path, monkeypatch):
    import ray

    from memr1.rllib import learner_group

    monkeypatch.setattr(learner_group, "PART_BYTES", 4096)
    config = make_config(tmp_path, "learner.num_learners=2", "learner.zero_stage=3")
    prepare_folder(config, "auto")
    group = learner_group.RayLearnerGroup(config, "answerer", None, HALF)
    try:
        shipment, later = group.ship(5), group.snapshot(6)
        weights = group.foreach_learner(lambda learner: learner.weights())[0]
    finally:
        group.close()
    for sent, version in ((shipment, 5), (later, 6)):
        update = sent.receive()
        update.verify()
        assert (sent.policy, sent.version, update.policy, update.version) == ("answerer", version) * 2
        assert update.tensors.keys() == weights.keys()
        assert all(np.array_equal(update.tensors[name], weights[name]) for name in weights)
    assert shipment.receive().checksum is not None and later.receive().checksum is None
    parts = [ray.get(part) for part in shipment.parts]
    assert len(parts) > 5 and all(len(p) == 1 or sum(t.nbytes for t in p.values()) <= 4096 for p in parts)


def test_an_error_of_a_rank_comes_out_as_it_is(ray_cluster, make_config, tmp_path):
    from memr1.errors import MemR1Error
    from memr1.rllib.learner_group import RayLearnerGroup

    config = make_config(tmp_path)
    prepare_folder(config, "auto")
    with pytest.raises(MemR1Error, match="nothing"):
        RayLearnerGroup(config, "answerer", str(tmp_path / "nothing"), HALF)


@pytest.mark.parametrize("when", ["between two steps", "half-way through a checkpoint"])
def test_a_lost_learner_is_replaced_from_the_checkpoint_and_nothing_is_different(
    ray_cluster, make_config, tmp_path, when
):
    import ray

    from memr1.rllib.session import RaySession
    from memr1.training.local import LocalSession
    from memr1.training.run import prepare_folder
    from memr1.training.runlog import RunLog, read_metrics

    def die_writing(learner) -> None:
        """Make the next checkpoint end the process in the middle of the learner's part of it."""

        def save(folder: str) -> None:
            Path(folder).mkdir(parents=True)
            (Path(folder) / "half").write_bytes(b"half of it")
            os._exit(1)

        learner.save = save

    def open_session(kind: type, name: str):
        config = make_config(tmp_path, f"name={name}", "stages.0.learning_rate=1e-2")
        prepare_folder(config, "never")
        return kind(config, RunLog(config.run_dir), None)

    local, session = open_session(LocalSession, "local"), open_session(RaySession, "ray")
    try:
        expected = [local.step()["learner/loss"] for _ in range(4)]
        got = [session.step()["learner/loss"] for _ in range(2)]
        if when == "between two steps":
            ray.kill(session.trainer.learners.actors[0])
        else:
            session.trainer.learners.foreach_learner(die_writing)
        got += [session.algorithm.train()["learner"]["loss"] for _ in range(2)]
        assert session.algorithm.recovery.restarts == 1
        assert session.algorithm.training_iteration == 4, "catching up is part of an iteration"
        folders = sorted(p.name for p in (session.trainer.config.run_dir / "checkpoints").iterdir())
        assert folders[-1] == "step_000004" and not any("partial" in name for name in folders)
        assert not list(session.trainer.config.run_dir.rglob("half"))
        assert got == pytest.approx(expected, abs=1e-6)
        assert [line["step"] for line in read_metrics(session.trainer.config.run_dir)] == [1, 2, 3, 4]
        assert ray.is_initialized()  # the session found a cluster and has to leave it
    finally:
        local.close()
        session.close()
    assert ray.is_initialized()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_learner_killed_in_an_update_while_groups_are_played_ahead_changes_nothing(
    ray_cluster, make_config, tmp_path
):
    """The batch that was played ahead is taken from the checkpoint, since the weights that played it are gone."""
    import ray

    from memr1.rllib.session import RaySession
    from memr1.training.local import LocalSession
    from memr1.training.run import prepare_folder
    from memr1.training.runlog import RunLog, read_metrics
    from tests.ray.test_training import LEARNABLE, with_grpo

    settings = [s for s in LEARNABLE if "every_steps" not in s] + ["rollout.max_staleness=1"]

    def open_session(kind: type, name: str):
        config = with_grpo(make_config(tmp_path, f"name={name}", "checkpoint.every_steps=2", *settings), 5)
        prepare_folder(config, "never")
        return kind(config, RunLog(config.run_dir), None)

    local, session = open_session(LocalSession, "local"), open_session(RaySession, "ray")
    try:
        expected = [local.step() for _ in range(65)]
        trainer = session.trainer
        got = [session.step() for _ in range(63)]
        update = trainer._update

        def killed(learners, sequences, **kwargs):
            ray.kill(learners.actors[0])
            trainer._update = update
            return update(learners, sequences, **kwargs)

        trainer._update = killed
        got += [session.step() for _ in range(2)]
        assert session.algorithm.recovery.restarts == 1
        for name in ("learner/loss", "rollout/staleness", "reward/mean"):
            assert [m.get(name) for m in got] == pytest.approx([m.get(name) for m in expected], abs=1e-5), name
        assert got[-1]["rollout/staleness"] == 1
        assert [line["step"] for line in read_metrics(trainer.config.run_dir)] == list(range(1, 66))
    finally:
        local.close()
        session.close()
