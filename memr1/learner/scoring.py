"""Log-probabilities of completion tokens under a causal language model, for packed micro-batches."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from memr1.learner.packing import MicroBatch, TrainSequence, plan_microbatches
from memr1.models.attention import attention_kinds, text_config

logger = logging.getLogger(__name__)


def attention_mask(
    segments: Tensor, dtype: torch.dtype, *, position_ids: Tensor | None = None, window: int | None = None
) -> Tensor:
    """Additive mask (rows, 1, width, width): 0 where position i may attend to j, the smallest number elsewhere.

    segments: (rows, width), 0 prompt, 1.. completions, -1 padding. A position sees earlier positions of the prompt
    and of its own completion, and always itself (a row of nothing but -inf would turn into NaN).
    window: with it, only tokens fewer than `window` positions back, for layers with a sliding window; distances are
    between position_ids (rows, width), not columns, since other completions may lie between a prompt and its own.
    """
    width = segments.shape[1]
    same = segments[:, :, None] == segments[:, None, :]
    prompt = (segments == 0)[:, None, :]
    causal = torch.ones(width, width, dtype=torch.bool, device=segments.device).tril()
    eye = torch.eye(width, dtype=torch.bool, device=segments.device)
    real = (segments >= 0)[:, None, :]
    near = causal
    if window is not None:
        assert position_ids is not None
        near = causal & (position_ids[:, :, None] - position_ids[:, None, :] < window)
    allowed = ((same | prompt) & near & real) | eye
    mask = torch.zeros(allowed.shape, dtype=dtype, device=segments.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]


class CompletionScorer(nn.Module):
    """Wraps a causal LM so that one forward call gives log-probabilities of completion tokens only.

    Two things are found out at construction, by comparing with the model's plain forward on a few tokens:
    `lean`: the output projection may run at the scored positions alone; on a vocabulary of 49k that is most of the
    memory. Where a model does more than project (soft caps, scaled logits), its own forward is used in full.
    `packs`: the model obeys a mask that lets completions share a prompt. Recurrent and hybrid models do not; they get
    plain rows, and a micro-batch with shared prompts is refused.
    """

    def __init__(self, model: Any, *, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.causal_lm = model
        if gradient_checkpointing:
            self.causal_lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            self.causal_lm.enable_input_require_grads()
        self._mask_kinds = attention_kinds(model)
        self._text_config = text_config(model)
        self.lean, self.packs = False, bool(self._mask_kinds)
        self.packs = self.packs and self._custom_mask_is_obeyed()
        if not self.packs:
            logger.warning(
                "%s does not take a custom attention mask: prompts are computed once per completion in the update",
                type(model).__name__,
            )
        self.lean = self._lean_path_is_exact()
        if not self.lean:
            logger.warning("%s scales or caps its logits: scoring uses its full forward", type(model).__name__)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        segments: Tensor,
        score_row: Tensor,
        score_position: Tensor,
        targets: Tensor,
        temperature: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies of the target tokens, both (n,), under softmax(logits / temperature).

        Raises ValueError for a micro-batch with shared prompts when the model cannot take one (`packs` is False).
        """
        logits = self._logits(input_ids, position_ids, segments, score_row, score_position)
        return _read(logits, targets, temperature)

    @torch.no_grad()
    def logprobs_and_features(
        self, targets: Tensor, temperature: float = 1.0, **tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(n,) log-probabilities of the target tokens and (n, hidden size) `features`, in one pass where `lean`."""
        features = self.features(**tokens)
        if self.lean:
            logits = self.causal_lm.get_output_embeddings()(features)
        else:
            inputs = self._inputs(tokens["input_ids"], tokens["position_ids"], tokens["segments"])
            logits = self.causal_lm(**inputs).logits[tokens["score_row"], tokens["score_position"]]
        return _read(logits, targets, temperature)[0], features

    def features(
        self, input_ids: Tensor, position_ids: Tensor, segments: Tensor, score_row: Tensor, score_position: Tensor
    ) -> Tensor:
        """Last hidden states of the decoder at the positions that predict the target tokens, (n, hidden size)."""
        inputs = self._inputs(input_ids, position_ids, segments)
        return self.causal_lm.get_decoder()(**inputs).last_hidden_state[score_row, score_position]

    def _logits(
        self, input_ids: Tensor, position_ids: Tensor, segments: Tensor, rows: Tensor, columns: Tensor
    ) -> Tensor:
        if not self.lean:
            return self.causal_lm(**self._inputs(input_ids, position_ids, segments)).logits[rows, columns]
        return self.causal_lm.get_output_embeddings()(self.features(input_ids, position_ids, segments, rows, columns))

    def _inputs(self, input_ids: Tensor, position_ids: Tensor, segments: Tensor) -> dict[str, Any]:
        if not self.packs:
            if segments.numel() and int(segments.max()) > 1:
                raise ValueError(
                    f"{type(self.causal_lm).__name__} cannot score completions that share a row; plan the "
                    "micro-batches with share_prefixes=False"
                )
            # padding is on the right, where a causal model does not see it: positions count from the left by default
            return {"input_ids": input_ids, "attention_mask": (segments >= 0).long(), "use_cache": False}
        dtype = next(self.causal_lm.parameters()).dtype
        # transformers takes a ready mask as it is and adds no sliding window of its own
        masks: dict[str, Tensor] = {}
        for kind in self._mask_kinds:
            window = self._text_config.sliding_window if kind == "sliding_attention" else None
            masks[kind] = attention_mask(segments, dtype, position_ids=position_ids, window=window)
        # models that mix both kinds take a mask for each; the others one for all layers
        mask: Any = masks if len(masks) > 1 else next(iter(masks.values()))
        return {"input_ids": input_ids, "position_ids": position_ids, "attention_mask": mask, "use_cache": False}

    def _probe(self) -> tuple[Tensor, Tensor, Tensor]:
        device = next(self.causal_lm.parameters()).device
        ids = torch.arange(1, 9, device=device)[None]
        return ids, torch.arange(8, device=device)[None], torch.zeros_like(ids)

    @torch.no_grad()
    def _custom_mask_is_obeyed(self) -> bool:
        ids, positions, segments = self._probe()
        plain = self.causal_lm(input_ids=ids, use_cache=False).logits.float()
        try:
            masked = self.causal_lm(**self._inputs(ids, positions, segments)).logits.float()
        except (TypeError, ValueError, RuntimeError) as e:  # what models raise at arguments they do not understand
            logger.warning("%s refused a custom attention mask: %s", type(self.causal_lm).__name__, e)
            return False
        low_precision = next(self.causal_lm.parameters()).dtype != torch.float32
        return torch.allclose(masked, plain, atol=0.1 if low_precision else 1e-3, rtol=1e-2 if low_precision else 1e-3)

    @torch.no_grad()
    def _lean_path_is_exact(self) -> bool:
        # a soft cap bends small logits so little that a comparison can miss it
        if getattr(self._text_config, "final_logit_softcapping", None):
            return False
        ids, positions, segments = self._probe()
        full = self.causal_lm(**self._inputs(ids, positions, segments)).logits[0].float()
        self.lean = True
        try:
            lean = self._logits(ids, positions, segments, torch.zeros_like(positions[0]), positions[0]).float()
        except (AttributeError, TypeError):  # no separate decoder or output projection
            return False
        finally:
            self.lean = False
        return lean.shape == full.shape and torch.allclose(lean, full, atol=1e-3, rtol=1e-3)


def _read(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of (n,) target tokens, from (n, vocabulary) logits."""
    scores = torch.log_softmax(logits.float() / temperature, dim=-1)
    logprobs = scores.gather(1, targets[:, None]).squeeze(1)
    with torch.no_grad():
        entropy = -(scores.exp() * scores).sum(-1)
    return logprobs, entropy


def to_tensors(batch: MicroBatch, device: torch.device | str) -> dict[str, Tensor]:
    """Arrays of a micro-batch that the scorer takes, as tensors on the device."""
    names = ("input_ids", "position_ids", "segments", "score_row", "score_position", "targets")
    return {name: torch.from_numpy(getattr(batch, name)).to(device) for name in names}


@torch.no_grad()
def shared_prefixes_are_exact(scorer: CompletionScorer, pad_id: int, tolerance: float = 1e-3) -> bool:
    """Whether this model gives packed completions the log-probabilities that they have alone.

    Models that ignore position ids or custom masks (recurrent or hybrid architectures) do not; callers fall back to
    unshared rows and say so.
    """
    if not scorer.packs:
        return False
    prompt = tuple(range(1, 13))
    sequences = [
        TrainSequence(prompt, completion, (True,) * len(completion)) for completion in ((20, 21, 22), (30, 31), (40,))
    ]
    device = next(scorer.parameters()).device
    results = []
    for share in (True, False):
        plan = plan_microbatches(
            sequences, num_ranks=1, max_tokens_per_microbatch=10**6, pad_id=pad_id, share_prefixes=share
        )
        scores: dict[int, float] = {}
        for batch in plan.ranks[0]:
            logprobs, _ = scorer(**to_tensors(batch, device))
            scores.update(zip(batch.targets.tolist(), logprobs.tolist(), strict=True))
        results.append(torch.tensor([scores[t] for t in (20, 21, 22, 30, 31, 40)]))
    # low-precision weights round differently in differently shaped products
    bf16 = next(scorer.parameters()).dtype != torch.float32
    exact = bool(torch.allclose(results[0], results[1], atol=0.1 if bf16 else tolerance))
    if not exact:
        gap = float((results[0] - results[1]).abs().max())
        logger.warning("shared prompts change log-probabilities of this model by up to %.4f", gap)
    return exact
