"""Operations of a pass by formula, against torch's own counter over the real modules."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from memr1.models.adapters import LoraSettings, PolicyModel
from memr1.models.architectures import describe
from memr1.training.estimate import forward_operations, packed_pairs, update_operations

LORA = LoraSettings(rank=4)
# whole blocks of rows where `memr1.models.cpu` cuts them: what fills one up would be counted
ROWS, LENGTH, SCORED = 2, 128, 8


@pytest.fixture(scope="module")
def policies() -> PolicyModel:
    return PolicyModel.create("tiny-random", ("manager",), "lora", LORA, device="cpu")


def passed(policies: PolicyModel, policy: str) -> torch.Tensor:
    """Logits of the last tokens of some rows, under a mask of the whole square as the update gives it."""
    model = policies.module(policy)
    ids = torch.arange(ROWS * LENGTH).reshape(ROWS, LENGTH) % 100
    mask = torch.zeros(ROWS, 1, LENGTH, LENGTH).masked_fill(torch.ones(LENGTH, LENGTH).triu(1).bool(), -1e9)
    with sdpa_kernel(SDPBackend.MATH):  # the only one on a CPU whose operations torch counts
        return model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=SCORED).logits


def test_a_forward_pass_takes_what_the_formula_says(policies: PolicyModel) -> None:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        passed(policies, "base")
    expected = forward_operations(describe("tiny-random", LORA), ROWS * LENGTH, ROWS * LENGTH**2, ROWS * SCORED)
    assert counter.get_total_flops() == expected


def test_an_update_of_an_adapter_takes_what_the_formula_says(policies: PolicyModel) -> None:
    policies.train_only("manager")
    with policies.use("manager"), FlopCounterMode(display=False) as counter:
        passed(policies, "manager").sum().backward()
    arch = describe("tiny-random", LORA)
    expected = update_operations(arch, ROWS * LENGTH, ROWS * LENGTH**2, ROWS * SCORED, lora=True)
    counted = counter.get_total_flops()
    # the first layer needs no gradient for what it reads, and attention is computed again in the backward pass
    assert expected == pytest.approx(counted, rel=0.15)


def test_an_update_of_all_weights_takes_what_the_formula_says() -> None:
    policies = PolicyModel.create("tiny-random", ("manager",), "full", device="cpu")
    policies.train_only("manager")
    with policies.use("manager"), FlopCounterMode(display=False) as counter:
        passed(policies, "manager").sum().backward()
    arch, pairs = describe("tiny-random", LORA), ROWS * LENGTH**2
    again = 4 * pairs * arch.query_width * arch.layers  # attention is computed again in the backward pass
    expected = update_operations(arch, ROWS * LENGTH, pairs, ROWS * SCORED, lora=False)
    assert counter.get_total_flops() == expected + again


def test_a_packed_row_computes_the_square_of_all_its_tokens() -> None:
    assert packed_pairs(10, 3, 4) == 22 * 22
