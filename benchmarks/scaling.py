"""How a GRPO step grows, measured here, and what the same cost model says of larger models on many GPUs.

    python benchmarks/scaling.py [--quick] [--parts growth,decode,model] [--vllm .venv-vllm/bin/python]

`growth` measures a step against group size, prompt and completion length, with the operations that the formulas of
`memr1.training.estimate` count and the share of the machine's matrix-product peak. `decode` is tokens per second beside
`generate` of transformers, its continuous batching (`generate_batch`), and with `--vllm` beside vLLM, on the same
prompts. `model` is arithmetic alone: a prediction, marked as such.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from grpo_step import Bench, Sampled, factworld_rows, matmul_peak

from memr1.config import Config, LearnerConfig, ModelConfig
from memr1.models.adapters import LoraSettings
from memr1.models.architectures import Architecture, describe
from memr1.training.estimate import forward_operations, packed_pairs, update_operations

PARTS = ("growth", "decode", "model")
NO_TOKEN = -1
"""As the token that ends a turn: none does."""
Sampler = Callable[[list[tuple[int, ...]], int], tuple[list[Sampled], dict[str, float]]]
"""Prompts, one for each sample, and a seed -> the samples, and the seconds of their phases."""


def bench_of(model: str, rank: int, tokens: int, steps: int) -> Bench:
    """An engine and a learner, and the options that `grpo_step.py` would have read."""
    from memr1.models.registry import load_tokenizer

    config = Config(
        model=ModelConfig(name=model, lora=LoraSettings(rank=rank, alpha=2 * rank)),
        learner=LearnerConfig(max_tokens_per_microbatch=tokens),
    )
    options = Namespace(group_size=8, max_new_tokens=16, max_tokens_per_microbatch=tokens, steps=steps)
    return Bench(config, load_tokenizer(model), options)


def measured(bench: Bench, prompts: int, prompt_tokens: int, group: int, new: int, shared: bool) -> dict[str, Any]:
    """Seconds by phase of a step of these sizes."""
    bench.args.group_size, bench.args.max_new_tokens = group, new
    rows = factworld_rows(prompts, bench.tokenizer, prompt_tokens)
    ids = [tuple(bench.tokenizer(r["prompt"], add_special_tokens=False)["input_ids"]) for r in rows]
    return bench.measure(ids, rows, shared=shared) | {"prompt_tokens": sum(map(len, ids)) / len(ids)}


def growth(model: str, rank: int, quick: bool) -> None:
    """A table of steps: what grows with what."""
    arch, peak = describe(model, LoraSettings(rank=rank)), matmul_peak("auto")
    bench = bench_of(model, rank, 8192, 1)
    lengths = (480, 960) if quick else (128, 512, 1024, 2048, 4096)
    groups, completions = ((1, 4), (4, 16)) if quick else ((1, 2, 4, 8, 16, 32), (4, 16, 64))
    cases = [(2, 480, g, 16) for g in groups] + [(2, n, 8, 16) for n in lengths] + [(2, 480, 8, c) for c in completions]
    print(f"{model}, LoRA rank {rank}; peak of a matrix product {peak / 1e9:.0f} GFLOP/s; 2 prompts a step")
    print("prompt  group  new  prefill s  decode s  update s  total s  update GFLOP  of peak  unshared update GFLOP")
    for prompts, length, group, new in cases:
        t = measured(bench, prompts, length, group, new, shared=True)
        at = t["prompt_tokens"]
        written = t["decode_tokens"] / (prompts * group)
        flops = prompts * group_operations(arch, at, group, written, shared=True, lora=True)
        apart = prompts * group_operations(arch, at, group, written, shared=False, lora=True)
        print(
            f"{at:6.0f} {group:6d} {new:4d} {t['prefill_s']:10.2f} {t['decode_s']:9.2f} {t['update_s']:9.2f} "
            f"{t['total_s']:8.2f} {flops / 1e9:13.2f} {flops / t['update_s'] / peak:8.0%} {apart / 1e9:22.2f}",
            flush=True,
        )


def group_operations(arch: Architecture, prompt: float, group: int, new: float, *, shared: bool, lora: bool) -> int:
    """Operations of the update on one group."""
    p, c = round(prompt), round(new)
    if shared:
        return update_operations(arch, p + group * c, packed_pairs(p, group, c), group * c, lora)
    return update_operations(arch, group * (p + c), group * packed_pairs(p, 1, c), group * c, lora)


def decode(model: str, rank: int, quick: bool, vllm: str | None) -> None:
    """Tokens per second of a batch of samples beside transformers' two ways and vLLM, prefill included.

    All sample from the same untrained distribution and none stops early, so that all compute as many tokens.
    vllm: the Python interpreter of an environment that has it.
    """
    bench = bench_of(model, rank, 8192, 1)
    bench.engine.eos_ids = (NO_TOKEN,)
    new = 16 if quick else 64
    cases = ((2, 4),) if quick else ((2, 4), (4, 8), (8, 8))
    names = ["generate", "continuous batching"] + ["vLLM"] * bool(vllm)
    print("prompts  group  new  tokens/s" + "".join(f"  {n} tokens/s  ratio" for n in names))
    of_another = of_vllm(bench, model, cases, new, vllm) if vllm else []
    for i, (prompts, group) in enumerate(cases):
        samples = samples_of(bench, prompts, group)
        bench.args.max_new_tokens = new
        ours = rate(bench.sample_shared, samples)
        theirs = [
            rate(bench.sample_unshared, samples),
            rate(partial(by_continuous_batching, bench, prompts, group, new), samples),
            *of_another[i : i + 1],
        ]
        line = f"{prompts:7d} {group:6d} {new:4d} {ours:9.0f}"
        columns = zip(names, theirs, strict=True)
        print(line + "".join(f"{t:{len(n) + 11}.0f} {ours / t:5.1f}x" for n, t in columns), flush=True)


def samples_of(bench: Bench, prompts: int, group: int) -> list[tuple[int, ...]]:
    """Token ids of FactWorld prompts of about 480 tokens, each as often as its group is large."""
    rows = factworld_rows(prompts, bench.tokenizer, 480)
    ids = [tuple(bench.tokenizer(r["prompt"], add_special_tokens=False)["input_ids"]) for r in rows]
    return [i for i in ids for _ in range(group)]


def rate(sample: Sampler, samples: list[tuple[int, ...]], tries: int = 2) -> float:
    """Tokens per second, prefill included: the better of some tries."""
    best = 0.0
    for seed in range(1 + tries):  # the first warms up
        done, timings = sample(samples, seed)
        if seed:
            best = max(best, sum(len(ids) for ids, _ in done) / (timings["prefill_s"] + timings["decode_s"]))
    return best


def by_continuous_batching(
    bench: Bench, prompts: int, group: int, new: int, samples: list[tuple[int, ...]], seed: int
) -> tuple[list[Sampled], dict[str, float]]:
    """The same by transformers' `generate_batch`: each prompt once, for a group, with room for all samples at once."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    how = GenerationConfig(
        max_new_tokens=new,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        num_return_sequences=group,
        eos_token_id=NO_TOKEN,
        pad_token_id=bench.tokenizer.pad_token_id,
    )
    page = 256
    cache = ContinuousBatchingConfig(
        page_size=page,
        num_blocks=sum(-(-(len(i) + new) // page) for i in samples),
        max_batch_tokens=bench.args.max_tokens_per_microbatch,
        return_logprobs=True,
        seed=seed,
    )
    with bench.plain_model() as model:
        start = time.perf_counter()
        made = model.generate_batch([list(i) for i in samples[::group]], how, cache)
        seconds = time.perf_counter() - start
    if len(made) != prompts * group:
        raise RuntimeError(f"generate_batch made {len(made)} of {prompts * group} samples")
    return [(tuple(m.generated_tokens), tuple(m.logprobs)) for m in made.values()], {
        "prefill_s": 0.0,
        "decode_s": seconds,
    }


def of_vllm(bench: Bench, model: str, cases: Sequence[tuple[int, int]], new: int, python: str) -> list[float]:
    """Tokens per second of vLLM on the same prompts, from a process in its own environment."""
    from memr1.models.registry import resolve_model

    work = [{"prompts": samples_of(bench, prompts, 1), "group": group, "new": new} for prompts, group in cases]
    done = subprocess.run(
        [python, str(Path(__file__).with_name("vllm_decode.py"))],
        input=json.dumps({"model": resolve_model(model), "steps": 2, "cases": work}),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    (line,) = (line for line in done.stdout.splitlines() if line.startswith('{"version"'))  # vLLM logs there, too
    rates: list[float] = json.loads(line)["tokens_per_second"]
    return rates


@dataclass(frozen=True)
class Gpu:
    """What the prediction assumes of a GPU."""

    name: str = "H100 SXM, bfloat16"
    flops: float = 989e12
    """Dense matrix products, from its data sheet."""
    bytes_per_s: float = 3.35e12
    """Memory bandwidth, from its data sheet."""
    network_bytes_per_s: float = 50e9
    """Of one GPU to other machines: 400 Gbit/s."""
    matrix_share: float = 0.4
    """Share of the peak that prefill and update reach."""
    memory_share: float = 0.6
    """Share of the bandwidth that decoding reaches."""


@dataclass(frozen=True)
class Workload:
    """One optimizer step of the answerer as in the paper: 60 memories in the prompt, reasoning before the answer."""

    prompts: int = 128
    prompt_tokens: int = 3072
    group: int = 8
    new_tokens: int = 256


def predict(arch: Architecture, work: Workload, gpus: int, gpu: Gpu, lora: bool, width: int = 2) -> dict[str, float]:
    """Seconds by phase on some GPUs that hold one runner and one learner rank each and take turns.

    The group of a prompt is decoded by one GPU. Decoding reads all weights once for each token of a batch, and each
    sample's own cache. What is trained goes to every GPU once in a step, whatever the number of GPUs: as float32
    through Ray's object store, since NCCL takes no two processes on one GPU.
    """
    prompts = max(work.prompts / gpus, 1.0)  # a group is not divided: more GPUs than prompts wait
    samples = prompts * work.group
    tokens = work.prompt_tokens
    prefill = prompts * forward_operations(arch, tokens, tokens * tokens // 2, 1)
    update = prompts * group_operations(arch, tokens, work.group, work.new_tokens, shared=True, lora=lora)
    cache = (tokens + work.new_tokens / 2) * arch.layers * arch.kv_width * width
    read = arch.parameters * width + samples * cache
    compute = samples * forward_operations(arch, 1, tokens + work.new_tokens // 2, 1)
    trained = 4 * (arch.adapter_parameters if lora else arch.parameters)  # bytes, as float32
    return {
        "prefill": prefill / gpu.flops / gpu.matrix_share,
        "decode": work.new_tokens
        * max(read / gpu.bytes_per_s / gpu.memory_share, compute / gpu.flops / gpu.matrix_share),
        "update": update / gpu.flops / gpu.matrix_share,
        "all-reduce": 2 * trained * (gpus > 1) / gpu.network_bytes_per_s,
        "sync": trained / gpu.network_bytes_per_s,
    }


def model() -> None:
    """The prediction for 7B on 8, 64 and 512 GPUs."""
    gpu = Gpu()
    arch = describe("Qwen/Qwen2.5-7B-Instruct", LoraSettings(rank=16))
    print(f"PREDICTION, not measured: {arch.name}, {gpu.name}, {gpu.matrix_share:.0%} of the matrix peak, "
          f"{gpu.memory_share:.0%} of the bandwidth")  # fmt: skip
    print("weights  GPUs  prompts  prefill s  decode s  update s  all-reduce s  sync s  step s  samples/s  longest")
    for lora in (True, False):
        for gpus in (8, 64, 512):
            for prompts in sorted({128, max(128, gpus)}):
                work = Workload(prompts=prompts)
                t = predict(arch, work, gpus, gpu, lora)
                total = sum(t.values())
                print(
                    f"{'lora' if lora else 'full':7s} {gpus:5d} {prompts:8d} {t['prefill']:10.2f} {t['decode']:9.2f} "
                    f"{t['update']:9.2f} {t['all-reduce']:13.2f} {t['sync']:7.2f} {total:7.2f} "
                    f"{prompts * work.group / total:10.0f}  {max(t, key=lambda k: t[k])}"
                )


def main() -> None:
    """Print the machine, then the parts that are asked for."""
    from memr1.training.runlog import machine_info

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help=f"which, separated by commas: {', '.join(PARTS)}")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--lora-rank", type=int, default=16)
    parser.add_argument("--vllm", metavar="PYTHON", help="also measure vLLM, with the interpreter of its environment")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    args = parser.parse_args()
    parts = args.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--parts: there is no {', '.join(sorted(unknown))}")
    print(machine_info())
    if "growth" in parts:
        growth(args.model, args.lora_rank, args.quick)
    if "decode" in parts:
        decode(args.model, args.lora_rank, args.quick, args.vllm)
    if "model" in parts:
        model()


if __name__ == "__main__":
    main()
