"""Linear layers as memr1 computes them on this processor beside torch's own, and what a model gains.

    python benchmarks/cpu_products.py [--model smollm2-135m] [--quick]

The first table multiplies by many weights in turn, as a model does, so that none is in a cache for the next call: by
torch's own layer, by oneDNN in blocks of rows, and the same with weights that were packed before. The second is the
model itself: prompts without gradients, prompts with them (adapters trained), and one more token for a few rows, with
merged weights as they are and packed. Where memr1 leaves float32 products to torch, both columns are the same code, and
it says so.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

ROWS = (1, 8, 32, 128, 500, 1000, 4000)


def best_of(call: Callable[[], Any], tries: int) -> float:
    """Seconds of the fastest of some calls, after one that warms up."""
    call()
    seconds = []
    for _ in range(tries):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def layers(tries: int) -> None:
    """Operations per second of linear layers by number of rows."""
    import torch
    from torch.nn.functional import linear

    from memr1.models.cpu import blockwise_linear, pack

    n, k, count = 1536, 576, 40
    weights = [torch.randn(n, k) for _ in range(count)]
    packed = [pack(w) for w in weights]
    ways = ((linear, weights), (blockwise_linear, weights), (blockwise_linear, packed))
    print(f"{count} layers of {k} x {n}\nrows  torch GFLOP/s  oneDNN in blocks GFLOP/s  ratio  packed GFLOP/s  ratio")
    for rows in ROWS:
        x = torch.randn(rows, k)
        plain, blocks, laid_out = (
            2 * rows * n * k * count / best_of(lambda f=f, x=x, ws=ws: [f(x, w) for w in ws], tries) / 1e9  # type: ignore[misc]
            for f, ws in ways
        )
        print(
            f"{rows:4d} {plain:14.0f} {blocks:24.0f} {blocks / plain:5.1f}x {laid_out:14.0f} {laid_out / plain:5.1f}x",
            flush=True,
        )


def whole(name: str, tries: int) -> None:
    """Seconds of a model's passes with torch's linear layers and with memr1's."""
    import torch

    from memr1.models.adapters import PolicyModel
    from memr1.models.cpu import OneDnnLinear

    policies = PolicyModel.create(name, ("answerer",), dtype="float32", device="cpu")
    few = torch.randint(10, 250, (8, 1))
    changed = [m for m in policies.module("base").modules() if isinstance(m, OneDnnLinear)]
    if not changed:
        print("memr1 leaves float32 products to torch here")
    ids = torch.randint(10, 250, (4, 250))

    def forward() -> None:
        with torch.inference_mode(), policies.use("answerer") as model:
            model(input_ids=ids, logits_to_keep=1)

    def backward() -> None:
        with policies.use("answerer") as model:
            model(input_ids=ids, logits_to_keep=16).logits.logsumexp(-1).mean().backward()

    print(f"{name}, 4 prompts of 250 tokens\npass  torch s  memr1 s  ratio")
    for what, call in (("forward", forward), ("forward and backward", backward)):
        (policies.train_only if call is backward else lambda _: policies.eval_only())("answerer")
        ours = best_of(call, tries)
        for layer in changed:
            layer.__class__ = torch.nn.Linear
        plain = best_of(call, tries)
        for layer in changed:
            layer.__class__ = OneDnnLinear
        print(f"{what}  {plain:.2f}  {ours:.2f}  {plain / ours:.2f}x", flush=True)

    def token() -> None:
        with torch.inference_mode(), policies.use_merged("answerer") as model:
            model(input_ids=few)

    policies.eval_only()
    ours = best_of(token, 10 * tries)
    policies.forget_merged()
    with patch("memr1.models.cpu.prefers_packed", lambda: False):
        plain = best_of(token, 10 * tries)
    print(f"one token of 8 rows, weights not packed and packed  {plain:.3f}  {ours:.3f}  {plain / ours:.2f}x")


def main() -> None:
    """Print the machine and both tables."""
    from memr1.models.cpu import set_up_cpu
    from memr1.training.runlog import machine_info

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--quick", action="store_true", help="one try each, to see that it runs")
    args = parser.parse_args()
    set_up_cpu(0)
    print(machine_info())
    layers(1 if args.quick else 5)
    whole(args.model, 1 if args.quick else 5)


if __name__ == "__main__":
    main()
