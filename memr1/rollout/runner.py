"""The runner: one process that holds the agents, a memory and an engine, and plays whatever it is sent.

The same class runs in the driver (`local` backend, `memr1 eval`) and inside Ray actors (`memr1.rllib`).
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from memr1.agents.roles import Agents, make_agents
from memr1.config import Config
from memr1.envs.answering import AnswerTask, play_answers
from memr1.envs.deciding import DecisionTask, play_decisions
from memr1.envs.episode import Episode, Failure, Speaker, World, drive
from memr1.envs.replaying import ReplayTask, play_replays
from memr1.errors import MemR1Error
from memr1.memory.embed import CachedEmbedder, Embedder, load_embedder
from memr1.models.adapters import PolicyModel
from memr1.models.registry import context_window, load_tokenizer
from memr1.rewards.base import make_reward
from memr1.rollout.endpoint import Endpoint, EndpointEngine, RoutedEngine
from memr1.rollout.engine import Engine, WeightUpdate
from memr1.rollout.judge import LLMJudge
from memr1.rollout.transformers_engine import TransformersEngine
from memr1.storage import reading, writing
from memr1.trajectory import Trajectory

if TYPE_CHECKING:
    from memr1.rollout.channel import Channel, Meeting

_log = logging.getLogger(__name__)

ROLES = ("manager", "answerer")
"""Roles with weights of their own."""
VERSIONS_FILE = "versions.json"
"""Beside the saved policies: the weight version of each role, so that a resumed run goes on counting."""


@dataclass(frozen=True)
class Play:
    """A task to be played once."""

    task: AnswerTask | DecisionTask | ReplayTask
    seed: int


def eos_token_ids(policies: PolicyModel, tokenizer: Any) -> tuple[int, ...]:
    """Every token that ends a turn: the tokenizer's, and those the model's generation config adds."""
    ids = {tokenizer.eos_token_id}
    # any role's: with full weights, asking for the base would load another model
    generation = policies.module(policies.roles[0]).generation_config
    extra = generation.eos_token_id if generation is not None else None
    ids.update(extra if isinstance(extra, list) else [] if extra is None else [extra])
    return tuple(sorted(ids))


class Runner:
    """Plays episodes with the weights it was last given."""

    def __init__(self, config: Config, embedder: Embedder | None = None) -> None:
        """embedder: one that lives elsewhere, in place of `memory.embedder` in this process."""
        from memr1.models.cpu import set_up_cpu

        set_up_cpu(config.model.threads)
        self.config = config
        tokenizer = load_tokenizer(config.model.name)
        self.policies = PolicyModel.create(
            config.model.name,
            ROLES,
            config.model.weights,
            config.model.lora,
            seed=config.seed,
            dtype=config.model.dtype,
            device="cpu" if config.rollout.engine == "vllm" else config.model.device,
        )
        longest = self._longest()
        agents = make_agents(config, tokenizer)
        local = self._make_engine(eos_token_ids(self.policies, tokenizer), tokenizer.pad_token_id, agents, longest)
        self.engine = self._with_endpoints(local, tokenizer)
        self._judge = LLMJudge(config.judge) if config.judge is not None else None
        self._channel: Channel | None = None
        self._kept: Any = None  # what evaluated systems left behind, see `memr1.evaluation.harness.Kept`
        embed = load_embedder(config.memory.embedder) if embedder is None else CachedEmbedder(embedder)
        self.world = World(config, agents, embed)

    def _make_engine(self, eos_ids: tuple[int, ...], pad_id: int, agents: Agents, longest: int) -> Engine:
        config = self.config
        if config.rollout.engine == "vllm":
            from memr1.rollout.vllm_engine import VllmEngine

            return VllmEngine(
                self.policies,
                eos_ids,
                max_tokens=longest,
                memory_fraction=config.rollout.vllm_memory_fraction,
                dtype=config.model.dtype,
                device=config.model.device,
                seed=config.seed,
            )
        return TransformersEngine(
            self.policies,
            eos_ids,
            pad_id,
            max_tokens_per_batch=config.rollout.max_tokens_per_batch,
            decode=agents.codec.decode,
        )

    def _with_endpoints(self, local: Engine, tokenizer: Any) -> Engine:
        agents = self.config.agents
        servers = {"answerer": agents.answerer_endpoint, "extractor": agents.extractor_endpoint}
        routes = {
            policy: EndpointEngine(
                Endpoint(server),
                policy,
                lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
                tokenizer.eos_token_id,
            )
            for policy, server in servers.items()
            if server is not None
        }
        return RoutedEngine(local, routes) if routes else local

    def _longest(self) -> int:
        """Tokens of the longest prompt and completion together. MemR1Error when the model has no room for them."""
        rollout, name = self.config.rollout, self.config.model.name
        window = context_window(self.policies.module(ROLES[0]))
        completions = (rollout.answer_max_new_tokens, rollout.manager_max_new_tokens, rollout.extractor_max_new_tokens)
        longest = rollout.max_prompt_tokens + max(completions)
        if longest > window:
            raise MemR1Error(
                f"rollout.max_prompt_tokens plus the longest completion is {longest} tokens, and {name} has "
                f"a window of {window}; set rollout.max_prompt_tokens to at most "
                f"{window - longest + rollout.max_prompt_tokens}"
            )
        return longest

    def play(
        self,
        plays: Sequence[Play],
        reward: str,
        temperature: float,
        judge_alike: bool = True,
        evidence_reward: float = 0.0,
    ) -> list[Trajectory]:
        """Play tasks, those of one task in a row as a group; the role whose task it is samples and trains, the other is
        frozen and greedy.

        judge_alike: False leaves groups of equal decisions without a reward, see `play_decisions`.
        evidence_reward: see `play_answers`.
        An episode that fails comes back as a trajectory with `error` set and no reward.
        """
        scorer = make_reward(reward, self._judge)
        episodes: list[Episode[list[Trajectory]]] = []
        groups = [list(group) for _, group in itertools.groupby(plays, key=lambda p: p.task.id)]
        for group in groups:
            task, seeds = group[0].task, [p.seed for p in group]
            if isinstance(task, AnswerTask):
                learner = Speaker("answerer", temperature, trainable=True)
                episodes.append(play_answers(task, self.world, learner, scorer, seeds, evidence_reward))
                continue
            learner, judge = Speaker("manager", temperature, trainable=True), Speaker("answerer")
            if isinstance(task, ReplayTask):
                episodes.append(play_replays(task, self.world, learner, judge, scorer, seeds))
            else:
                episodes.append(play_decisions(task, self.world, learner, judge, scorer, seeds, judge_alike))
        played: list[Trajectory] = []
        for group, result in zip(groups, drive(episodes, self.engine), strict=True):
            played += [_failed(p, result) for p in group] if isinstance(result, Failure) else result
        return played

    def load_weights(self, update: WeightUpdate) -> int:
        """Take new weights of one policy; returns the version now in use."""
        return self.engine.load_weights(update)

    def open_channel(self, meeting: Meeting, rank: int) -> bool:
        """Meet the learner that will send weights; whether it came."""
        from memr1.rollout.channel import Channel

        if self._channel is not None:
            self._channel.close()
        try:
            self._channel = Channel(meeting, rank, next(self.policies.module(ROLES[0]).parameters()).device)
        except RuntimeError as error:
            _log.warning("no channel to the learner: %s", error)
            self._channel = None
        return self._channel is not None

    def receive_weights(self, update: WeightUpdate) -> int | None:
        """Take the weights that a learner sends through the channel; the version now in use, or None where they did not
        come through. update: what will come, without tensors. Nothing changes before all have come."""
        if self._channel is None:
            return None
        try:
            tensors: Any = self._channel.receive(update.manifest)
        except RuntimeError as error:
            _log.warning("weights of %s v%d did not come through: %s", update.policy, update.version, error)
            return None
        return self.load_weights(replace(update, tensors=tensors))

    def weight_versions(self) -> dict[str, int]:
        """Version in use by policy."""
        return self.engine.weight_versions()

    def save_policies(self, folder: str) -> None:
        """Write the weights of every role to `<folder>/<role>` in the ordinary peft or transformers format."""
        with writing(folder) as written:
            for role in ROLES:
                self.policies.save(role, written / role)
            versions = {role: self.engine.weight_versions()[role] for role in ROLES}
            (written / VERSIONS_FILE).write_text(json.dumps(versions))

    def load_policies(self, folder: str, roles: Sequence[str] = ROLES) -> None:
        """Read the weights of some roles as `save_policies` wrote them."""
        with reading(folder) as written:
            for role in roles:
                self.policies.load(role, written / role)
            note = written / VERSIONS_FILE
            versions = json.loads(note.read_text()) if note.is_file() else {}  # other tools write none
        self.engine.set_weight_versions({role: int(versions.get(role, 0)) for role in roles})

    def pop_timings(self) -> dict[str, float]:
        """Seconds and tokens of prefill and decoding since the last call."""
        return self.engine.pop_timings()

    def build_tasks(self, dialogues: Sequence[Any], role: str, bank: str, replay: int | None = None) -> list[Any]:
        """Tasks (and their demonstrations) made of dialogues; see `memr1.training.tasks`."""
        from memr1.training.tasks import build_tasks

        return build_tasks(dialogues, self.world, self.engine, role=role, bank=bank, replay=replay)

    def read_traces(self, path: str, role: str, min_reward: float) -> list[Any]:
        """Demonstrations of a teacher; see `memr1.training.traces`."""
        from memr1.training.traces import read_traces

        return read_traces(path, role, self.world.agents.codec, min_reward)

    def evaluate(self, dialogues: Sequence[Any], system: str, benchmark: str) -> list[Any]:
        """Predictions of one system and the footprints of its memories; see `memr1.evaluation.harness`."""
        from memr1.evaluation.harness import Kept, evaluate_system

        self._kept = self._kept or Kept()
        return [evaluate_system(system, dialogues, self.world, self.engine, benchmark, self._kept)]

    def close(self) -> None:
        """Close what leads to servers and to learners."""
        if self._channel is not None:
            self._channel.close()
        if isinstance(self.engine, RoutedEngine):
            self.engine.close()
        if self._judge is not None:
            self._judge.close()


def _failed(play: Play, failure: Failure) -> Trajectory:
    return Trajectory(
        task_id=play.task.id,
        group_id=play.task.id,
        seed=play.seed,
        steps=(),
        reward=None,
        error=f"{type(failure.error).__name__}: {failure.error}",
    )
