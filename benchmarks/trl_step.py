"""The workload of `grpo_step.py` through TRL's GRPOTrainer with its defaults, for a comparison on one machine.

    make bench-trl ARGS='--group-size 8 --max-new-tokens 16'

Both run one after the other and the ratio is printed. TRL is put into a folder of its own: memr1 does not need it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
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

    clock = Clock()
    gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
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
    }


if __name__ == "__main__":
    main()
