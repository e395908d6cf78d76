"""vLLM as the rollout engine, for GPUs and long completions. An optional extra; imported when it is chosen.

The policies stay in a `PolicyModel` on the CPU, which loads, checks and saves weights for every engine alike. vLLM gets
a role's weights when they have changed: an adapter as a file under a name of its own, a full model in place. Runs in
this process, on one device.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memr1.errors import MemR1Error
from memr1.models.adapters import BASE, PolicyModel
from memr1.rollout.engine import Completion, GenerationRequest
from memr1.rollout.local_weights import LocalWeights

ADAPTER_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Sizes that vLLM reserves for adapters; a smaller adapter uses the next larger one."""


@dataclass(frozen=True)
class _Resident:
    state: Any
    """`PolicyModel.state_of` when the weights were handed over."""
    adapter: Any = None
    """The LoRARequest that names them; None for full weights and the base."""


class VllmEngine(LocalWeights):
    """Generation by vLLM. Not thread-safe. Make one per process: it takes a share of the device's memory."""

    def __init__(
        self,
        policies: PolicyModel,
        eos_ids: Sequence[int],
        *,
        max_tokens: int,
        memory_fraction: float = 0.5,
        dtype: str = "auto",
        device: str = "auto",
        seed: int = 0,
    ) -> None:
        """policies: on the CPU, made from a name. max_tokens: longest prompt and completion together.
        memory_fraction: of the GPU, for weights and the key-value cache; on a CPU the cache takes
        `VLLM_CPU_KVCACHE_SPACE` GiB (2 if unset). Raises MemR1Error where vLLM is missing or cannot run the model.
        """
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # weights are handed over in this process
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        try:
            from vllm import LLM
        except ImportError as error:
            raise MemR1Error(
                f"rollout.engine=vllm: vLLM cannot be imported ({error}); it pins torch itself, so it has an "
                "environment of its own: see docs/install.md, or choose rollout.engine=transformers"
            ) from error
        from memr1.models.registry import pick_device, pick_dtype, resolve_model

        picked = pick_device(device)
        lora: dict[str, Any] = {}
        if policies.mode == "lora":
            rank = next((r for r in ADAPTER_RANKS if r >= policies.adapter_rank), None)
            if rank is None:
                raise MemR1Error(
                    f"model.lora.rank is {policies.adapter_rank} and vLLM takes adapters up to {ADAPTER_RANKS[-1]}"
                )
            lora = {"enable_lora": True, "max_lora_rank": rank, "max_loras": len(policies.roles)}
        super().__init__(policies)
        self.eos_ids = tuple(eos_ids)
        try:
            self._llm: Any = LLM(
                resolve_model(policies.source),
                dtype=str(pick_dtype(dtype, picked)).removeprefix("torch."),
                max_model_len=max_tokens,
                gpu_memory_utilization=memory_fraction,
                enforce_eager=picked.type == "cpu",
                # a seeded request whose prefill is interrupted turns its generator back, which CPU generators cannot
                enable_chunked_prefill=False if picked.type == "cpu" else None,
                logprobs_mode="processed_logprobs",  # of the distribution that is sampled from
                generation_config="vllm",  # else a model's own defaults would cut the distribution
                seed=seed,
                **lora,
            )
        except (ValueError, RuntimeError, NotImplementedError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise MemR1Error(f"{policies.source}: vLLM cannot run it: {reason[-1]}") from error
        self._resident: dict[str, _Resident] = {}
        self._numbers = itertools.count(1)
        self._folder = tempfile.TemporaryDirectory(prefix="memr1-adapters-")

    def _hand_over(self, policy: str) -> Any:
        """Make vLLM hold the current weights of a policy; returns what names them in a call."""
        start = time.perf_counter()
        try:
            return self._full_weights(policy) if self.policies.mode == "full" else self._adapter(policy)
        finally:
            self.timings["sync_s"] += time.perf_counter() - start

    def _adapter(self, policy: str) -> Any:
        if policy == BASE:
            return None
        state, held = self.policies.state_of(policy), self._resident.get(policy)
        if held is not None and held.state == state:
            return held.adapter
        from vllm.lora.request import LoRARequest

        # vLLM keeps blocks of its cache under the adapter's name: a new name for new weights can hit no old block
        number = next(self._numbers)
        folder = Path(self._folder.name) / f"{policy}-{number}"
        self.policies.save(policy, folder)
        if held is not None:
            self._llm.llm_engine.remove_lora(held.adapter.lora_int_id)
            shutil.rmtree(held.adapter.lora_path, ignore_errors=True)
        adapter = LoRARequest(folder.name, number, str(folder))
        self._llm.llm_engine.add_lora(adapter)
        self._resident[policy] = _Resident(state, adapter)
        return adapter

    def _full_weights(self, policy: str) -> None:
        state = self.policies.state_of(policy)
        if self._resident.get(policy) == _Resident(state):
            return
        with self.policies.use(policy) as model:
            weights = [(name, p.detach()) for name, p in model.named_parameters()]
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self._llm.reset_prefix_cache()
        self._resident = {policy: _Resident(state)}  # one model at a time

    # -- generation ---------------------------------------------------------------------------------------------

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """See `Engine.generate`. Raises ValueError on an empty prompt."""
        from vllm import SamplingParams

        results: list[Completion | None] = [None] * len(requests)
        by_policy: dict[str, list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            if not request.prompt_ids:
                raise ValueError(f"request {i} has an empty prompt")
            by_policy[request.policy].append(i)
        for policy, members in by_policy.items():
            adapter = self._hand_over(policy)
            how = [requests[i].sampling for i in members]
            start = time.perf_counter()
            outputs = self._llm.generate(
                [{"prompt_token_ids": list(requests[i].prompt_ids)} for i in members],
                [
                    SamplingParams(
                        max_tokens=s.max_new_tokens,
                        temperature=s.temperature,
                        seed=s.seed,
                        logprobs=0,
                        stop=list(s.stop),
                        include_stop_str_in_output=True,
                        stop_token_ids=list(self.eos_ids),
                        ignore_eos=True,  # the ids above are all that end a turn
                    )
                    for s in how
                ],
                lora_request=adapter,
                use_tqdm=False,
            )
            self.timings["generate_s"] += time.perf_counter() - start
            for i, output in zip(members, outputs, strict=True):
                results[i] = self._completion(output, self._versions[policy])
        return [r for r in results if r is not None]

    def _completion(self, output: Any, version: int) -> Completion:
        (said,) = output.outputs
        if said.finish_reason not in ("stop", "length"):
            raise RuntimeError(f"vLLM ended a request with {said.finish_reason!r}")
        ids = tuple(said.token_ids)
        self.timings["prefill_tokens"] += len(output.prompt_token_ids) - (output.num_cached_tokens or 0)
        self.timings["decode_tokens"] += len(ids)
        logprobs = tuple(min(at[t].logprob, 0.0) for at, t in zip(said.logprobs, ids, strict=True))
        return Completion(ids, logprobs, said.finish_reason, version)
