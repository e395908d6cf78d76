"""float32 products on a CPU: given to oneDNN only where that leaves them float32.

Not covered: that it is faster, see benchmarks/results/grpo_step_cpu.md.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from memr1.models import cpu_products
from memr1.models.cpu_products import ERROR_GROWTH, _largest_errors, use_onednn_where_exact


@pytest.fixture(autouse=True)
def precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    use_onednn_where_exact.cache_clear()
    yield
    use_onednn_where_exact.cache_clear()
    torch.set_float32_matmul_precision(before)


def amd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_products, "_vendor", lambda: "AuthenticAMD")


def test_what_is_chosen_is_as_exact_as_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    amd(monkeypatch)
    default = _largest_errors()
    chosen = use_onednn_where_exact()
    assert torch.get_float32_matmul_precision() == ("medium" if chosen else "highest")
    assert all(e <= ERROR_GROWTH * d for e, d in zip(_largest_errors(), default, strict=True))


def test_rounded_operands_are_found_out_and_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor with tiles for bfloat16, where `medium` would compute in it."""
    amd(monkeypatch)
    exact = torch.nn.functional.linear

    def linear(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if torch.get_float32_matmul_precision() == "medium":
            a, b = a.bfloat16().float(), b.bfloat16().float()
        return exact(a, b)

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    assert use_onednn_where_exact() is False
    assert torch.get_float32_matmul_precision() == "highest"


def test_other_processors_and_a_users_choice_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_products, "_vendor", lambda: "GenuineIntel")
    assert use_onednn_where_exact() is False and torch.get_float32_matmul_precision() == "highest"
    amd(monkeypatch)
    use_onednn_where_exact.cache_clear()
    torch.set_float32_matmul_precision("high")
    assert use_onednn_where_exact() is False and torch.get_float32_matmul_precision() == "high"
