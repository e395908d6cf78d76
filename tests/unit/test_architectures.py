"""Sizes of models without their weights: as published, and as the real modules have them."""

from __future__ import annotations

import pytest

from memr1.errors import MemR1Error
from memr1.models.adapters import LoraSettings, PolicyModel
from memr1.models.architectures import KNOWN, describe

PUBLISHED = {
    "smollm2-135m": 134_515_008,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1_711_376_384,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-14B-Instruct": 14_770_033_664,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
}
"""Parameters as the model hub counts them in the published weight files."""


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_model_has_the_published_number_of_parameters(name: str) -> None:
    assert describe(name).parameters == PUBLISHED[name]


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj")])
def test_an_adapter_has_as_many_parameters_as_peft_makes(targets: str | tuple[str, ...]) -> None:
    lora = LoraSettings(rank=4, target_modules=targets)
    made = PolicyModel.create("tiny-random", ("manager",), "lora", lora, device="cpu")
    real = sum(p.numel() for p in made.trainable_parameters("manager").values())
    described = describe("tiny-random", lora)
    assert described.adapter_parameters == real
    assert described.parameters == sum(p.numel() for p in made.module("base").parameters()) - real
    # two layers, two key-value heads of 16
    assert (described.layers, described.kv_width, described.window) == (2, 2 * 2 * 16, 8192)


def test_a_model_that_is_not_known_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(MemR1Error, match=r"did you mean Qwen/Qwen2\.5-3B-Instruct"):
        describe("Qwen/Qwen2.5-3B-Instrukt")
    with pytest.raises(MemR1Error, match=r"target_modules: .*nothing.* names no linear module of tiny-random"):
        describe("tiny-random", LoraSettings(target_modules=("nothing",)))
