"""The transformers engine keeps what `EngineContract` promises. What only it promises is in test_engine.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from memr1.models.registry import load_tokenizer
from memr1.rollout.transformers_engine import TransformersEngine
from tests.unit.engine_contract import EngineContract, make_policies, save_model


class TestTransformersEngine(EngineContract):
    @pytest.fixture(scope="class")
    def saved(self, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, tuple[int, ...]]:
        return save_model(tmp_path_factory.mktemp("model"))

    @pytest.fixture(scope="class")
    def eos(self, saved: tuple[str, tuple[int, ...]]) -> tuple[int, ...]:
        return saved[1]

    @pytest.fixture(scope="class")
    def device(self) -> str:
        return "cpu"

    @pytest.fixture(scope="class", params=["lora", "full"])
    def engine(self, saved: tuple[str, tuple[int, ...]], device: str, request: pytest.FixtureRequest) -> Iterator[Any]:
        source, eos = saved
        tokenizer = load_tokenizer(source)
        yield TransformersEngine(
            make_policies(source, request.param, device), eos, tokenizer.pad_token_id, decode=tokenizer.decode
        )


@pytest.mark.gpu
class TestTransformersEngineOnAGpu(TestTransformersEngine):
    @pytest.fixture(scope="class")
    def device(self) -> str:
        return "cuda"
