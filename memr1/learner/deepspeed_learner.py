"""One rank of the learner group: a DeepSpeed engine over the trainable weights of one role.

Runs in the driver (`local` backend) or in an actor (`memr1.rllib.learner_group`); the code is the same. A learner is
made for a stage and owns that stage's optimizer.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from memr1.config import Config
from memr1.errors import MemR1Error
from memr1.learner.packing import MicroBatch

logger = logging.getLogger(__name__)

REFERENCE = "reference"
"""Name of the frozen policy that the KL is measured against: a copy of the role's weights as the stage began."""


@dataclass(frozen=True)
class Rendezvous:
    """Where the ranks of a learner group meet."""

    rank: int = 0
    world_size: int = 1
    address: str = "127.0.0.1"
    port: int = 0
    """0 lets a single rank choose a free port."""


@dataclass(frozen=True)
class UpdateSettings:
    """What an update needs besides its micro-batches."""

    objective: str
    learning_rate: float
    trained_tokens: int
    trained_sequences: int
    temperature: float
    epochs: int = 1
    """Passes over the micro-batches, each one optimizer step."""


class DeepSpeedLearner:
    """Trains one role. All ranks must make the same calls in the same order."""

    def __init__(self, config: Config, role: str, weights_folder: str | None, rendezvous: Rendezvous) -> None:
        """weights_folder: where to read the role's weights as written by `Runner.save_policies`; None starts fresh."""
        from memr1.models.registry import pick_device
        from memr1.rollout.runner import set_threads

        set_threads(config.model.threads)
        self.config = config
        self.role = role
        self.rank = rendezvous.rank
        self.world_size = rendezvous.world_size
        self.device = pick_device(config.model.device)
        _join(rendezvous, self.device, config.learner.collective_timeout_s)
        import deepspeed

        from memr1.learner.scoring import CompletionScorer, shared_prefixes_are_exact
        from memr1.models.adapters import PolicyModel

        roles = (role, REFERENCE) if config.algo.kl_coef > 0 else (role,)
        self.policies = PolicyModel.create(
            config.model.name,
            roles,
            config.model.weights,
            config.model.lora,
            seed=config.seed,
            dtype=config.model.dtype,
            device=self.device,
        )
        if weights_folder is not None:
            self.policies.load(role, Path(weights_folder) / role)
        if config.algo.kl_coef > 0:
            self.policies.copy_weights(role, REFERENCE)
        self._contexts = ExitStack()
        module = self._contexts.enter_context(self.policies.use(role))  # the role stays active for the learner's life
        self.policies.train_only(role)
        self.scorer = CompletionScorer(module, gradient_checkpointing=config.learner.gradient_checkpointing)
        self.shares_prefixes = config.learner.share_prefixes and shared_prefixes_are_exact(self.scorer, pad_id=0)
        if config.learner.share_prefixes and not self.shares_prefixes:
            logger.warning("%s: shared prompts are computed once per completion, see above", config.model.name)
        trainable = list(self.policies.trainable_parameters(role).values())
        self.engine, *_ = deepspeed.initialize(
            model=self.scorer, model_parameters=trainable, config=self._deepspeed_config()
        )
        self._record_gradient_norm()
        _limit_collectives(config.learner.collective_timeout_s)

    def _deepspeed_config(self) -> dict[str, Any]:
        learner = self.config.learner
        full_bf16 = self.config.model.weights == "full" and self._low_precision()
        return {
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
            "bf16": {"enabled": full_bf16},
            "steps_per_print": 10**9,
        }

    def _low_precision(self) -> bool:
        import torch

        return next(self.scorer.parameters()).dtype != torch.float32

    def _record_gradient_norm(self) -> None:
        """At ZeRO 0 in fp32 DeepSpeed clips but forgets the norm; keep it where its own getter looks."""
        import torch

        def clip() -> None:
            parameters = [p for p in self.engine.module.parameters() if p.grad is not None]
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.learner.max_grad_norm)
            self.engine._global_grad_norm = float(norm)

        self.engine.clip_fp32_gradients = clip

    def supports_shared_prefixes(self) -> bool:
        """Whether packed prompts give this model the same result as separate ones; probed at the start."""
        return self.shares_prefixes

    def update(self, microbatches: Sequence[MicroBatch], settings: UpdateSettings) -> dict[str, float]:
        """`settings.epochs` optimizer steps on one batch. Returns sums over this rank's tokens and `grad_norm`.

        They are those of the first pass, but for `approx_kl` and `clip_fraction`: only later passes move away from the
        policy that sampled. See `memr1.training.metrics`.
        """
        for group in self.engine.optimizer.param_groups:
            group["lr"] = settings.learning_rate
        old: list[Any] = [None] * len(microbatches)  # log-probabilities before the first step, by micro-batch
        totals = self._optimizer_step(microbatches, settings, old)
        for _ in range(1, settings.epochs):
            last = self._optimizer_step(microbatches, settings, old)
            totals |= {name: last[name] for name in ("approx_kl", "clip_fraction") if name in last}
        return totals

    def _optimizer_step(
        self, microbatches: Sequence[MicroBatch], settings: UpdateSettings, old: list[Any]
    ) -> dict[str, float]:
        """One pass over the batch and one optimizer step. Fills in what is None in `old`."""
        totals: dict[str, float] = {"max_low_precision": float(self._low_precision())}
        for i, batch in enumerate(microbatches):
            loss, stats, old[i] = self._loss(batch, settings, old[i])
            # DeepSpeed averages gradients over ranks, but the loss already has a global denominator
            self.engine.backward(loss * self.world_size, scale_wrt_gas=False)
            stats["loss"] = float(loss.detach())
            for name, value in stats.items():
                reduce = max if name.startswith("max_") else float.__add__
                totals[name] = reduce(totals[name], value) if name in totals else value
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        totals["grad_norm"] = float(norm) if norm is not None else float("nan")
        return totals

    def _loss(self, batch: MicroBatch, settings: UpdateSettings, old: Any) -> tuple[Any, dict[str, float], Any]:
        """Loss, statistics, and the log-probabilities before the first optimizer step: `old`, or now where None."""
        import torch

        from memr1.algos.losses import grpo_loss, sft_loss, token_weights
        from memr1.learner.scoring import to_tensors

        algo = self.config.algo
        inputs = to_tensors(batch, self.device)
        logprobs, entropy = self.engine(**inputs, temperature=settings.temperature)
        sequence_ids = torch.from_numpy(batch.sequence_ids).to(self.device)
        by_token = algo.aggregation == "token-mean" or settings.objective == "sft"
        denominator = settings.trained_tokens if by_token else settings.trained_sequences
        # also for a filler micro-batch: under ZeRO-3 every forward pass is a collective
        needs_reference = algo.kl_coef > 0 and settings.objective != "sft"
        reference = self._reference_logprobs(inputs, settings.temperature) if needs_reference else None
        if len(batch.targets) == 0:
            return logprobs.sum() * 0.0, {}, old
        weights = token_weights(
            sequence_ids, aggregation="token-mean" if by_token else algo.aggregation, denominator=denominator
        )
        old = logprobs.detach() if old is None else old
        stats = {"entropy": float(entropy.sum())}
        if settings.objective == "sft":
            result = sft_loss(logprobs, weights)
        else:
            rollout = (
                torch.from_numpy(batch.rollout_logprobs).to(self.device) if batch.rollout_logprobs is not None else None
            )
            advantages = torch.from_numpy(batch.advantages).to(self.device)
            # in the first pass the ratio is 1 and its gradient is the policy gradient; the clip bounds later ones
            result = grpo_loss(
                logprobs,
                old,
                advantages,
                weights,
                rollout_logprobs=rollout,
                ref_logprobs=reference,
                clip_low=algo.clip_low,
                clip_high=algo.clip_high,
                kl_coef=algo.kl_coef,
                importance_cap=algo.importance_cap,
                dual_clip=algo.dual_clip,
                sequence_ids=sequence_ids if algo.ratio == "sequence" else None,
            )
            if rollout is not None:
                drift = (old - rollout).abs()
                stats["rollout_mismatch"] = float(drift.sum())
                stats["max_rollout_mismatch"] = float(drift.max())
        stats |= {name: float(value) for name, value in result.stats.items()}
        return result.loss, stats, old

    def _reference_logprobs(self, inputs: Mapping[str, Any], temperature: float) -> Any:
        import torch

        from memr1.learner.scoring import CompletionScorer

        with torch.no_grad(), self.policies.use(REFERENCE) as module:
            # LoRA: the same module with another adapter; full: another copy, which needs a scorer of its own
            scorer = self.scorer if module is self.scorer.causal_lm else CompletionScorer(module)
            logprobs, _ = scorer(**inputs, temperature=temperature)
        return logprobs

    def _gathered(self, role: str, *, write: bool = False) -> Any:
        """ZeRO-3 keeps shards; gather those of a role while they are read, or written (rank 0's values count)."""
        if self.config.learner.zero_stage < 3 or (role == REFERENCE and self.config.model.weights == "full"):
            return nullcontext()  # a full reference is a module of its own, outside of the engine
        import deepspeed

        parameters = list(self.policies.trainable_parameters(role).values())
        return deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if write else None)

    def weights(self) -> dict[str, np.ndarray]:
        """The role's weights as float32 arrays; all ranks take part, rank 0's answer is the one to use."""
        with self._gathered(self.role):
            return {name: t.float().numpy() for name, t in self.policies.weights(self.role).items()}

    def save(self, folder: str) -> None:
        """Write the optimizer and the trainable weights, sharded over ranks, with DeepSpeed's own format.

        The reference goes along: it is the policy as the stage began, which a resumed run cannot know otherwise.
        """
        self.engine.save_checkpoint(folder, tag="learner", exclude_frozen_parameters=True)
        if self.config.algo.kl_coef > 0:
            with self._gathered(REFERENCE):
                if self.rank == 0:
                    self.policies.save(REFERENCE, Path(folder) / REFERENCE)

    def restore(self, folder: str) -> None:
        """Read what `save` wrote; the number of ranks and the ZeRO stage must be the same."""
        if not (Path(folder) / "learner").is_dir():  # DeepSpeed fails on a bare assertion
            raise MemR1Error(f"{folder}: no learner checkpoint there; resume from a checkpoint inside a stage")
        path, _ = self.engine.load_checkpoint(folder, tag="learner", load_module_strict=False)
        if path is None:
            raise MemR1Error(f"{folder}: DeepSpeed found its files incomplete there; resume from another checkpoint")
        if self.config.algo.kl_coef > 0:
            with self._gathered(REFERENCE, write=True):
                self.policies.load(REFERENCE, Path(folder) / REFERENCE)

    def close(self) -> None:
        """Free the engine, so that another stage's can be made in this process."""
        self.engine.destroy()
        self._contexts.close()


def _join(rendezvous: Rendezvous, device: Any, timeout_s: float) -> None:
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
