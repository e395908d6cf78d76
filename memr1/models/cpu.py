"""What makes float32 models fast on a CPU: threads, memory that is kept, and matrix products by the right library.

torch sends float32 products to MKL, which has its AVX-512 kernels for Intel's processors alone; oneDNN, which is part
of torch too, has them for all. On AMD with AVX-512 it is twice as fast (benchmarks/results/grpo_step_cpu.md). But it
prepares a kernel with buffers for every shape it meets, and hardly two batches of dialogues have the same number of
tokens: rows are therefore cut into blocks of a few sizes.

Generating reads the same weights for every token, so they are worth being laid out for those kernels beforehand
(`pack`): with few rows that is faster again, and with many it costs nothing.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

if TYPE_CHECKING:
    from torch.autograd.function import FunctionCtx

BLOCKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Rows of the blocks, ascending."""
FULL_ENOUGH = 0.75
"""The last rows are filled up to the next block where they are at least this share of it."""
FEW_ROWS = 32
"""Up to so many rows are always filled up: reading the weights twice would take longer than the idle rows."""
LEAST_SIDE = 64
"""Weights with a shorter side (the halves of an adapter) stay with MKL: there is too little to win."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # glibc's malloc.h


def set_up_cpu(threads: int) -> None:
    """Prepare this process for a model: `threads` CPU threads, or all cores for 0, and freed memory is kept for reuse.

    Ray limits its actors to one thread unless told otherwise. glibc gives large blocks back to the system at once,
    which hands them out zeroed, page by page.
    """
    torch.set_num_threads(threads or os.cpu_count() or 1)
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        if not libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30):
            libc.mallopt(_M_MMAP_THRESHOLD, 1 << 25)  # the most that older ones take
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
        libc.mallopt(_M_ARENA_MAX, 1)  # what one thread freed (backward has its own) can serve the others


@cache
def prefers_onednn() -> bool:
    """Whether float32 products are faster with oneDNN than with the library torch would take: AMD with AVX-512."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and _is_amd_with_onednn()


@cache
def prefers_packed() -> bool:
    """Whether generating is faster with packed weights: seen on AMD with AVX2 and with AVX-512; not tried on others."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") and _is_amd_with_onednn()


def _is_amd_with_onednn() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return (
        hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and cpuinfo.is_file()
        and "AuthenticAMD" in cpuinfo.read_text(errors="replace")
    )


def use_onednn(model: nn.Module) -> int:
    """Let every linear layer of `model` that is float32, on the CPU and large enough compute with oneDNN.

    The layers stay what they are, `nn.Linear` by the same names with the same weights; results differ by rounding.
    Returns how many layers were changed.
    """
    layers = [m for m in model.modules() if type(m) is nn.Linear and gains(m.weight)]
    for layer in layers:
        layer.__class__ = OneDnnLinear
    return len(layers)


def gains(weight: torch.Tensor) -> bool:
    """Whether oneDNN may be better for products with this weight: float32, on the CPU, and large enough."""
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and min(weight.shape) >= LEAST_SIDE


class OneDnnLinear(nn.Linear):
    """`nn.Linear` whose products are those of `blockwise_linear`. Other types and devices compute as ever."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if input.dtype != torch.float32 or self.weight.dtype != torch.float32 or input.device.type != "cpu":
            return super().forward(input)
        result: torch.Tensor = _Linear.apply(input, self.weight, self.bias)
        return result


def pack(weight: torch.Tensor) -> torch.Tensor:
    """A copy of a float32 weight (n, k) in the layout that oneDNN is fastest with; opaque, for `computing_with`."""
    result: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
    return result


@contextmanager
def computing_with(weights: Mapping[nn.Linear, torch.Tensor]) -> Iterator[None]:
    """While the context lasts, these layers compute with other weights than their own: plain ones, or made by `pack`.

    Nothing is copied. Layers with packed weights give no gradients.
    """
    before = {layer: (layer.__class__, layer.weight.data) for layer in weights}
    try:
        for layer, weight in weights.items():
            if weight.is_mkldnn:
                layer.__class__ = _PackedLinear
                layer.packed_weight = weight
            else:
                layer.weight.data = weight
        yield
    finally:
        for layer, (own, weight) in before.items():
            layer.__class__ = own
            layer.weight.data = weight
            vars(layer).pop("packed_weight", None)


class _PackedLinear(nn.Linear):
    packed_weight: torch.Tensor

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        rows = blockwise_linear(input.reshape(-1, input.shape[-1]), self.packed_weight, self.bias)
        return rows.view(*input.shape[:-1], rows.shape[1])


class _Linear(torch.autograd.Function):
    """`blockwise_linear` with gradients."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return blockwise_linear(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        for_x, for_weight, for_bias = ctx.needs_input_grad  # type: ignore[attr-defined]
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            blockwise_linear(rows, weight.t()).view(*grad.shape[:-1], weight.shape[1]) if for_x else None,
            rows.t() @ x.reshape(-1, x.shape[-1]) if for_weight else None,  # its shape is new each time: no oneDNN
            rows.sum(0) if for_bias else None,
        )


def blockwise_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x @ weight.T + bias by oneDNN, in blocks of rows.

    x: (m, k) float32. weight: (n, k), plain or from `pack`. bias: (n,). Returns (m, n), without gradients.
    """
    linear = torch.ops.mkldnn._linear_pointwise
    m, x = len(x), x.detach().contiguous()
    if m in BLOCKS:
        whole: torch.Tensor = linear(x, weight, bias, "none", [], "")
        return whole
    result = x.new_empty((m, weight.shape[0]))
    start = 0
    while start < m:
        size = _block(m - start)
        rows = x[start : start + size]
        if len(rows) < size:
            rows = torch.cat([rows, rows.new_zeros((size - len(rows), x.shape[1]))])
        result[start : start + size] = linear(rows, weight, bias, "none", [], "")[: m - start]
        start += size
    return result


if hasattr(torch.ops.mkldnn, "_linear_pointwise"):

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _operations(x: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        """For torch's counter, which does not know oneDNN's layer. x, weight: shapes (m, k) and (n, k)."""
        return int(2 * x[0] * x[1] * weight[0])


def _block(left: int) -> int:
    """Size of the next block of `left` rows."""
    above = next((b for b in BLOCKS if b >= left), None)
    if above is not None and (above <= FEW_ROWS or left >= FULL_ENOUGH * above):
        return above
    return max(b for b in BLOCKS if b <= left)
