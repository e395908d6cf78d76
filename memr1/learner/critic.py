"""The critic of a `ppo` stage: a value head, what it reads, and an optimizer of its own.

An optimizer of its own means that gradients of values are clipped apart from those of the policy and cannot drown them,
and that the policy can rest while the critic warms up. The two have no parameter in common, so no weight has to balance
their losses: gradients of a value loss would reshape a backbone of a hundred million parameters for one number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from memr1.algos.advantages import explained_variance, gae, moments, whiten
from memr1.algos.losses import value_loss
from memr1.config import Config
from memr1.errors import MemR1Error
from memr1.learner.engine import Engine
from memr1.learner.scoring import CompletionScorer
from memr1.models.adapters import PolicyModel
from memr1.models.attention import text_config

CRITIC = "critic"
"""Name of the critic's weights in a PolicyModel, and of its folder in a learner's checkpoint."""


class ValueHead(nn.Linear):
    """One number per hidden state, 0 at the start. Computes in float32 whatever its weights are."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, features: Tensor) -> Tensor:
        """features: (n, width). Returns (n,)."""
        return nn.functional.linear(features.float(), self.weight.float(), self.bias.float()).squeeze(-1)


class ValueModel(nn.Module):
    """Values of the states in which a micro-batch's target tokens were chosen, (n,)."""

    def __init__(self, backbone: CompletionScorer | None, width: int) -> None:
        """backbone: what makes features of tokens; None where features are handed in."""
        super().__init__()
        self.backbone = backbone
        self.head = ValueHead(width)

    def forward(self, features: Tensor | None = None, **tokens: Tensor) -> Tensor:
        """features: (n, width); or the arrays that `CompletionScorer.features` takes."""
        if self.backbone is not None:
            features = self.backbone.features(**tokens)
        assert features is not None
        return self.head(features)


@dataclass(frozen=True)
class Lesson:
    """What is settled about a micro-batch before the first optimizer step; tensors of (n,), one per target token."""

    inputs: dict[str, Tensor]
    """What the value model reads."""
    values: Tensor
    """As the critic saw it before the update."""
    returns: Tensor
    """What the values should have been: values + advantages before whitening."""
    advantages: Tensor
    """Whitened over all tokens of the optimizer step and all ranks."""


class Critic:
    """One rank's part of the critic. All ranks must make the same calls in the same order."""

    def __init__(
        self, config: Config, role: str, policies: PolicyModel, scorer: CompletionScorer, weights: dict[str, Tensor]
    ) -> None:
        """policies: the learner's, where the critic may put an adapter. scorer: the learner's, over the policy's model.

        weights: the role's, with which a backbone of the critic's own begins. Raises MemR1Error for a model that does
        not show its hidden states.
        """
        self.settings = config.algo.critic
        self.role, self.policies = role, policies
        decoder = getattr(scorer.causal_lm, "get_decoder", lambda: None)()
        width = getattr(text_config(scorer.causal_lm), "hidden_size", None)
        if decoder is None or width is None:
            raise MemR1Error(f"{config.model.name}: a critic needs a model that shows its hidden states; use grpo")
        device = next(scorer.parameters()).device
        self.reads_policy = self.settings.backbone == "policy"
        # adapters of one shared base cannot be in two engines where engines cut the base in shards
        self.is_guest = not self.reads_policy and config.model.weights == "lora" and config.learner.zero_stage < 3
        self._contexts = ExitStack()
        if self.reads_policy:
            model = ValueModel(None, width).to(device)
            trained = list(model.parameters())
        else:
            if self.is_guest:
                own = policies
                own.add_copy(CRITIC, of=role)
            else:
                own = PolicyModel.create(
                    config.model.name,
                    (CRITIC,),
                    config.model.weights,
                    config.model.lora,
                    dtype=config.model.dtype,
                    device=device,
                )
                own.load_weights(CRITIC, weights)
                own.train_only(CRITIC)
                self._contexts.enter_context(own.use(CRITIC))
            with own.use(CRITIC) as module:
                backbone = CompletionScorer(module, gradient_checkpointing=config.learner.gradient_checkpointing)
            model = ValueModel(backbone, width)
            model.head.to(device)
            trained = [*own.trainable_parameters(CRITIC).values(), *model.head.parameters()]
        with self._at_work():
            self.engine = Engine(model, trained, config.learner)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """While the critic is computed: its adapter is the active one, and the one that gradients reach."""
        if not self.is_guest:
            yield
            return
        self.policies.train_only(CRITIC)
        try:
            with self.policies.use(CRITIC):
                yield
        finally:
            self.policies.train_only(self.role)

    @torch.no_grad()
    def judge(
        self, inputs: Sequence[dict[str, Tensor]], rewards: Sequence[Tensor], sequence_ids: Sequence[Tensor]
    ) -> tuple[list[Lesson], dict[str, float]]:
        """Values, returns and whitened advantages of a batch, by micro-batch, before anything is updated.

        inputs: what the value model reads: `features`, or tokens. rewards, sequence_ids: (n,) as in `gae`. Also returns
        sums over this rank's tokens, and `explained_variance` over those of all ranks.
        """
        s = self.settings
        with self._at_work():
            values = [self.engine.module(**i) for i in inputs]
        advantages = [
            gae(r, v, ids, discount=s.discount, gae_lambda=s.gae_lambda)
            for r, v, ids in zip(rewards, values, sequence_ids, strict=True)
        ]
        returns = [a + v for a, v in zip(advantages, values, strict=True)]
        # the error of a value is the advantage before whitening
        of_all = torch.stack([moments(torch.cat(advantages)), moments(torch.cat(returns))])
        if torch.distributed.get_world_size() > 1:
            torch.distributed.all_reduce(of_all)
        white = [whiten(a, of_all[0]) for a in advantages]
        lessons = [Lesson(*parts) for parts in zip(inputs, values, returns, white, strict=True)]
        return lessons, {
            "values": float(torch.cat(values).sum()),
            "returns": float(torch.cat(returns).sum()),
            "advantages": float(torch.cat(white).sum()),
            "explained_variance": explained_variance(*of_all),
        }

    def update(
        self, lessons: Sequence[Lesson], weights: Sequence[Tensor], epochs: int, refuse: Callable[[Sequence[int]], None]
    ) -> dict[str, float]:
        """`epochs` optimizer steps on one batch; weights as in `value_loss`, by micro-batch.

        refuse: called before each step with the places of micro-batches whose loss or gradient is not finite.

        Returns `critic_grad_norm` and sums over this rank's tokens, all of the first step but `value_clip_fraction`.
        """
        with self._at_work():
            first = self._optimizer_step(lessons, weights, refuse)
            last = first
            for _ in range(1, epochs):
                last = self._optimizer_step(lessons, weights, refuse)
        return first | {name: last[name] for name in ("value_clip_fraction",) if name in last}

    def _optimizer_step(
        self, lessons: Sequence[Lesson], weights: Sequence[Tensor], refuse: Callable[[Sequence[int]], None]
    ) -> dict[str, float]:
        totals = {"value_loss": 0.0}
        offenders = []
        for i, (lesson, w) in enumerate(zip(lessons, weights, strict=True)):
            values = self.engine(**lesson.inputs)
            result = value_loss(values, lesson.values, lesson.returns, w, clip=self.settings.clip)
            if not self.engine.backward(result.loss):
                offenders.append(i)
            totals["value_loss"] += float(result.loss.detach())
            for name in set(result.stats) - {"tokens"}:
                totals[name] = totals.get(name, 0.0) + float(result.stats[name])
        refuse(offenders)
        return totals | {"critic_grad_norm": self.engine.step(self.settings.learning_rate)}

    def save(self, folder: str) -> None:
        """Write the critic and its optimizer, sharded over ranks, into a learner's checkpoint."""
        with self._at_work():  # what is frozen is left out, and its adapter is while it rests
            self.engine.save(folder, CRITIC)

    def restore(self, folder: str) -> None:
        """Read what `save` wrote."""
        with self._at_work():
            self.engine.restore(folder, CRITIC)

    def close(self) -> None:
        """Free the engine."""
        self.engine.close()
        self._contexts.close()
