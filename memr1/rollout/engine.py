"""The engine protocol: token ids in, token ids and processed log-probabilities out.

An engine owns weights by policy name (`base`, `manager`, `answerer`) and a weight version per policy. Token ids
travel in both directions, never text: what was sampled is exactly what is trained on.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

    Watch = Callable[[int, int], bool]
    """(number of a request in the call, the token it just got) -> whether it is to go on: to stream and to give up."""


@dataclass(frozen=True)
class SamplingParams:
    """How to generate. Greedy at temperature 0; otherwise plain sampling, without top-k or top-p: log-probabilities
    of a truncated distribution would not be those that the trainer computes."""

    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    """Used when temperature > 0; a request's tokens depend on its own seed only, not on what it is batched with."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion as soon as it contains one of them. The tokens that make it up are part of it."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or not self.temperature >= 0 or self.seed < 0 or "" in self.stop:
            raise ValueError(
                f"max_new_tokens >= 1, temperature >= 0, seed >= 0 and no empty stop text are needed, got {self}"
            )


@dataclass(frozen=True)
class GenerationRequest:
    """One completion to generate."""

    prompt_ids: tuple[int, ...]
    policy: str
    """Weights to use: `base` or the name of a role."""
    sampling: SamplingParams
    messages: tuple[tuple[str, str], ...] = ()
    """The prompt as (role, content) of chat messages, for engines that read text."""


@dataclass(frozen=True)
class Completion:
    """What came back."""

    ids: tuple[int, ...]
    """Includes what ended it: the end-of-turn token, or the tokens of the stop text."""
    logprobs: tuple[float, ...]
    """Log-probability of each token under softmax(logits / temperature); at temperature 1 for greedy requests. NaN
    where an endpoint does not tell them."""
    finish_reason: str
    """`stop` (end-of-turn token or stop text) or `length`."""
    weight_version: int


@dataclass(frozen=True)
class WeightUpdate:
    """New weights of one policy with the manifest that receivers check before they load anything."""

    policy: str
    version: int
    tensors: Mapping[str, Any]
    """Arrays; tensors of torch where they came through a `memr1.rollout.channel` or lie in this process."""
    manifest: Mapping[str, tuple[tuple[int, ...], str]]
    """name -> (shape, dtype)."""
    checksum: str | None
    """blake2b over names and bytes in the order of names; None where nothing can be damaged on the way."""

    @classmethod
    def build(cls, policy: str, version: int, tensors: Mapping[str, Any], *, checked: bool = True) -> WeightUpdate:
        """Wrap tensors of a policy for the journey to the engines. checked: with a checksum of what are arrays, about
        1 s for each GB."""
        manifest = {name: (tuple(t.shape), str(t.dtype)) for name, t in tensors.items()}
        return cls(policy, version, dict(tensors), manifest, checksum(tensors) if checked else None)

    def verify(self) -> None:
        """Raise ValueError when the tensors are not those that the manifest and the checksum describe."""
        found = {name: (tuple(t.shape), str(t.dtype)) for name, t in self.tensors.items()}
        if found != dict(self.manifest):
            wrong = sorted(n for n in set(found) | set(self.manifest) if found.get(n) != self.manifest.get(n))
            raise ValueError(f"weights of {self.policy} v{self.version} do not match their manifest: {wrong[:5]}")
        if self.checksum is not None and checksum(self.tensors) != self.checksum:
            raise ValueError(f"weights of {self.policy} v{self.version} were damaged on the way: checksum differs")


class Outgoing(Protocol):
    """New weights on their way to a pool: a `WeightUpdate`, or where to find one."""

    @property
    def policy(self) -> str:
        """Whose weights."""

    @property
    def version(self) -> int:
        """Which."""


def in_parts(sizes: Mapping[str, int], max_bytes: int) -> list[list[str]]:
    """Names of tensors of these bytes, in order, in parts of at most `max_bytes`; a tensor that is larger is a part of
    its own."""
    parts: list[list[str]] = []
    size = 0
    for name in sorted(sizes):
        if not parts or size + sizes[name] > max_bytes:
            parts.append([])
            size = 0
        parts[-1].append(name)
        size += sizes[name]
    return parts


class Checksum:
    """Digest of named arrays, which have to be added in the order of their names."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=16)

    def add(self, name: str, tensor: np.ndarray) -> None:
        """Add one."""
        import numpy as np

        self._digest.update(name.encode())
        self._digest.update(np.ascontiguousarray(tensor).tobytes())

    def text(self) -> str:
        """The digest of what was added."""
        return self._digest.hexdigest()


def checksum(tensors: Mapping[str, np.ndarray]) -> str:
    """`Checksum` of arrays in any order."""
    digest = Checksum()
    for name in sorted(tensors):
        digest.add(name, tensors[name])
    return digest.text()


class Engine(Protocol):
    """What the runner needs of a generation engine."""

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """One completion per request, in order."""

    def load_weights(self, update: WeightUpdate) -> int:
        """Load strictly (missing, extra or misshapen tensors are errors) and return the version now in use."""

    def weight_versions(self) -> dict[str, int]:
        """Version in use by policy."""

    def set_weight_versions(self, versions: Mapping[str, int]) -> None:
        """Say which versions the weights are that were read from files rather than pushed."""

    def pop_timings(self) -> dict[str, float]:
        """Seconds (names end in `_s`) and tokens since the last call."""
