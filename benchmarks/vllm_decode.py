"""Tokens per second of vLLM on the batches of `scaling.py --parts decode --vllm PYTHON`, which starts this in the
environment that has vLLM. Reads one JSON object from standard input and prints one on a line of its own.

Plain vLLM with its own defaults, without adapters. Its cache of prefixes is emptied before every measurement: in
training no prompt comes again with the same weights.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def main() -> None:
    """{"model": directory, "steps": n, "cases": [{"prompts": [[token id]], "group": n, "new": n}]} -> rates by case."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    from torch.cuda import is_available
    from vllm import LLM, SamplingParams, __version__

    work: dict[str, Any] = json.load(sys.stdin)
    longest = max(len(p) + case["new"] for case in work["cases"] for p in case["prompts"])
    eager = {} if is_available() else {"dtype": "float32", "enforce_eager": True}
    llm = LLM(work["model"], max_model_len=longest, generation_config="vllm", **eager)
    rates = []
    for case in work["cases"]:
        prompts = [{"prompt_token_ids": p} for p in case["prompts"] for _ in range(case["group"])]
        best = 0.0
        for step in range(1 + work["steps"]):  # the first warms up
            how = SamplingParams(max_tokens=case["new"], ignore_eos=True, logprobs=0)
            llm.reset_prefix_cache()
            start = time.perf_counter()
            outputs = llm.generate(prompts, how, use_tqdm=False)
            seconds = time.perf_counter() - start
            if step:
                best = max(best, sum(len(o.outputs[0].token_ids) for o in outputs) / seconds)
        rates.append(best)
    print(json.dumps({"version": __version__, "tokens_per_second": rates}))


if __name__ == "__main__":
    main()
