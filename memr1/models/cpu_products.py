"""Which library multiplies float32 matrices on a CPU.

torch gives them to MKL, which on AMD processors reaches about half of what oneDNN does with the same AVX-512 units.
torch has no switch for the library, only one for the precision, and at `medium` products go to oneDNN. That lets oneDNN
round operands to bfloat16 as well, which it does where the processor has tiles for it (AMX). So it is tried what comes
out, and `medium` stays only where results are those of float32. Nothing is timed: a run must not compute other bits
because a machine was busy when it began.
"""

from __future__ import annotations

import functools
from pathlib import Path

ERROR_GROWTH = 8.0
"""How far the largest error may exceed that of torch's default. Operands in bfloat16 would exceed it a thousandfold."""

_SHAPES = ((256, 576, 1536), (256, 1536, 576), (8, 1024, 1024))
"""Products as models have them: rows, summed over, columns."""


@functools.cache
def use_onednn_where_exact() -> bool:
    """Give float32 products of this process to oneDNN on an AMD processor, if it computes them in float32.

    Returns whether it does. A precision that somebody has set with `torch.set_float32_matmul_precision` stays.
    """
    import torch

    if torch.get_float32_matmul_precision() != "highest" or _vendor() != "AuthenticAMD":
        return False
    default = _largest_errors()
    torch.set_float32_matmul_precision("medium")
    exact = all(e <= ERROR_GROWTH * d for e, d in zip(_largest_errors(), default, strict=True))
    if not exact:
        torch.set_float32_matmul_precision("highest")
    return exact


def _largest_errors() -> list[float]:
    """Largest error of products of normal numbers against float64, by shape."""
    import torch

    generator = torch.Generator().manual_seed(0)
    errors = []
    for rows, inner, columns in _SHAPES:
        a = torch.randn(rows, inner, generator=generator)
        b = torch.randn(columns, inner, generator=generator)
        got = torch.nn.functional.linear(a, b).double()
        errors.append(float((got - a.double() @ b.double().T).abs().max()))
    return errors


def _vendor() -> str:
    """Of the processor, as Linux on x86 tells it; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")
