"""Linear layers by oneDNN in blocks of rows are the linear layers of torch."""

from __future__ import annotations

import copy
import os
import pickle
import platform
import resource
import subprocess
import sys

import pytest
import torch
from torch import nn

from memr1.models import cpu
from memr1.models.cpu import (
    BLOCKS,
    OneDnnLinear,
    blockwise_linear,
    computing_with,
    pack,
    prefers_onednn,
    prefers_packed,
    use_onednn,
)

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch was built without oneDNN"
)


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 31, 100, 1023, 1024, 1025, 2500])
@pytest.mark.parametrize("bias", [False, True])
def test_blocks_of_rows_give_the_products_of_the_whole(rows: int, bias: bool) -> None:
    torch.manual_seed(rows)
    x, weight, b = torch.randn(rows, 72), torch.randn(96, 72), torch.randn(96) if bias else None
    expected = (x.double() @ weight.double().t() + (0 if b is None else b.double())).float()
    torch.testing.assert_close(blockwise_linear(x, weight, b), expected, rtol=1e-5, atol=1e-4)
    strided = torch.randn(72, rows).t()
    torch.testing.assert_close(blockwise_linear(strided, weight), strided @ weight.t(), rtol=1e-5, atol=1e-4)


def test_kernels_are_asked_for_a_few_shapes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: set[int] = set()
    linear = torch.ops.mkldnn._linear_pointwise

    class Ops:
        @staticmethod
        def _linear_pointwise(x: torch.Tensor, *args: object) -> torch.Tensor:
            asked.add(len(x))
            return linear(x, *args)  # type: ignore[no-any-return]

    monkeypatch.setattr(cpu.torch.ops, "mkldnn", Ops)
    for rows in range(1, 1400, 3):
        blockwise_linear(torch.ones(rows, 64), torch.ones(64, 64))
    assert asked == set(BLOCKS)


@pytest.mark.parametrize("trained", ["input", "weight", "both"])
def test_gradients_are_those_of_torch(trained: str) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(80, 96)
    ours = copy.deepcopy(plain)
    assert use_onednn(ours) == 1
    found = []
    for layer in (plain, ours):
        layer.requires_grad_(trained != "input")
        x = torch.linspace(-1, 1, 5 * 13 * 80).sin().view(5, 13, 80).requires_grad_(trained != "weight")
        y = layer(x)
        (y * y.detach().cos()).sum().backward()
        found.append([y, x.grad, layer.weight.grad, layer.bias.grad])
    for expected, got in zip(*found, strict=True):
        assert (expected is None) == (got is None)
        if expected is not None:
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_layers_keep_their_names_weights_and_kind() -> None:
    model = nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 16), nn.Linear(64, 64).bfloat16())
    before = {name: p.clone() for name, p in model.state_dict().items()}
    assert use_onednn(model) == 1  # one is too narrow, one not float32
    assert isinstance(model[0], OneDnnLinear) and isinstance(model[0], nn.Linear)
    assert type(model[1]) is type(model[2]) is nn.Linear
    for restored in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert restored.state_dict().keys() == before.keys()
        assert all(torch.equal(p, before[name]) for name, p in restored.state_dict().items())
    lower = copy.deepcopy(model[0]).bfloat16()
    x = torch.randn(3, 64).bfloat16()
    assert torch.equal(lower(x), nn.functional.linear(x, lower.weight, lower.bias))


def test_no_rows_give_no_rows() -> None:
    layer = nn.Linear(64, 72)
    use_onednn(layer)
    x = torch.zeros(0, 3, 64, requires_grad=True)
    layer(x).sum().backward()
    assert layer(x).shape == (0, 3, 72) and x.grad is not None and x.grad.shape == x.shape


@pytest.mark.parametrize("rows", [1, 3, 8, 40, 700])
def test_layers_compute_with_packed_and_plain_weights_while_asked_to(rows: int) -> None:
    torch.manual_seed(rows)
    model = nn.Sequential(nn.Linear(72, 96), nn.Linear(96, 80, bias=False))
    classes, own = [type(m) for m in model], [m.weight.data_ptr() for m in model]
    x, others = torch.randn(rows, 1, 72), [torch.randn_like(m.weight) for m in model]
    before = model(x).detach()
    expected = nn.functional.linear(nn.functional.linear(x, others[0], model[0].bias), others[1]).detach()
    with pytest.raises(KeyError), computing_with({model[0]: pack(others[0]), model[1]: others[1]}):
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-3)
        raise KeyError
    assert [type(m) for m in model] == classes and [m.weight.data_ptr() for m in model] == own
    assert torch.equal(model(x), before) and not any("packed_weight" in vars(m) for m in model)


def test_threads_and_memory_of_this_process_are_set() -> None:
    """Freed blocks of a model's size are given out again without asking the system for pages."""
    program = """
import resource, sys, torch
from memr1.models.cpu import set_up_cpu
if sys.argv[1] != "plain":
    set_up_cpu(int(sys.argv[1]))
for _ in range(3):
    torch.ones(1 << 23)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(1 << 23)
print(torch.get_num_threads(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

    def run(how: str) -> tuple[int, int]:
        done = subprocess.run([sys.executable, "-c", program, how], capture_output=True, text=True, check=True)
        threads, faults = map(int, done.stdout.split())
        return threads, faults

    pages = 20 * (1 << 25) // resource.getpagesize()
    assert run("1")[0] == 1 and run("0")[0] == os.cpu_count()
    if platform.libc_ver()[0] == "glibc":
        assert run("plain")[1] > pages / 1000 and run("1")[1] < run("plain")[1] / 4


def test_a_policy_model_computes_with_what_its_processor_prefers() -> None:
    from memr1.models.adapters import PolicyModel

    policies = PolicyModel.create("tiny-random", ("answerer",), dtype="float32", device="cpu")
    changed = sum(isinstance(m, OneDnnLinear) for m in policies.module("answerer").modules())
    assert (changed > 0) == prefers_onednn()


@pytest.mark.parametrize(
    ("vendor", "capability", "preferred", "packed"),
    [
        ("AuthenticAMD", "AVX512", True, True),
        ("AuthenticAMD", "AVX2", False, True),
        ("AuthenticAMD", "DEFAULT", False, False),
        ("GenuineIntel", "AVX512", False, False),
    ],
)
def test_onednn_is_for_amd_and_for_all_products_with_avx512(
    monkeypatch: pytest.MonkeyPatch, vendor: str, capability: str, preferred: bool, packed: bool
) -> None:
    class Info:
        def __init__(self, path: str) -> None:
            assert path == "/proc/cpuinfo"

        def is_file(self) -> bool:
            return True

        def read_text(self, errors: str) -> str:
            return f"vendor_id : {vendor}\n"

    monkeypatch.setattr(cpu, "Path", Info)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    asked = prefers_onednn, prefers_packed
    for ask in asked:
        ask.cache_clear()
    try:
        assert [ask() for ask in asked] == [preferred, packed]
    finally:
        for ask in asked:
            ask.cache_clear()
