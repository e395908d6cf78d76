"""Embedders in actors of their own, which embed for all runners (`placement.num_embedders`).

Every runner keeps the vectors of the texts it used last, so only texts that are new to it travel.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayTaskError

from memr1.config import Config
from memr1.memory.embed import CachedEmbedder, EmbedderLost, HashEmbedder, load_embedder
from memr1.memory.index import Vectors
from memr1.rllib.placement import embedder_options
from memr1.rllib.resources import Shares
from memr1.training.watchdog import watched

START_TIMEOUT_S = 900.0
"""A cold machine reads the model over the network."""
CHUNK = 256
"""Texts in one call, so that calls take about equally long and runners take turns."""
CALL_TIMEOUT_S = 300.0
"""An embedder that takes longer over a call is taken for hung, and another one is asked."""
AWAY_S = 900.0
"""How long Ray is given to start an embedder anew before the run ends."""
POLL_S = 1.0


class EmbedderActor:
    """One embedder. On a GPU where it has claimed one."""

    def __init__(self, config: Config, number: int, threads: int) -> None:
        """number: counts from 1, for messages. threads: CPU threads of its model."""
        self._name, self._number, self._threads = config.memory.embedder, number, threads
        self._watch = (config.stuck_after_s, config.run_dir)

    @cached_property
    def _embedder(self) -> CachedEmbedder:  # not made in the constructor: Ray hides what a constructor raises
        loaded = load_embedder(self._name, "cuda" if ray.get_gpu_ids() else "cpu")
        if not isinstance(loaded.inner, HashEmbedder):  # which does without torch
            from memr1.models.cpu import set_up_cpu

            set_up_cpu(self._threads)
        return loaded

    def about(self) -> tuple[str, int]:
        """Name and width."""
        return self._embedder.name, self._embedder.dim

    def embed(self, texts: list[str]) -> Vectors:
        """See `Embedder.embed`."""
        with watched(*self._watch, f"embedder {self._number}: embed"):
            return self._embedder.embed(texts)


def start_embedders(config: Config, shares: Shares) -> tuple[Any, ...]:
    """Handles of the embedders of a run, all of them loaded. Raises MemR1Error where the model is not there."""
    actor: Any = ray.remote(EmbedderActor)
    claims = {"num_cpus": shares.embedder_cpus, "num_gpus": shares.embedder_gpus, "max_restarts": -1}
    threads = max(1, int(shares.embedder_cpus))
    actors = tuple(
        actor.options(**claims, **embedder_options(config, i)).remote(config, i + 1, threads)
        for i in range(config.placement.num_embedders)
    )
    try:
        ray.get([a.about.remote() for a in actors], timeout=START_TIMEOUT_S)
    except BaseException as error:
        for a in actors:
            ray.kill(a)
        if isinstance(error, RayTaskError):
            raise error.cause from error
        if isinstance(error, GetTimeoutError | RayActorError):
            late = isinstance(error, GetTimeoutError)
            said = f"were not ready within {START_TIMEOUT_S:.0f} s" if late else "did not all live through their start"
            raise EmbedderLost(
                f"placement.num_embedders: {len(actors)} embedders with {config.memory.embedder!r} {said}: {error}; "
                "see Ray's logs, or set it to 0"
            ) from error
        raise
    return actors


class RemoteEmbedder:
    """The `Embedder` of a runner whose run has embedders of their own."""

    def __init__(self, actors: Sequence[Any], first: int = 0) -> None:
        """first: where in the row of actors to begin, so that runners do not all ask the same one."""
        start = first % len(actors)
        self._actors = [*actors[start:], *actors[:start]]
        self.name, self.dim = self._ask("about")

    def embed(self, texts: Sequence[str]) -> Vectors:
        """n texts to (n, dim) float32 rows of length 1. Raises EmbedderLost when no actor answers for long."""
        parts = [list(texts[i : i + CHUNK]) for i in range(0, len(texts), CHUNK)]
        return np.concatenate([np.zeros((0, self.dim), np.float32), *(self._ask("embed", part) for part in parts)])

    def _ask(self, method: str, *args: Any) -> Any:
        """The first answer. An actor that is away is put last; Ray starts it anew where there is room."""
        deadline = time.monotonic() + AWAY_S
        while True:
            try:
                return ray.get(getattr(self._actors[0], method).remote(*args), timeout=CALL_TIMEOUT_S)
            except RayTaskError as error:
                raise error.cause from error
            except (GetTimeoutError, ObjectLostError, RayActorError) as error:  # lost: with the node that answered
                self._actors.append(self._actors.pop(0))
                if time.monotonic() > deadline:
                    said = str(error).strip().splitlines()[0]
                    raise EmbedderLost(
                        f"none of {len(self._actors)} embedders answered for {AWAY_S:.0f} s ({said}). The last "
                        "committed checkpoint is intact: run again with --resume auto, with nodes that have room for "
                        "them or with placement.num_embedders=0"
                    ) from error
                time.sleep(POLL_S)
