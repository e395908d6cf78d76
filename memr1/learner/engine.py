"""DeepSpeed engines: how a rank meets the others, and how an optimizer over some weights of a module is made."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memr1.config import LearnerConfig
from memr1.errors import MemR1Error

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Rendezvous:
    """Where the ranks of a learner group meet."""

    rank: int = 0
    world_size: int = 1
    address: str = "127.0.0.1"
    port: int = 0
    """0 lets a single rank choose a free port."""


def make_engine(module: nn.Module, parameters: Sequence[nn.Parameter], learner: LearnerConfig) -> Any:
    """A DeepSpeed engine that trains `parameters` of `module` with AdamW. All ranks take part.

    With parameters in bf16 (full fine-tuning) the optimizer keeps fp32 copies, since small steps would round away.
    """
    import deepspeed
    import torch

    engine, *_ = deepspeed.initialize(
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
            "zero_optimization": {"stage": learner.zero_stage},
            "gradient_clipping": learner.max_grad_norm,
            "bf16": {"enabled": any(p.dtype == torch.bfloat16 for p in parameters)},
            "steps_per_print": 10**9,
        },
    )

    def clip() -> None:
        """At ZeRO 0 in fp32 DeepSpeed clips but forgets the norm; keep it where its own getter looks."""
        with_gradient = [p for p in engine.module.parameters() if p.grad is not None]
        engine._global_grad_norm = float(torch.nn.utils.clip_grad_norm_(with_gradient, learner.max_grad_norm))

    engine.clip_fp32_gradients = clip
    _limit_collectives(learner.collective_timeout_s)
    return engine


def set_learning_rate(engine: Any, learning_rate: float) -> None:
    """For the next steps of an engine."""
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate


def restore_engine(engine: Any, folder: str, tag: str) -> None:
    """Read what `engine.save_checkpoint(folder, tag)` wrote, with the same number of ranks and the same ZeRO stage.

    Raises MemR1Error for files that are missing, damaged or of other ranks or stages.
    """
    where = Path(folder) / tag
    if not where.is_dir():
        raise MemR1Error(f"{where}: no learner checkpoint there; resume from a checkpoint inside a stage")
    try:
        path, _ = engine.load_checkpoint(folder, tag=tag, load_module_strict=False)
    except Exception as error:  # assertions, pickle's, zip's and DeepSpeed's own
        said = " ".join(str(error).split()) or type(error).__name__
        raise MemR1Error(
            f"{where}: not readable as a checkpoint of {engine.dp_world_size} learners at ZeRO stage "
            f"{engine.zero_optimization_stage()} ({said}). Resume with the settings it was written with, or from "
            "another checkpoint"
        ) from error
    if path is None:
        raise MemR1Error(f"{where}: files are missing there; resume from another checkpoint")


def gradient_norm(engine: Any) -> float:
    """Global norm of the gradients of the last step, before clipping."""
    norm = engine.get_global_grad_norm()
    return float(norm) if norm is not None else float("nan")


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
