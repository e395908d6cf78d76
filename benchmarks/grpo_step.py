"""Seconds and tokens of each phase of one GRPO step: prefill, decode, update, weight sync.

    python benchmarks/grpo_step.py --rows rows.jsonl --group-size 8 --max-new-tokens 16

Rows are JSON lines {"prompt": chat-template text, "answer": gold}. Without --rows the prompts are FactWorld questions
over full memory banks. The reference, measured in the same run, is the same step without shared prefixes: all samples
in one batch of `generate` of transformers over the same weights, every sequence of the update in a row of its own.
Its prefill is a `generate` of one token, its decoding the rest. Rewards are set matches of the answer.
Floating-point operations are counted by torch in a step that is not timed; the peak is that of a large linear layer
in the same run. `benchmarks/trl_step.py` runs the same rows through TRL.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from memr1.config import AlgoConfig, Config, LearnerConfig, ModelConfig, RolloutConfig
from memr1.config_file import load_config
from memr1.errors import MemR1Error


def read_rows(path: Path, limit: int) -> list[dict[str, str]]:
    """Rows of a workload; MemR1Error names the line of a bad one."""
    if not path.is_file():
        raise MemR1Error(f"{path}: no such file; give JSON lines with the fields prompt and answer")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows.append({"prompt": row["prompt"], "answer": str(row["answer"])})
        except (ValueError, KeyError, TypeError) as error:
            raise MemR1Error(f'{path}:{number}: expected {{"prompt": "...", "answer": "..."}}: {error!r}') from error
    if not rows:
        raise MemR1Error(f"{path}: holds no rows")
    return rows[:limit]


def factworld_rows(limit: int, tokenizer: Any, prompt_tokens: int) -> list[dict[str, str]]:
    """Questions over what was said in several worlds, as the answerer is asked them, in about that many tokens."""
    from memr1.agents.roles import make_agents
    from memr1.data.factworld import FactWorldConfig, generate_dialogues
    from memr1.envs.ingesting import turn_entries

    agents = make_agents(Config(rollout=RolloutConfig(max_prompt_tokens=prompt_tokens)), tokenizer)
    # a world has some 800 tokens; what does not fit is cut from the end
    each = 1 + prompt_tokens // 600
    dialogues = generate_dialogues(FactWorldConfig(num_worlds=limit * each))
    rows = []
    for n in range(limit):
        told = dialogues[n * each : (n + 1) * each]
        question = told[0].questions[0]
        prompt = agents.answerer.prompt(question.text, [e for d in told for e in turn_entries(d)])
        rows.append({"prompt": prompt.text, "answer": question.answer or ""})
    return rows


def workload_options(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that say which step is measured."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, help='JSON lines {"prompt", "answer"}; default: FactWorld prompts')
    parser.add_argument("--prompts", type=int, default=4, help="rows used in a step")
    parser.add_argument("--prompt-tokens", type=int, default=480, help="about how long FactWorld prompts are")
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2, help="measured steps, after one that warms up")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--lora-rank", type=int, default=16)
    parser.add_argument("--max-tokens-per-microbatch", type=int, default=4096, help="of memr1's update")
    return parser


def main() -> None:
    """Parse options, run, print a table and the same as one JSON line."""
    parser = workload_options(__doc__)
    parser.add_argument("--no-reference", action="store_true", help="skip the unshared step")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        result = run(args)
    except MemR1Error as error:
        print(f"grpo_step: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print_table(result)
    print(json.dumps(result))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the step with and without shared prefixes."""
    from memr1.models.adapters import LoraSettings
    from memr1.models.registry import load_tokenizer
    from memr1.training.runlog import machine_info

    tokenizer = load_tokenizer(args.model)
    rows = (
        read_rows(args.rows, args.prompts) if args.rows else factworld_rows(args.prompts, tokenizer, args.prompt_tokens)
    )
    prompts = [tuple(tokenizer(r["prompt"], add_special_tokens=False)["input_ids"]) for r in rows]
    base = load_config()
    config = Config(
        seed=args.seed,
        model=ModelConfig(name=args.model, lora=LoraSettings(rank=args.lora_rank, alpha=2 * args.lora_rank)),
        rollout=base.rollout,
        algo=AlgoConfig(),
        learner=LearnerConfig(max_tokens_per_microbatch=args.max_tokens_per_microbatch),
        memory=base.memory,
    )
    bench = Bench(config, tokenizer, args)
    out: dict[str, Any] = {
        "machine": machine_info() | {"processor": platform.processor() or platform.machine()},
        "workload": {
            "prompts": len(prompts),
            "prompt_tokens": [len(p) for p in prompts],
            "group_size": args.group_size,
            "max_new_tokens": args.max_new_tokens,
            "model": args.model,
        },
        "shared": bench.measure(prompts, rows, shared=True),
        "peak_memory_gib": round(peak_memory_gib(), 2),  # the reference comes after it
        "matmul_gflops_per_s": round(matmul_peak(config.model.dtype) / 1e9, 1),
        "gflops": {name: round(n / 1e9, 4) for name, n in bench.count_operations(prompts, rows).items()},
    }
    for phase, gflops in out["gflops"].items():
        seconds = out["shared"]["update_s"] if phase == "update" else sum(out["shared"][f"{p}_s"] for p in ROLLOUT)
        out[f"{phase}_fraction_of_peak"] = round(gflops / seconds / out["matmul_gflops_per_s"], 3)
    if not args.no_reference:
        out["unshared"] = bench.measure(prompts, rows, shared=False)
        out["speedup"] = round(out["unshared"]["total_s"] / out["shared"]["total_s"], 2)
    return out


ROLLOUT = ("prefill", "decode")


def peak_memory_gib() -> float:
    """The most that this process has held: on its GPU where there is one, otherwise resident."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


def matmul_peak(dtype: str, size: int = 4096, tries: int = 5) -> float:
    """Operations per second of the best of some passes of a square linear layer, in the precision of the model and by
    the library that memr1 uses here."""
    import torch

    from memr1.models.cpu import prefers_onednn, use_onednn
    from memr1.models.registry import pick_device, pick_dtype

    device = pick_device("auto")
    layer = torch.nn.Linear(size, size, bias=False).to(device, pick_dtype(dtype, device))
    if prefers_onednn():
        use_onednn(layer)
    x, best = torch.randn(size, size).to(layer.weight), 0.0
    with torch.inference_mode():
        for _ in range(1 + tries):
            start = time.perf_counter()
            layer(x)[0, 0].item()  # waits for a GPU
            best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


Sampled = tuple[tuple[int, ...], tuple[float, ...]]
"""Tokens of a completion and their log-probabilities."""


class Bench:
    """An engine and a learner on the same weights."""

    def __init__(self, config: Config, tokenizer: Any, args: argparse.Namespace) -> None:
        from memr1.learner.group import LocalLearnerGroup
        from memr1.models.adapters import PolicyModel
        from memr1.models.cpu import set_up_cpu
        from memr1.rollout.runner import eos_token_ids
        from memr1.rollout.transformers_engine import TransformersEngine

        set_up_cpu(config.model.threads)
        self.args, self.tokenizer = args, tokenizer
        policies = PolicyModel.create(
            config.model.name, ("answerer",), "lora", config.model.lora, seed=config.seed, dtype=config.model.dtype
        )
        self.engine = TransformersEngine(policies, eos_token_ids(policies, tokenizer), tokenizer.pad_token_id)
        self.learners = LocalLearnerGroup(config, "answerer", None, beside=policies)
        self.version = 0

    def measure(self, prompts: list[tuple[int, ...]], rows: list[dict[str, str]], *, shared: bool) -> dict[str, Any]:
        """Median seconds by phase over the measured steps."""
        steps = [self.step(prompts, rows, shared, i) for i in range(1 + self.args.steps)][1:]
        return {name: round(statistics.median(s[name] for s in steps), 4) for name in steps[0]}

    def count_operations(self, prompts: list[tuple[int, ...]], rows: list[dict[str, str]]) -> dict[str, int]:
        """Floating-point operations of a step by phase, by torch's counter."""
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.utils.flop_counter import FlopCounterMode

        counts: dict[str, int] = {}

        def counted(name: str, call: Any) -> Any:
            def run(*args: Any, **kwargs: Any) -> Any:
                # the only attention on a CPU whose operations torch counts
                with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                    result = call(*args, **kwargs)
                counts[name] = counter.get_total_flops()
                return result

            return run

        generate, update = self.engine.generate, self.learners.update
        self.engine.generate, self.learners.update = counted("rollout", generate), counted("update", update)  # type: ignore[method-assign]
        try:
            self.step(prompts, rows, True, 0)
        finally:
            self.engine.generate, self.learners.update = generate, update  # type: ignore[method-assign]
        return counts

    def step(
        self, prompts: list[tuple[int, ...]], rows: list[dict[str, str]], shared: bool, index: int
    ) -> dict[str, float]:
        """One GRPO step."""
        import torch

        from memr1.algos.advantages import grpo_advantages
        from memr1.learner.deepspeed_learner import UpdateSettings
        from memr1.learner.packing import TrainSequence, plan_microbatches
        from memr1.rewards.match import em_set

        group = self.args.group_size
        samples = [p for p in prompts for _ in range(group)]
        sample = self.sample_shared if shared else self.sample_unshared
        completions, timings = sample(samples, seed=10**6 * index)
        rewards = torch.tensor(
            [em_set(self.tokenizer.decode(ids, skip_special_tokens=True), rows[i // group]["answer"])
             for i, (ids, _) in enumerate(completions)]
        )  # fmt: skip
        advantages = grpo_advantages(rewards, torch.arange(len(prompts)).repeat_interleave(group))
        if not advantages.any():  # an untrained model may get all wrong: the work is the same, give it a direction
            advantages = torch.linspace(-1, 1, len(completions))
        sequences = [
            TrainSequence(prompt, ids, (True,) * len(ids), float(a), logprobs)
            for prompt, (ids, logprobs), a in zip(samples, completions, advantages, strict=True)
        ]
        start = time.perf_counter()
        plan = plan_microbatches(
            sequences,
            num_ranks=1,
            max_tokens_per_microbatch=self.args.max_tokens_per_microbatch,
            pad_id=0,
            share_prefixes=shared,
        )
        self.learners.update(plan, UpdateSettings("grpo", 0.0, plan.trained_tokens, plan.trained_sequences, 1.0))
        updated = time.perf_counter()
        self.version += 1
        self.engine.load_weights(self.learners.ship(self.version))
        synced = time.perf_counter()
        out = {
            "prefill_s": timings["prefill_s"],
            "prefill_tokens": timings["prefill_tokens"],
            "decode_s": timings["decode_s"],
            "decode_tokens": timings["decode_tokens"],
            "update_s": updated - start,
            "update_tokens": float(plan.computed_tokens),
            "sync_s": synced - updated,
        }
        out["total_s"] = sum(v for k, v in out.items() if k.endswith("_s"))
        return out

    @contextmanager
    def plain_model(self) -> Iterator[Any]:
        """The policy as others would have it: the adapter merged, and every layer torch's own."""
        from torch import nn

        from memr1.models.cpu import OneDnnLinear

        policies = self.engine.policies
        policies.forget_merged()
        with patch("memr1.models.cpu.prefers_packed", lambda: False), policies.use_merged("answerer") as model:
            ours = [m for m in model.modules() if isinstance(m, OneDnnLinear)]
            for layer in ours:
                layer.__class__ = nn.Linear
            try:
                yield model
            finally:
                for layer in ours:
                    layer.__class__ = OneDnnLinear
        policies.forget_merged()

    def sample_shared(self, samples: list[tuple[int, ...]], seed: int) -> tuple[list[Sampled], dict[str, float]]:
        """One completion per prompt by memr1's engine, and what it took."""
        from memr1.rollout.engine import GenerationRequest, SamplingParams

        new = self.args.max_new_tokens
        requests = [GenerationRequest(p, "answerer", SamplingParams(new, 1.0, seed + i)) for i, p in enumerate(samples)]
        return [(c.ids, c.logprobs) for c in self.engine.generate(requests)], self.engine.pop_timings()

    def sample_unshared(self, samples: list[tuple[int, ...]], seed: int) -> tuple[list[Sampled], dict[str, float]]:
        """The same by `generate` of transformers on one padded batch, in layers as transformers has them."""
        import torch

        width, pad = max(map(len, samples)), self.tokenizer.pad_token_id
        with self.plain_model() as model, torch.inference_mode():
            ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in samples], device=model.device)
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in samples], device=model.device)

            def generate(max_new_tokens: int) -> Any:
                torch.manual_seed(seed)
                return model.generate(
                    input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=True, temperature=1.0,
                    top_k=0, top_p=1.0, repetition_penalty=1.0, eos_token_id=list(self.engine.eos_ids),
                    pad_token_id=pad, return_dict_in_generate=True, output_logits=True,
                )  # fmt: skip

            start = time.perf_counter()
            generate(1)
            middle = time.perf_counter()
            out = generate(self.args.max_new_tokens)
            end = time.perf_counter()
        chosen = out.sequences[:, width:]
        scores = torch.stack(out.logits, dim=1).float().log_softmax(-1).gather(2, chosen[..., None])[..., 0]
        completions: list[Sampled] = []
        for tokens, logprobs in zip(chosen.tolist(), scores.tolist(), strict=True):
            length = next((n for n, t in enumerate(tokens, 1) if t in self.engine.eos_ids), len(tokens))
            completions.append((tuple(tokens[:length]), tuple(logprobs[:length])))
        return completions, {
            "prefill_s": middle - start,
            "prefill_tokens": float(sum(map(len, samples))),
            "decode_s": max((end - middle) - (middle - start), 0.0),
            "decode_tokens": float(sum(len(ids) for ids, _ in completions)),
        }


def print_table(result: dict[str, Any]) -> None:
    """The result for people."""
    from rich.console import Console
    from rich.table import Table

    machine, work = result["machine"], result["workload"]
    where = ", ".join(machine.get("gpus", ())) or f"{machine['cpus']} CPUs"
    table = Table(
        "phase", "seconds", "tokens", "unshared seconds", "unshared tokens", "ratio",
        title=f"GRPO step of {work['model']} on {where}: {work['prompts']} prompts of {work['prompt_tokens']} tokens, "
        f"{work['group_size']} samples each, {work['max_new_tokens']} new tokens",
    )  # fmt: skip
    shared, unshared = result["shared"], result.get("unshared", {})
    for phase in ("prefill", "decode", "update", "sync", "total"):
        seconds, reference = shared[f"{phase}_s"], unshared.get(f"{phase}_s")
        table.add_row(
            phase,
            f"{seconds:.2f}",
            f"{shared.get(f'{phase}_tokens', 0):.0f}" if f"{phase}_tokens" in shared else "",
            f"{reference:.2f}" if reference is not None else "",
            f"{unshared.get(f'{phase}_tokens', 0):.0f}" if f"{phase}_tokens" in unshared else "",
            f"{reference / seconds:.2f}x" if reference is not None and seconds else "",
        )
    Console().print(table)
    shares = [
        f"{phase} {result['gflops'][phase]:.0f} GFLOP, {100 * result[f'{phase}_fraction_of_peak']:.0f} %"
        for phase in result["gflops"]
    ]
    Console().print(
        f"of the peak of {result['matmul_gflops_per_s']:.0f} GFLOP/s: {'; '.join(shares)}. "
        f"Most memory held: {result['peak_memory_gib']:.2f} GiB"
    )


if __name__ == "__main__":
    main()
