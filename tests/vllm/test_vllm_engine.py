"""The real vLLM, on this machine's CPU or GPU: `make test-vllm`. Skipped where vLLM is not installed."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memr1.config_file import load_config
from memr1.errors import MemR1Error
from memr1.models.adapters import LoraSettings, PolicyModel
from memr1.rollout.engine import GenerationRequest, SamplingParams
from tests.unit.engine_contract import MAX_TOKENS, ROLES, EngineContract, make_policies, save_model

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, tuple[int, ...]]:
    return save_model(tmp_path_factory.mktemp("model"))


class TestVllmEngine(EngineContract):
    @pytest.fixture(scope="class")
    def eos(self, saved: tuple[str, tuple[int, ...]]) -> tuple[int, ...]:
        return saved[1]

    @pytest.fixture(scope="class", params=["lora", "full"])
    def engine(self, saved: tuple[str, tuple[int, ...]], request: pytest.FixtureRequest) -> Iterator[Any]:
        from memr1.rollout.vllm_engine import VllmEngine

        source, eos = saved
        engine = VllmEngine(make_policies(source, request.param), eos, max_tokens=MAX_TOKENS, dtype="float32")
        yield engine
        del engine
        gc.collect()

    def test_more_prompts_than_vllm_prefills_in_one_go_are_sampled_from_their_seeds(self, engine: Any) -> None:
        prompts = [tuple(10 + (n * i) % 90 for i in range(1, MAX_TOKENS - 4)) for n in range(1, 121)]
        requests = [GenerationRequest(p, ROLES[0], SamplingParams(4, 1.0, n)) for n, p in enumerate(prompts)]
        several = engine.generate(requests)
        assert [engine.generate([r])[0].ids for r in requests[::30]] == [c.ids for c in several[::30]]


def test_a_run_trains_with_it(saved: tuple[str, tuple[int, ...]], tmp_path: Path) -> None:
    """Rollouts by vLLM, updates by DeepSpeed: the first update's self-check compares their log-probabilities, and the
    second step's rollouts are played with pushed weights."""
    from memr1.training.local import LocalSession
    from memr1.training.run import prepare_folder
    from memr1.training.runlog import RunLog
    from tests.e2e import plumbing

    config = load_config(
        None,
        [
            "backend=local", "rollout.engine=vllm", f"model.name={saved[0]}", "model.device=cpu", "model.threads=1",
            "memory.embedder=hash", "memory.answerer_top_k=2", "memory.manager_top_k=2",
            "data.factworld.num_worlds=2", "rollout.prompts_per_step=3", "rollout.group_size=4",
            "rollout.max_prompt_tokens=400", "rollout.answer_max_new_tokens=12", "rollout.manager_max_new_tokens=12",
            "rollout.extractor_max_new_tokens=12", f"output={tmp_path}", "evaluation.at_end=false",
            "stages=[{role: answerer, objective: grpo, steps: 3, learning_rate: 1e-2}]",
        ],
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        plumbing.install(patch.setattr)
        prepare_folder(config, "never")
        session = LocalSession(config, RunLog(config.run_dir), None)
        try:
            metrics = [session.step() for _ in range(3)]
        finally:
            session.close()
    assert all("learner/skipped" not in m for m in metrics)
    assert max(m["learner/rollout_mismatch"] for m in metrics) < 1e-4
    assert sum(m["engine/sync_s"] for m in metrics) > 0
    assert session.trainer.state.versions["answerer"] == 3


def test_adapters_that_are_too_large_are_refused_before_anything_is_started(
    saved: tuple[str, tuple[int, ...]],
) -> None:
    from memr1.rollout.vllm_engine import VllmEngine

    policies = PolicyModel.create(saved[0], ROLES, lora=LoraSettings(rank=513, alpha=1), device="cpu", dtype="float32")
    with pytest.raises(MemR1Error, match=r"model\.lora\.rank is 513 and vLLM takes adapters up to 512"):
        VllmEngine(policies, (1,), max_tokens=64)
