"""What GPUs do here: tokens per second and share of the peak by model, memory by ZeRO stage, time of a sync.

    python benchmarks/gpu_check.py [--models smollm2-135m,Qwen/Qwen2.5-3B-Instruct,...] [--parts step,zero,transfer]

`step`: a GRPO step on one GPU with LoRA, 8 prompts of 1024 tokens in groups of 8, 64 new tokens. `zero`: one update of
all weights on all GPUs, once for each stage. `transfer`: the weights of a model from GPU to GPU through a channel, and
through Ray's object store. Models that are not built in get random weights of the right shapes: speed and memory do not
ask what they know. Each row is measured in a process of its own. Runs on a CPU as well, with small models.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from grpo_step import matmul_peak, peak_memory_gib
from scaling import bench_of, group_operations, measured

from memr1.config import Config, LearnerConfig, ModelConfig
from memr1.errors import MemR1Error
from memr1.models.adapters import LoraSettings
from memr1.models.architectures import describe, model_config
from memr1.training.estimate import forward_operations

MODELS = ("smollm2-135m", "Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen2.5-7B-Instruct")
PARTS = {
    "step": "GRPO step on one device, LoRA",
    "zero": "update of all weights by ZeRO stage",
    "transfer": "weights to another device",
}
STAGES = (0, 1, 2, 3)


def local_model(name: str, folder: Path) -> str:
    """A model that can be loaded here: `name` itself if it is built in, else random weights of its shapes."""
    from memr1.models import packaged
    from memr1.models.registry import load_tokenizer, pick_device, pick_dtype

    if name in packaged.MODELS or Path(name).is_dir():
        return name
    import torch
    from transformers import AutoModelForCausalLM

    where, device = folder / name.replace("/", "--"), pick_device("auto")
    if not where.exists():
        config, _ = model_config(name)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config, dtype=pick_dtype("auto", device))
        model.save_pretrained(where)
        load_tokenizer("tiny-random").save_pretrained(where)  # its tokens are ids that every vocabulary has
    return str(where)


def step(name: str, source: str, quick: bool) -> dict[str, Any]:
    """A GRPO step on one device."""
    prompts, length, group, new = (2, 480, 2, 4) if quick else (8, 1024, 8, 64)
    arch, peak = describe(source, LoraSettings(rank=16)), matmul_peak("auto", 512 if quick else 8192)
    t = measured(bench_of(source, 16, 16384, 1), prompts, length, group, new, shared=True)
    at = t["prompt_tokens"]
    written = t["decode_tokens"] / (prompts * group)
    update = prompts * group_operations(arch, at, group, written, shared=True, lora=True)
    prefill = forward_operations(arch, round(t["prefill_tokens"]), round(prompts * at * at), prompts)
    return {
        "model": name,
        "prefill tokens/s": t["prefill_tokens"] / t["prefill_s"],
        "of peak": f"{prefill / t['prefill_s'] / peak:.0%}",
        "decode tokens/s": t["decode_tokens"] / t["decode_s"],
        "update tokens/s": t["update_tokens"] / t["update_s"],
        "of peak ": f"{update / t['update_s'] / peak:.0%}",
        "sync s": t["sync_s"],
        "step s": t["total_s"],
        "GiB": peak_memory_gib(),
        "peak TFLOP/s": peak / 1e12,
    }


def _held_gib(_: Any) -> float:
    """In a learner's process, which finds no files of this folder."""
    import resource

    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated() / 2**30)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def zero(name: str, source: str, stage: int, quick: bool) -> dict[str, Any]:
    """An update of all weights by a rank on each GPU, the second of two: the first one allocates."""
    import ray
    import torch

    from memr1.learner.deepspeed_learner import UpdateSettings
    from memr1.learner.packing import TrainSequence, plan_microbatches
    from memr1.rllib.learner_group import RayLearnerGroup
    from memr1.rllib.resources import Shares
    from memr1.training.run import prepare_folder

    gpus = torch.cuda.device_count()
    ranks = max(gpus, 1)
    tokens, completion = (128, 8) if quick else (4096, 64)
    config = Config(
        output=tempfile.mkdtemp(prefix="memr1-zero-"),
        model=ModelConfig(name=source, weights="full", threads=0 if gpus else 1),
        learner=LearnerConfig(
            num_learners=ranks, zero_stage=stage, gradient_checkpointing=True, max_tokens_per_microbatch=tokens
        ),
    )
    prepare_folder(config, "never")  # learners look for it
    ids = tuple(i % 250 + 1 for i in range(tokens))
    work = [TrainSequence((r + 1, *ids[: tokens - completion - 1]), ids[:completion], (True,) * completion, 1.0)
            for r in range(2 * ranks)]  # fmt: skip
    plan = plan_microbatches(work, num_ranks=ranks, max_tokens_per_microbatch=tokens, pad_id=0)
    settings = UpdateSettings("sft", 1e-6, plan.trained_tokens, plan.trained_sequences, 1.0)
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    group = RayLearnerGroup(config, "answerer", None, Shares(1, 0, 1, 1 if gpus else 0, 1))
    try:
        group.update(plan, settings)
        start = time.perf_counter()
        group.update(plan, settings)
        seconds = time.perf_counter() - start
        held = max(group.foreach_learner(_held_gib))
    finally:
        group.close()
        ray.shutdown()
        shutil.rmtree(config.output)
    return {
        "model": name, "ZeRO": stage, "ranks": ranks, "update s": seconds,
        "tokens/s": plan.computed_tokens / seconds, "GiB on each": held,
    }  # fmt: skip


def transfer(name: str, source: str, quick: bool) -> dict[str, Any]:
    """A model's weights to another device through a channel, and into and out of the object store."""
    import ray
    import torch

    from memr1.models.registry import load_causal_lm
    from memr1.rllib.shipment import Shipment
    from memr1.rollout.channel import Channel, Meeting, manifest_of
    from memr1.rollout.engine import WeightUpdate

    gpus = torch.cuda.device_count()
    if gpus == 1:
        raise MemR1Error("transfer: needs two GPUs, and there is one: NCCL takes no two processes on one")
    ends = [torch.device("cuda", n) for n in (0, 1)] if gpus else [torch.device("cpu")] * 2
    tensors = {n: p.detach() for n, p in load_causal_lm(source, device=ends[0]).named_parameters()}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        meeting = Meeting("127.0.0.1", probe.getsockname()[1], 2, 60.0)
    seconds = []

    def receive() -> None:
        channel = Channel(meeting, 1, ends[1])
        for _ in range(2):
            channel.receive(manifest_of(tensors))

    receiver = threading.Thread(target=receive)
    receiver.start()
    channel = Channel(meeting, 0, ends[0])
    for _ in range(2):  # the first makes NCCL's communicator
        start = time.perf_counter()
        channel.send(tensors, checked=False)
        seconds.append(time.perf_counter() - start)
    receiver.join()
    channel.close()
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    start = time.perf_counter()
    arrays = {n: t.float().cpu().numpy() for n, t in tensors.items()}
    found = Shipment.send(WeightUpdate.build("answerer", 1, arrays, checked=False)).receive()
    for n, a in found.tensors.items():
        torch.from_numpy(a.copy()).to(ends[1], tensors[n].dtype)
    by_store = time.perf_counter() - start
    ray.shutdown()
    size = sum(t.nbytes for t in tensors.values())
    return {
        "model": name, "GB": size / 1e9, "channel s": seconds[-1], "GB/s": size / 1e9 / seconds[-1],
        "object store s": by_store, "ratio": by_store / seconds[-1],
    }  # fmt: skip


def table(title: str, rows: list[dict[str, Any]]) -> None:
    """Rows under the names of the first."""
    from rich.console import Console
    from rich.table import Table

    def short(value: Any) -> str:
        return str(value) if not isinstance(value, float) else f"{value:.0f}" if value >= 1000 else f"{value:.3g}"

    out = Table(*rows[0], title=title)
    for row in rows:
        out.add_row(*map(short, row.values()))
    Console(width=150).print(out)


def measure(part: str, name: str, source: str, *more: str) -> dict[str, Any] | None:
    """One row, from a process of its own: memory is given back, and one that runs out of it ends no other."""
    command = [sys.executable, __file__, "--one", part, name, source, *more]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"{part} of {name} {' '.join(more)}: {done.stderr.strip().splitlines()[-1:]}", flush=True)
        return None
    return dict(json.loads(done.stdout.splitlines()[-1]))


def one(part: str, name: str, source: str, *more: str) -> dict[str, Any]:
    """The row that `measure` asks for."""
    quick = "quick" in more
    if part == "zero":
        return zero(name, source, int(more[0]), quick)
    return (step if part == "step" else transfer)(name, source, quick)


def main() -> None:
    """Print the machine and a table for each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="names or hub ids whose shape is known")
    parser.add_argument("--zero-model", default=MODELS[1], help="whose weights are all trained in the part zero")
    parser.add_argument("--stages", default=",".join(map(str, STAGES)), help="ZeRO stages of the part zero")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"which, separated by commas: {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        try:
            print(json.dumps(one(*args.one)))
        except MemR1Error as error:
            raise SystemExit(str(error)) from None
        return
    from memr1.training.runlog import machine_info

    parts, quick = args.parts.split(","), ("quick",) if args.quick else ()
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--parts: there is no {', '.join(sorted(unknown))}")
    print(machine_info())
    with tempfile.TemporaryDirectory(prefix="memr1-models-") as folder:
        jobs = {
            "step": [(n,) for n in args.models.split(",")],
            "zero": [(args.zero_model, s) for s in args.stages.split(",")],
            "transfer": [(n,) for n in args.models.split(",")],
        }
        for part in parts:
            rows = [measure(part, n, local_model(n, Path(folder)), *more, *quick) for n, *more in jobs[part]]
            if found := [r for r in rows if r is not None]:
                table(PARTS[part], found)


if __name__ == "__main__":
    main()
