"""Episodes as coroutines, and the loop that plays many of them on one engine.

An episode is a generator: it yields a list of generation requests, is sent the list of their completions, and returns
its result. Written that way, an episode of one step and one that replays a whole dialogue look alike, and everything
that waits for the model at the same moment is generated in one batch. An empty list lets the others have their turn.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from memr1.agents.roles import Agents, Prompt
from memr1.config import Config
from memr1.memory.embed import Embedder, EmbedderLost
from memr1.rollout.engine import Completion, Engine, GenerationRequest, SamplingParams
from memr1.trajectory import Sequence as TokenSequence
from memr1.trajectory import Step

T = TypeVar("T")
Episode = Generator[list[GenerationRequest], list[Completion], T]


@dataclass(frozen=True)
class World:
    """What an episode plays in: fixed during a batch of episodes."""

    config: Config
    agents: Agents
    embedder: Embedder


@dataclass(frozen=True)
class Speaker:
    """Which weights a role uses in an episode, and how it samples."""

    policy: str
    temperature: float = 0.0
    trainable: bool = False


@dataclass(frozen=True)
class Failure:
    """An episode that raised: reported, counted, never silently dropped."""

    error: Exception


def drive(episodes: Sequence[Episode[T]], engine: Engine) -> list[T | Failure]:
    """Play episodes to their ends; results in order. An episode that raises becomes a Failure, the others go on.

    Errors of the engine itself, or the loss of the embedder, are not an episode's fault and propagate.
    """
    results: list[T | Failure | None] = [None] * len(episodes)
    waiting: dict[int, list[GenerationRequest]] = {}

    def advance(i: int, completions: list[Completion] | None) -> None:
        try:
            waiting[i] = next(episodes[i]) if completions is None else episodes[i].send(completions)
        except StopIteration as stop:
            results[i] = stop.value
        except EmbedderLost:
            raise
        except Exception as error:
            results[i] = Failure(error)

    for i in range(len(episodes)):
        advance(i, None)
    while waiting:
        batch, waiting = waiting, {}
        requests = [r for asked in batch.values() for r in asked]
        completions = engine.generate(requests) if requests else []
        start = 0
        for i, asked in batch.items():
            advance(i, completions[start : start + len(asked)])
            start += len(asked)
    return [r if r is not None else Failure(RuntimeError("the episode returned nothing")) for r in results]


def request(prompt: Prompt, speaker: Speaker, max_new_tokens: int, seed: int) -> GenerationRequest:
    """A model call by a role."""
    sampling = SamplingParams(max_new_tokens, speaker.temperature, seed)
    return GenerationRequest(prompt.ids, speaker.policy, sampling, prompt.messages)


def step(role: str, speaker: Speaker, prompt: Prompt, completion: Completion, text: str, parsed: dict) -> Step:
    """Record a model call."""
    return Step(
        role=role,
        policy=speaker.policy,
        trainable=speaker.trainable,
        sequence=TokenSequence(
            prompt.ids,
            completion.ids,
            completion.logprobs,
            (speaker.trainable,) * len(completion.ids),
            completion.weight_version,
        ),
        prompt_text=prompt.text,
        completion_text=text,
        finish_reason=completion.finish_reason,
        parsed=parsed | ({"prompt_cut": prompt.cut} if prompt.cut else {}),
    )
