"""Log-probabilities of completion tokens under a causal language model, for packed micro-batches."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from memr1.learner.packing import MicroBatch, TrainSequence, plan_microbatches

logger = logging.getLogger(__name__)


def attention_mask(segments: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask (rows, 1, width, width): 0 where position i may attend to j, the smallest number elsewhere.

    segments: (rows, width), 0 prompt, 1.. completions, -1 padding. A position sees earlier positions of the prompt
    and of its own completion, and always itself (a row of nothing but -inf would turn into NaN).
    """
    width = segments.shape[1]
    same = segments[:, :, None] == segments[:, None, :]
    prompt = (segments == 0)[:, None, :]
    causal = torch.ones(width, width, dtype=torch.bool, device=segments.device).tril()
    eye = torch.eye(width, dtype=torch.bool, device=segments.device)
    real = (segments >= 0)[:, None, :]
    allowed = ((same | prompt) & causal & real) | eye
    mask = torch.zeros(allowed.shape, dtype=dtype, device=segments.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]


class CompletionScorer(nn.Module):
    """Wraps a causal LM so that one forward call gives log-probabilities of completion tokens only.

    The output projection runs at the positions that are scored instead of at all of them; on a vocabulary of 49k
    that is most of the memory. Where a model does more than a plain projection (soft caps, scaled logits), its own
    forward is used in full: `lean` says which path was chosen, by comparing the two on a few tokens at construction.
    """

    def __init__(self, model: nn.Module, *, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.causal_lm = model
        if gradient_checkpointing:
            self.causal_lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            self.causal_lm.enable_input_require_grads()
        self.lean = True
        self.lean = self._lean_path_is_exact()
        if not self.lean:
            logger.warning("%s scales or caps its logits: scoring uses its full forward", type(self.causal_lm).__name__)

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
        """Log-probabilities and entropies of the target tokens, both (n,), under softmax(logits / temperature)."""
        logits = self._logits(input_ids, position_ids, segments, score_row, score_position)
        scores = torch.log_softmax(logits.float() / temperature, dim=-1)
        logprobs = scores.gather(1, targets[:, None]).squeeze(1)
        with torch.no_grad():
            entropy = -(scores.exp() * scores).sum(-1)
        return logprobs, entropy

    def _logits(
        self, input_ids: Tensor, position_ids: Tensor, segments: Tensor, rows: Tensor, columns: Tensor
    ) -> Tensor:
        dtype = next(self.causal_lm.parameters()).dtype
        inputs = {
            "input_ids": input_ids,
            "position_ids": position_ids,
            "attention_mask": attention_mask(segments, dtype),
            "use_cache": False,
        }
        if not self.lean:
            return self.causal_lm(**inputs).logits[rows, columns]
        hidden = self.causal_lm.get_decoder()(**inputs).last_hidden_state  # type: ignore[operator]
        return self.causal_lm.get_output_embeddings()(hidden[rows, columns])  # type: ignore[operator]

    @torch.no_grad()
    def _lean_path_is_exact(self) -> bool:
        device = next(self.causal_lm.parameters()).device
        ids = torch.arange(1, 9, device=device)[None]
        positions = torch.arange(8, device=device)[None]
        columns = torch.arange(8, device=device)
        rows = torch.zeros_like(columns)
        try:
            lean = self._logits(ids, positions, torch.zeros_like(ids), rows, columns).float()
        except (AttributeError, TypeError):  # no separate decoder or output projection
            return False
        full = self.causal_lm(input_ids=ids, use_cache=False).logits[0].float()
        return lean.shape == full.shape and torch.allclose(lean, full, atol=1e-3, rtol=1e-3)


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
        scores = {}
        for batch in plan.ranks[0]:
            logprobs, _ = scorer(**to_tensors(batch, device))
            scores.update(zip(batch.targets.tolist(), logprobs.tolist(), strict=True))
        results.append(torch.tensor([scores[t] for t in (20, 21, 22, 30, 31, 40)]))
    # low-precision weights round differently in differently shaped products
    bf16 = next(scorer.parameters()).dtype != torch.float32
    return bool(torch.allclose(results[0], results[1], atol=0.1 if bf16 else tolerance))
