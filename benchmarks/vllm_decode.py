"""Tokens per second of vLLM on the batches of `scaling.py --parts decode --vllm PYTHON`, which starts this in the
environment that has vLLM. Reads one JSON object from standard input and prints one as its last line.

Plain vLLM with its own defaults, without adapters. Its cache of prefixes is emptied before every measurement: in
training no prompt comes again with the same weights.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from typing import Any


def main() -> None:
    """{"model": directory, "steps": n, "cases": [{"prompts": [[token id]], "group": n, "new": n}]} -> rates by case."""
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
        found = []
        for step in range(1 + work["steps"]):  # the first warms up
            seeds = range(1000 * step, 1000 * step + len(prompts))
            how = [SamplingParams(max_tokens=case["new"], seed=seed, logprobs=0) for seed in seeds]
            llm.reset_prefix_cache()
            start = time.perf_counter()
            outputs = llm.generate(prompts, how, use_tqdm=False)
            seconds = time.perf_counter() - start
            found.append(sum(len(o.outputs[0].token_ids) for o in outputs) / seconds)
        rates.append(statistics.median(found[1:]))
    print(json.dumps({"version": __version__, "tokens_per_second": rates}))


if __name__ == "__main__":
    main()
