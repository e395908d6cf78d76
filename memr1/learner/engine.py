"""DeepSpeed engines: how a rank meets the others, and how an optimizer over some weights of a module is made."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memr1.config import LearnerConfig
from memr1.errors import MemR1Error

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Rendezvous:
    """Where the ranks of a learner group meet."""

    rank: int = 0
    world_size: int = 1
    address: str = "127.0.0.1"
    port: int = 0
    """0 lets a single rank choose a free port."""


class Engine:
    """AdamW over `parameters` of `module`, sharded over the ranks as `learner.zero_stage` says.

    All ranks must make the same calls in the same order. With parameters in bf16 (full fine-tuning) the optimizer keeps
    fp32 copies, since small steps would round away, and gradients are added up in fp32, since a sum in bf16 no longer
    grows at 256 times what is added.
    """

    def __init__(self, module: nn.Module, parameters: Sequence[nn.Parameter], learner: LearnerConfig) -> None:
        import deepspeed
        import torch

        self._seen: Tensor | None = None
        for p in parameters:
            p.register_hook(self._see)
        low_precision = any(p.dtype == torch.bfloat16 for p in parameters)
        self._sums: dict[nn.Parameter, Tensor] = {}
        sums_here = low_precision and learner.zero_stage == 0  # where DeepSpeed adds up in the parameters' type only
        if sums_here:
            for p in parameters:
                p.register_post_accumulate_grad_hook(self._add_up)
        zero: dict[str, Any] = {"stage": learner.zero_stage}
        if learner.offload_optimizer:
            zero["offload_optimizer"] = {"device": "cpu"}
        self._engine, *_ = deepspeed.initialize(
            model=module,
            model_parameters=list(parameters),
            config={
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": 1,
                # `step()` is then exactly one optimizer step over however many backward passes came before it
                "managed_gradient_accumulation": False,
                "optimizer": {
                    "type": "AdamW",
                    "params": {
                        "lr": 0.0,
                        "betas": list(learner.betas),
                        "eps": 1e-8,
                        "weight_decay": learner.weight_decay,
                        "torch_adam": True,
                    },
                },
                "zero_optimization": zero,
                "zero_force_ds_cpu_optimizer": False,  # its own needs a C++ compiler
                "gradient_clipping": learner.max_grad_norm,
                "bf16": {"enabled": low_precision, "immediate_grad_update": True},
                "data_types": {} if sums_here else {"grad_accum_dtype": "fp32"},
                "steps_per_print": 10**9,
            },
        )

        def clip() -> None:
            """At ZeRO 0 in fp32 DeepSpeed clips but forgets the norm; keep it where its own getter looks."""
            with_gradient = [p for p in self.module.parameters() if p.grad is not None]
            norm = torch.nn.utils.clip_grad_norm_(with_gradient, learner.max_grad_norm)
            self._engine._global_grad_norm = float(norm)

        self._engine.clip_fp32_gradients = clip
        _limit_collectives(learner.collective_timeout_s)

    @property
    def module(self) -> Any:
        """The module that was handed in."""
        return self._engine.module

    @property
    def optimizer(self) -> Any:
        """DeepSpeed's optimizer, with its groups and states."""
        return self._engine.optimizer

    def __call__(self, **inputs: Any) -> Any:
        """Forward."""
        return self._engine(**inputs)

    def backward(self, loss: Tensor) -> bool:
        """Add the gradient of a loss with a global denominator; whether loss and gradients are finite."""
        self._seen = None
        # DeepSpeed averages gradients over ranks, but the loss already has a global denominator
        self._engine.backward(loss * self._engine.dp_world_size, scale_wrt_gas=False)
        return math.isfinite(float(loss.detach())) and (self._seen is None or math.isfinite(float(self._seen)))

    def _see(self, gradient: Tensor) -> None:
        """Add up a gradient: a sum is finite only if everything in it is. ZeRO leaves no gradients to look at later."""
        import torch

        total = gradient.detach().sum(dtype=torch.float32)
        self._seen = total if self._seen is None else self._seen + total

    def _add_up(self, parameter: nn.Parameter) -> None:
        """Take a parameter's gradient of one micro-batch away and add it to those before, in fp32."""
        assert parameter.grad is not None
        total = self._sums.get(parameter)
        self._sums[parameter] = parameter.grad.float() if total is None else total.add_(parameter.grad)
        parameter.grad = None

    def step(self, learning_rate: float) -> float:
        """One optimizer step over what `backward` has added up; the global norm of the gradient before clipping."""
        for parameter, total in self._sums.items():
            parameter.grad = total.to(parameter.dtype)
        self._sums.clear()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        return float(norm) if norm is not None else float("nan")

    def save(self, folder: str, tag: str) -> None:
        """Write the weights that require a gradient and the optimizer to `folder`/`tag`, sharded over ranks."""
        self._engine.save_checkpoint(folder, tag=tag, exclude_frozen_parameters=True)

    def restore(self, folder: str, tag: str) -> None:
        """Read what `save` wrote, with the same number of ranks and the same ZeRO stage.

        Raises MemR1Error for files that are missing, damaged or of other ranks or stages.
        """
        where = Path(folder) / tag
        if not where.is_dir():
            raise MemR1Error(f"{where}: no learner checkpoint there; resume from a checkpoint inside a stage")
        try:
            path, _ = self._engine.load_checkpoint(folder, tag=tag, load_module_strict=False)
        except Exception as error:  # assertions, pickle's, zip's and DeepSpeed's own
            said = " ".join(str(error).split()) or type(error).__name__
            raise MemR1Error(
                f"{where}: not readable as a checkpoint of {self._engine.dp_world_size} learners at ZeRO stage "
                f"{self._engine.zero_optimization_stage()} ({said}). Resume with the settings it was written with, or "
                "from another checkpoint with --resume FOLDER"
            ) from error
        if path is None:
            raise MemR1Error(f"{where}: files are missing there; resume from another checkpoint")

    def close(self) -> None:
        """Free what the optimizer holds."""
        self._engine.destroy()


def join(rendezvous: Rendezvous, device: Any, timeout_s: float) -> None:
    """Set what torch.distributed and DeepSpeed read from the environment, and meet the other ranks."""
    import socket

    port = rendezvous.port
    if port == 0:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    os.environ.update(
        MASTER_ADDR=rendezvous.address,
        MASTER_PORT=str(port),
        RANK=str(rendezvous.rank),
        WORLD_SIZE=str(rendezvous.world_size),
        # Ray shows an actor its own devices only, so the local rank is always 0
        LOCAL_RANK="0",
    )
    on_gpu = device.type == "cuda"
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import torch.distributed

    if not torch.distributed.is_initialized():
        import deepspeed

        # shared-memory collectives for ranks on one CPU machine: they need a C++ compiler and a minute to build, and
        # gloo does without them
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(
            dist_backend="nccl" if on_gpu else "gloo", timeout=timedelta(seconds=timeout_s), verbose=False
        )


def _limit_collectives(timeout_s: float) -> None:
    """Give every process group the timeout: those that DeepSpeed makes for itself get torch's 30 minutes."""
    from torch.distributed import distributed_c10d

    for group in list(distributed_c10d._world.pg_map):
        distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_s), group)
