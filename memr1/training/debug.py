"""Half of a training step at a time, to find out which half is at fault: `memr1 debug`.

`play` makes batches and updates nothing, `update` trains on saved batches and plays nothing, `replay` shows every
tensor of one sequence. All run in this process, with the code of the training loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from memr1.config import Config, StageConfig
from memr1.errors import MemR1Error
from memr1.learner.group import LocalLearnerGroup
from memr1.learner.packing import TrainSequence, plan_microbatches
from memr1.rollout.pool import LocalPool, RunnerPool
from memr1.storage import reading
from memr1.training.batch import BATCH_FILE, Batch
from memr1.training.checkpoints import load_state
from memr1.training.loop import Trainer

if TYPE_CHECKING:
    from memr1.training.runlog import RunLog


class Rehearsal(Trainer):
    """A trainer of which one half is used: it writes no run folder and no checkpoints."""

    def __init__(self, config: Config, stage: int, checkpoint: Path | None, *, plays: bool) -> None:
        """stage: which of `config.stages`, from 0. checkpoint: where to go on from, in its own stage or at the start of
        another one; None begins with fresh weights."""
        if not 0 <= stage < len(config.stages):
            raise MemR1Error(f"stage {stage}: the configuration has {len(config.stages)} stages, counted from 0")
        if config.stages[stage].objective == "sft":
            raise MemR1Error(f"stage {stage} is supervised: it plays nothing; name a stage that learns from rollouts")
        config = replace(config, learner=replace(config.learner, num_learners=1))
        pool = LocalPool(config) if plays else cast(RunnerPool, None)  # only the learner is needed then
        beside = pool.runner.policies if isinstance(pool, LocalPool) else None
        super().__init__(config, pool, partial(LocalLearnerGroup, beside=beside), cast("RunLog", None))
        self.checkpoint = checkpoint
        ahead = False
        if checkpoint is not None:
            self.state = load_state(checkpoint)
            ahead = self.state.stage == stage and (checkpoint / BATCH_FILE).exists()
            if self.state.stage != stage:
                self.state.stage_step, self.state.sampler = 0, None
            if plays:
                self.pool.load_policies(str(checkpoint / "policies"))
        self.state.stage = stage
        self.first = self.state.step + ahead
        """The step whose batch `play` begins with, from 0: that of a batch that was played ahead is in the checkpoint,
        and its tasks are taken."""

    def play(self, steps: int) -> Iterator[Batch]:
        """The batches of `steps` steps, all played with the same weights. The first is what a run would play next."""
        self._prepare_tasks()
        for step in range(self.first, self.first + steps):
            yield self._play_groups(step)

    def update(self, batches: Sequence[Batch]) -> Iterator[dict[str, float]]:
        """One step on each batch in turn; the metrics of the learner. From the second on, batches are older than the
        weights: the rollout correction is as large as that makes it."""
        learners = self._make_learners()
        try:
            if self.state.stage_step > 0 and self.checkpoint is not None:
                learners.restore(str(self.checkpoint / "learner"))
            for batch in batches:
                late = batch.versions.get(self.stage.role) != self.state.versions[self.stage.role]
                alike = {"learner/skipped": 1.0}
                yield self._update(learners, batch.sequences, late=late) if batch.sequences else alike
                self.state.stage_step += 1
        finally:
            learners.close()


def saved_batches(path: Path) -> list[Path]:
    """A batch file itself, or those in a folder, in order."""
    found = sorted(path.glob("batch*.json")) if path.is_dir() else [path]
    if not found or not found[0].is_file():
        raise MemR1Error(f"{path}: no batches there; `memr1 debug rollout` writes them, and checkpoints may hold one")
    return found


def trajectory_of(sequences: Sequence[TrainSequence], index: int) -> list[int]:
    """Numbers of the sequences that are steps of the same trajectory as the one of that number, in order."""
    whole = sequences[index].trajectory
    return [index] if whole is None else [i for i, s in enumerate(sequences) if s.trajectory == whole]


def replay(
    config: Config, stage: StageConfig, sequences: Sequence[TrainSequence], checkpoint: Path | None
) -> list[dict[str, np.ndarray]]:
    """Every tensor of each sequence on its way through the update, by name.

    The micro-batch as it is packed (see `MicroBatch`), then for each trained token, shape (n,): `logprobs` under the
    weights at hand, `entropy`, `importance_weight` and `loss`, its term of the surrogate before aggregation and clip.
    Without `advantages` and `loss` for PPO: they take the critic's values, and its weights are not read here.
    """
    import torch

    from memr1.learner.scoring import CompletionScorer, to_tensors
    from memr1.models.adapters import PolicyModel
    from memr1.models.registry import pick_device

    device, role = pick_device(config.model.device), stage.role
    policies = PolicyModel.create(
        config.model.name, (role,), config.model.weights, config.model.lora, seed=config.seed,
        dtype=config.model.dtype, device=device,
    )  # fmt: skip
    if checkpoint is not None:
        with reading(checkpoint / "policies") as written:
            policies.load(role, written / role)
    shown = []
    with policies.use(role) as model, torch.no_grad():
        scorer = CompletionScorer(model)
        for sequence in sequences:
            plan = plan_microbatches(
                [sequence], num_ranks=1, max_tokens_per_microbatch=config.learner.max_tokens_per_microbatch, pad_id=0
            )
            ((batch,),) = plan.ranks
            logprobs, entropy = scorer(**to_tensors(batch, device), temperature=config.rollout.temperature)
            out = {f.name: value for f in fields(batch) if isinstance(value := getattr(batch, f.name), np.ndarray)}
            out |= {"logprobs": logprobs.float().cpu().numpy(), "entropy": entropy.float().cpu().numpy()}
            weight = np.ones_like(out["logprobs"])
            if batch.rollout_logprobs is not None and config.algo.importance_cap > 0:
                weight = np.minimum(np.exp(out["logprobs"] - batch.rollout_logprobs), config.algo.importance_cap)
            out["importance_weight"] = weight
            if stage.objective == "ppo":
                del out["advantages"]
            else:
                out["loss"] = -weight * batch.advantages
            shown.append(out)
    return shown


def token_table(config: Config, tensors: dict[str, np.ndarray]) -> Any:
    """A rich table of the trained tokens, one a row."""
    from rich.table import Table

    from memr1.models.registry import load_tokenizer

    tokenizer = load_tokenizer(config.model.name)
    per_token = [n for n in ("entropy", "importance_weight", "advantages", "loss") if n in tensors]
    table = Table("#", "id", "token", "rollout", "logprob", "difference", *per_token)
    rollout = tensors.get("rollout_logprobs")
    for i, token in enumerate(tensors["targets"].tolist()):
        logprob = float(tensors["logprobs"][i])
        before = None if rollout is None else float(rollout[i])
        table.add_row(
            str(i), str(token), repr(tokenizer.decode([token])),
            *(["", f"{logprob:.4f}", ""] if before is None else
              [f"{before:.4f}", f"{logprob:.4f}", f"{logprob - before:+.1e}"]),
            *(f"{float(tensors[name][i]):.4f}" for name in per_token),
        )  # fmt: skip
    return table
