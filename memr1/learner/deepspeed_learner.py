"""One rank of the learner group: a DeepSpeed engine over the trainable weights of one role.

Runs in the driver (`local` backend) or in an actor (`memr1.rllib.learner_group`); the code is the same. A learner is
made for a stage and owns that stage's optimizer.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from memr1.config import Config
from memr1.learner.engine import Engine, Rendezvous, join
from memr1.learner.packing import MicroBatch
from memr1.learner.refusal import refuse_if_any
from memr1.storage import reading, writing

if TYPE_CHECKING:
    from torch import Tensor

    from memr1.learner.critic import Critic, Lesson
    from memr1.rollout.channel import Channel, Manifest, Meeting
    from memr1.rollout.engine import WeightUpdate

logger = logging.getLogger(__name__)

REFERENCE = "reference"
"""Name of the frozen policy that the KL is measured against: a copy of the role's weights as the stage began."""


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
    trained_trajectories: int = 0
    """For `algo.aggregation=trajectory-mean`."""
    critic_only: bool = False
    """With `ppo`: update the critic and leave the policy as it is."""


class DeepSpeedLearner:
    """Trains one role. All ranks must make the same calls in the same order."""

    def __init__(self, config: Config, role: str, weights_folder: str | None, rendezvous: Rendezvous) -> None:
        """weights_folder: where to read the role's weights as written by `Runner.save_policies`; None starts fresh."""
        from memr1.models.cpu import set_up_cpu
        from memr1.models.registry import pick_device

        set_up_cpu(config.model.threads)
        self.config = config
        self.role = role
        self.rank = rendezvous.rank
        self.world_size = rendezvous.world_size
        self.device = pick_device(config.model.device)
        join(rendezvous, self.device, config.learner.collective_timeout_s)
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
            with reading(weights_folder) as written:
                self.policies.load(role, written / role)
        if config.algo.kl_coef > 0:
            self.policies.copy_weights(role, REFERENCE)
        self._contexts = ExitStack()
        module = self._contexts.enter_context(self.policies.use(role))  # the role stays active for the learner's life
        self.policies.train_only(role)
        self.scorer = CompletionScorer(module, gradient_checkpointing=config.learner.gradient_checkpointing)
        self._reference_scorer = self.scorer  # LoRA: the same module with another adapter
        if config.algo.kl_coef > 0 and config.model.weights == "full":
            self._reference_scorer = CompletionScorer(self.policies.module(REFERENCE))
        self.shares_prefixes = config.learner.share_prefixes and shared_prefixes_are_exact(self.scorer, pad_id=0)
        if config.learner.share_prefixes and not self.shares_prefixes:
            logger.warning("%s: shared prompts are computed once per completion, see above", config.model.name)
        trainable = list(self.policies.trainable_parameters(role).values())
        self.engine = Engine(self.scorer, trainable, config.learner)
        self._critic: Critic | None = None  # made when a stage turns out to need it
        self._channel: Channel | None = None

    def _low_precision(self) -> bool:
        import torch

        return next(self.scorer.parameters()).dtype != torch.float32

    def supports_shared_prefixes(self) -> bool:
        """Whether packed prompts give this model the same result as separate ones; probed at the start."""
        return self.shares_prefixes

    def update(self, microbatches: Sequence[MicroBatch], settings: UpdateSettings) -> dict[str, float]:
        """`settings.epochs` optimizer steps on one batch. Returns sums over this rank's tokens and `grad_norm`.

        They are those of the first pass, but for `approx_kl` and `clip_fraction`: only later passes move away from the
        policy that sampled. See `memr1.training.metrics`.
        """
        import torch

        # log-probabilities before the first step, by micro-batch
        old: list[Tensor | None] = [None] * len(microbatches)
        advantages = [torch.from_numpy(b.advantages).to(self.device) for b in microbatches]
        judged: dict[str, float] = {}
        if settings.objective == "ppo":
            old, lessons, judged = self._judge(microbatches, settings)
            advantages = [lesson.advantages for lesson in lessons]
            weights = [self._token_weights(b, settings) for b in microbatches]
            refuse = partial(self._refuse, microbatches, "the critic")
            judged |= self.critic.update(lessons, weights, settings.epochs, refuse)
        totals = self._optimizer_step(microbatches, settings, old, advantages) | judged
        for _ in range(1, 1 if settings.critic_only else settings.epochs):
            last = self._optimizer_step(microbatches, settings, old, advantages)
            totals |= {name: last[name] for name in ("approx_kl", "clip_fraction") if name in last}
        return totals

    @property
    def critic(self) -> Critic:
        """The stage's critic, which begins with the role's weights as they are when it is first asked for."""
        from memr1.learner.critic import Critic

        if self._critic is None:
            with self._gathered(self.role):
                weights = self.policies.weights(self.role)
            self._critic = Critic(self.config, self.role, self.policies, self.scorer, weights)
        return self._critic

    def _judge(
        self, microbatches: Sequence[MicroBatch], settings: UpdateSettings
    ) -> tuple[list[Tensor | None], list[Lesson], dict[str, float]]:
        """Log-probabilities, lessons and statistics of a batch before anything is updated."""
        import torch

        from memr1.learner.scoring import to_tensors

        algo, critic = self.config.algo, self.critic
        old: list[Tensor | None] = []
        inputs, rewards, sequence_ids, stats = [], [], [], {}
        penalty = 0.0
        for batch in microbatches:
            tokens = to_tensors(batch, self.device)
            targets = tokens.pop("targets")
            earned = torch.from_numpy(batch.rewards).to(self.device)
            logprobs, features = self.scorer.logprobs_and_features(targets, settings.temperature, **tokens)
            if algo.kl_in == "reward" and algo.kl_coef > 0:
                reference = self._reference_logprobs({**tokens, "targets": targets}, settings.temperature)
                earned = earned - algo.kl_coef * (logprobs - reference)
                penalty += float((logprobs - reference).sum())
                stats["reference_kl"] = penalty
            old.append(logprobs)
            inputs.append({"features": features} if critic.reads_policy else tokens)
            rewards.append(earned)
            sequence_ids.append(torch.from_numpy(batch.sequence_ids).to(self.device))
        lessons, judged = critic.judge(inputs, rewards, sequence_ids)
        return old, lessons, stats | judged

    def _optimizer_step(
        self,
        microbatches: Sequence[MicroBatch],
        settings: UpdateSettings,
        old: list[Tensor | None],
        advantages: Sequence[Tensor],
    ) -> dict[str, float]:
        """One pass over the batch and one optimizer step; none with `critic_only`. Fills in what is None in `old`."""
        import torch

        totals: dict[str, float] = {"max_low_precision": float(self._low_precision())}
        offenders = []
        for i, batch in enumerate(microbatches):
            with torch.set_grad_enabled(not settings.critic_only):
                loss, stats, old[i] = self._loss(batch, settings, old[i], advantages[i])
            if not settings.critic_only and not self.engine.backward(loss):
                offenders.append(i)
            stats["loss"] = float(loss.detach())
            for name, value in stats.items():
                reduce = max if name.startswith("max_") else float.__add__
                totals[name] = reduce(totals[name], value) if name in totals else value
        if settings.critic_only:
            return totals | {"grad_norm": 0.0}
        self._refuse(microbatches, f"the {self.role}", offenders)
        return totals | {"grad_norm": self.engine.step(settings.learning_rate)}

    def _refuse(self, microbatches: Sequence[MicroBatch], who: str, offenders: Sequence[int]) -> None:
        """See `refuse_if_any`. The process group reduces on the learner's device."""
        rows = [microbatches[i] for i in offenders]
        refuse_if_any(rows, who, self.config.run_dir / "refused", self.rank, self.device)

    def _token_weights(self, batch: MicroBatch, settings: UpdateSettings) -> Tensor:
        """(n,) what each token counts in the loss of the whole optimizer step."""
        import torch

        from memr1.algos.losses import token_weights

        aggregation = "token-mean" if settings.objective == "sft" else self.config.algo.aggregation
        denominators = {
            "token-mean": settings.trained_tokens,
            "sequence-mean": settings.trained_sequences,
            "trajectory-mean": settings.trained_trajectories,
        }
        return token_weights(
            torch.from_numpy(batch.sequence_ids).to(self.device),
            aggregation=aggregation,
            denominator=denominators[aggregation],
            trajectory_tokens=torch.from_numpy(batch.trajectory_tokens).to(self.device),
        )

    def _loss(
        self, batch: MicroBatch, settings: UpdateSettings, old: Tensor | None, advantages: Tensor
    ) -> tuple[Tensor, dict[str, float], Tensor | None]:
        """Loss, statistics, and the log-probabilities before the first optimizer step: `old`, or now where None."""
        import torch

        from memr1.algos.losses import grpo_loss, reinforce_loss, sft_loss
        from memr1.learner.scoring import to_tensors

        algo = self.config.algo
        inputs = to_tensors(batch, self.device)
        logprobs, entropy = self.engine(**inputs, temperature=settings.temperature)
        # also for a filler micro-batch: under ZeRO-3 every forward pass is a collective
        needs_reference = algo.kl_coef > 0 and algo.kl_in == "loss"
        reference = self._reference_logprobs(inputs, settings.temperature) if needs_reference else None
        if len(batch.targets) == 0:
            return logprobs.sum() * 0.0, {}, old
        weights = self._token_weights(batch, settings)
        old = logprobs.detach() if old is None else old
        stats = {"entropy": float(entropy.sum())}
        if settings.objective == "sft":
            result = sft_loss(logprobs, weights)
        else:
            rollout = (
                torch.from_numpy(batch.rollout_logprobs).to(self.device) if batch.rollout_logprobs is not None else None
            )
            by_sequence = torch.from_numpy(batch.sequence_ids).to(self.device) if algo.ratio == "sequence" else None
            corrections: dict[str, Any] = {
                "rollout_logprobs": rollout,
                "ref_logprobs": reference,
                "kl_coef": algo.kl_coef,
                "importance_cap": algo.importance_cap,
            }
            if settings.objective == "reinforce":
                result = reinforce_loss(logprobs, advantages, weights, **corrections)
            else:
                # in the first pass the ratio is 1 and its gradient is the policy gradient; the clip bounds later ones
                result = grpo_loss(
                    logprobs,
                    old,
                    advantages,
                    weights,
                    clip_low=algo.clip_low,
                    clip_high=algo.clip_high,
                    dual_clip=algo.dual_clip,
                    sequence_ids=by_sequence,
                    **corrections,
                )
            if rollout is not None:
                drift = (old - rollout).abs()
                stats["rollout_mismatch"] = float(drift.sum())
                stats["max_rollout_mismatch"] = float(drift.max())
        stats |= {name: float(value) for name, value in result.stats.items()}
        return result.loss, stats, old

    def _reference_logprobs(self, inputs: Mapping[str, Any], temperature: float) -> Any:
        import torch

        with torch.no_grad(), self.policies.use(REFERENCE):
            logprobs, _ = self._reference_scorer(**inputs, temperature=temperature)
        return logprobs

    def _gathered(self, role: str, *, write: bool = False) -> Any:
        """ZeRO-3 keeps shards; gather those of a role while they are read, or written (rank 0's values count)."""
        if self.config.learner.zero_stage < 3 or (role == REFERENCE and self.config.model.weights == "full"):
            return nullcontext()  # a full reference is a module of its own, outside of the engine
        import deepspeed

        parameters = list(self.policies.trainable_parameters(role).values())
        return deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if write else None)

    def weights(self) -> dict[str, np.ndarray]:
        """Copies of the role's weights as float32 arrays; all ranks take part."""
        with self._gathered(self.role):
            return {name: t.float().numpy() for name, t in self.policies.weights(self.role).items()}

    def in_place(self) -> dict[str, Tensor]:
        """The role's weights in the memory that the next update changes; copies where only shards are kept."""
        with self._gathered(self.role):
            views = self.policies.views(self.role)
            return {name: t.clone() for name, t in views.items()} if self.config.learner.zero_stage == 3 else views

    def manifest(self) -> Manifest:
        """Shapes and types of the role's weights as they lie here; all ranks take part."""
        from memr1.rollout.channel import manifest_of

        with self._gathered(self.role):
            return manifest_of(self.policies.views(self.role))

    def ship(
        self, version: int, parts: Sequence[Sequence[str]], checked: bool
    ) -> Iterator[dict[str, np.ndarray] | WeightUpdate]:
        """The role's weights as float32 arrays, part by part, and at last their `WeightUpdate` without the tensors.

        parts: names by part, in order. checked: with a checksum. For rank 0, while the others `attend`. A part may lie
        in the memory that the next update changes.
        """
        from memr1.rollout.engine import Checksum, WeightUpdate

        manifest, digest = {}, Checksum()
        with self._gathered(self.role):
            views = self.policies.views(self.role)
            for names in parts:
                arrays = {name: views[name].float().cpu().numpy() for name in names}
                for name, array in arrays.items():
                    manifest[name] = (array.shape, str(array.dtype))
                    if checked:
                        digest.add(name, array)
                yield arrays
        yield WeightUpdate(self.role, version, {}, manifest, digest.text() if checked else None)

    def attend(self) -> None:
        """Take part where rank 0 reads the weights of all."""
        with self._gathered(self.role):
            pass

    def open_channel(self, meeting: Meeting) -> bool:
        """Have rank 0 meet the receivers of its weights; whether they came."""
        from memr1.rollout.channel import Channel

        if self.rank == 0:
            if self._channel is not None:
                self._channel.close()
            try:
                self._channel = Channel(meeting, 0, self.device)
            except RuntimeError as error:
                logger.warning("no channel to the runners: %s", error)
                return False
        return True

    def send_weights(self, checked: bool) -> bool:
        """Give the role's weights to all receivers from where they lie; all ranks take part. False where that failed.

        checked: with a checksum.
        """
        with self._gathered(self.role):
            if self.rank == 0 and self._channel is not None:
                try:
                    self._channel.send(self.policies.views(self.role), checked=checked)
                except RuntimeError as error:
                    logger.warning("weights did not get through to the runners: %s", error)
                    return False
        return True

    def save(self, folder: str) -> None:
        """Write the optimizer and the trainable weights, sharded over ranks, with DeepSpeed's own format.

        A critic goes along, and so does the reference: it is the policy as the stage began, which a resumed run cannot
        know otherwise.
        """
        with writing(folder) as written:
            self.engine.save(str(written), "learner")
            if self._critic is not None:
                self._critic.save(str(written))
            if self.config.algo.kl_coef > 0:
                with self._gathered(REFERENCE):
                    if self.rank == 0:
                        self.policies.save(REFERENCE, written / REFERENCE)

    def restore(self, folder: str) -> None:
        """Read what `save` wrote; the number of ranks and the ZeRO stage must be the same."""
        with reading(folder) as written:
            self.engine.restore(str(written), "learner")
            if (written / "critic").is_dir():
                self.critic.restore(str(written))
            if self.config.algo.kl_coef > 0:
                with self._gathered(REFERENCE, write=True):
                    self.policies.load(REFERENCE, written / REFERENCE)

    def close(self) -> None:
        """Free the engine, so that another stage's can be made in this process."""
        if self._critic is not None:
            self._critic.close()
        if self._channel is not None:
            self._channel.close()
        self.engine.close()
        self._contexts.close()
