"""The workload of `grpo_step.py` through TRL's GRPOTrainer with its defaults, for a comparison on one machine.

    make bench-trl ARGS='--group-size 8 --max-new-tokens 16'

Both run one after the other and the ratio is printed, and beside it the loss and the gradients of both on the rows that
TRL sampled first. TRL is put into a folder of its own: memr1 does not need it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from memr1.errors import MemR1Error

sys.path.insert(0, str(Path(__file__).parent))
from grpo_step import factworld_rows, read_rows, workload_options


def main() -> None:
    """Measure memr1 in a process of its own, then TRL here, and print both."""
    args = workload_options(__doc__).parse_args()
    ours = [sys.executable, str(Path(__file__).with_name("grpo_step.py")), "--no-reference", *sys.argv[1:]]
    done = subprocess.run(ours, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    result = json.loads(done.stdout.splitlines()[-1])
    try:
        theirs = run_trl(args)
    except MemR1Error as error:
        print(f"trl_step: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    result |= {"trl": theirs, "times_faster": round(theirs["step_s"] / result["shared"]["total_s"], 1)}
    print(
        f"memr1 {result['shared']['total_s']:.1f} s and {result['peak_memory_gib']:.2f} GiB, "
        f"TRL {theirs['version']} {theirs['step_s']:.1f} s and {theirs['peak_memory_gib']:.2f} GiB a step: "
        f"{result['times_faster']} times faster"
    )
    same = theirs["same_rows"]
    print(
        f"on the same rows: loss {same['loss']:.6f} and {same['trl_loss']:.6f}, gradient norm "
        f"{same['gradient_norm']:.6f} and {same['trl_gradient_norm']:.6f}; gradients differ by at most "
        f"{same['largest_relative_difference']:.1e} of the largest"
    )
    print(json.dumps(result))


def run_trl(args: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of a step of GRPOTrainer on the same rows, with LoRA of the same rank on all linear layers."""
    import torch
    from transformers import TrainerCallback

    try:
        from datasets import Dataset
        from peft import LoraConfig
        from trl import GRPOConfig, GRPOTrainer
    except ImportError as error:
        raise MemR1Error(f"TRL is not there ({error}); run this by `make bench-trl`") from error
    from memr1.models.registry import load_causal_lm, load_tokenizer
    from memr1.rewards.match import em_set

    tokenizer = load_tokenizer(args.model)
    rows = (
        read_rows(args.rows, args.prompts) if args.rows else factworld_rows(args.prompts, tokenizer, args.prompt_tokens)
    )

    def reward(completions: list[str], answer: list[str], **_: Any) -> list[float]:
        return [em_set(text, gold) for text, gold in zip(completions, answer, strict=True)]

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.perf_counter() - self.began)

    class Recorder(GRPOTrainer):  # type: ignore[misc]
        """Keeps what the first step, which is not timed, was computed from and came to."""

        def compute_loss(self, model: Any, inputs: dict[str, Any], *more: Any, **named: Any) -> Any:
            if not seen:
                # an untrained model may get all wrong, and then loss and gradient are 0: give it a direction
                inputs["advantages"] = torch.linspace(-1, 2, len(inputs["advantages"]), device=self.args.device)
                seen.update({n: t.cpu() for n, t in inputs.items() if torch.is_tensor(t)}, weights=adapter(model))
            return super().compute_loss(model, inputs, *more, **named)

        def training_step(self, model: Any, *more: Any, **named: Any) -> Any:
            loss = super().training_step(model, *more, **named)
            if "loss" not in seen:
                seen.update(loss=float(loss), gradients=adapter(model, gradients=True))
            return loss

    seen: dict[str, Any] = {}
    clock = Clock()
    gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Recorder(
            model=load_causal_lm(args.model),
            reward_funcs=reward,
            args=GRPOConfig(
                output_dir=folder,
                per_device_train_batch_size=len(rows) * args.group_size,
                num_generations=args.group_size,
                max_completion_length=args.max_new_tokens,
                max_steps=1 + args.steps,
                use_cpu=not gpu,
                bf16=gpu,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=LoraConfig(r=args.lora_rank, lora_alpha=2 * args.lora_rank, target_modules="all-linear"),
            callbacks=[clock],
        )
        trainer.train()
    held = (
        torch.cuda.max_memory_allocated() / 2**30 if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    )
    return {
        "version": importlib.metadata.version("trl"),
        "step_s": round(statistics.median(clock.seconds[1:]), 2),
        "steps_s": [round(s, 2) for s in clock.seconds],
        "peak_memory_gib": round(held, 2),
        "same_rows": same_rows(args, seen),
    }


def adapter(model: Any, gradients: bool = False) -> dict[str, Any]:
    """Weights or gradients of the adapter that TRL trains, by the names that memr1 has for them."""
    trained = {n.removeprefix("module."): p for n, p in model.named_parameters() if p.requires_grad}
    return {
        name.replace(".default.", "."): (p.grad if gradients else p.detach()).float().cpu().clone()
        for name, p in trained.items()
    }


def same_rows(args: argparse.Namespace, seen: dict[str, Any]) -> dict[str, float]:
    """Loss and gradients of memr1's update, prompts shared, on the rows, advantages and weights of TRL's first step."""
    import torch

    from memr1.config import Config, ModelConfig
    from memr1.learner.deepspeed_learner import UpdateSettings
    from memr1.learner.group import LocalLearnerGroup
    from memr1.learner.packing import TrainSequence, plan_microbatches
    from memr1.models.adapters import LoraSettings

    lora = LoraSettings(rank=args.lora_rank, alpha=2 * args.lora_rank)
    group = LocalLearnerGroup(Config(model=ModelConfig(name=args.model, lora=lora)), "answerer", None)
    policies = group.learner.policies
    policies.load_weights("answerer", seen["weights"])
    ours: dict[str, torch.Tensor] = {}

    def add(gradient: torch.Tensor, name: str) -> None:
        ours[name] = ours.get(name, 0) + gradient.detach().float().cpu()

    for name, p in policies.trainable_parameters("answerer").items():
        p.register_hook(partial(add, name=name))

    def real(ids: str, mask: str, row: int) -> tuple[int, ...]:
        return tuple(seen[ids][row][seen[mask][row].bool()].tolist())

    completions = [real("completion_ids", "completion_mask", n) for n in range(len(seen["advantages"]))]
    plan = plan_microbatches(
        [
            TrainSequence(real("prompt_ids", "prompt_mask", n), ids, (True,) * len(ids), float(seen["advantages"][n]))
            for n, ids in enumerate(completions)
        ],
        num_ranks=1,
        max_tokens_per_microbatch=4096,
        pad_id=0,
    )
    (stats,) = group.update(plan, UpdateSettings("grpo", 0.0, plan.trained_tokens, plan.trained_sequences, 1.0))
    theirs = seen["gradients"]
    if ours.keys() != theirs.keys():
        raise MemR1Error(f"the adapters differ: {sorted(ours.keys() ^ theirs.keys())[:4]}")
    largest = max(float(g.abs().max()) for g in theirs.values())
    return {
        "loss": stats["loss"],
        "trl_loss": seen["loss"],
        "gradient_norm": math.sqrt(sum(float(g.square().sum()) for g in ours.values())),
        "trl_gradient_norm": math.sqrt(sum(float(g.square().sum()) for g in theirs.values())),
        "largest_relative_difference": max(float((ours[n] - g).abs().max()) for n, g in theirs.items()) / largest,
    }


if __name__ == "__main__":
    main()
