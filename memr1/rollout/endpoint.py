"""Frozen roles that speak through an OpenAI-compatible server: a larger answerer, an extractor, a judge.

`Endpoint` is the client. `EndpointEngine` puts it behind the engine protocol, and `RoutedEngine` sends each policy's
requests to where it lives.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memr1.errors import MemR1Error
from memr1.rollout.engine import Completion, Engine, GenerationRequest, SamplingParams, WeightUpdate

if TYPE_CHECKING:
    import httpx

RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
"""Status codes of servers that may do better a moment later."""
LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True)
class EndpointConfig:
    """An OpenAI-compatible server that speaks for a frozen role."""

    url: str
    """Up to and including the version, for example `http://localhost:8000/v1`."""
    model: str
    """The model's name there."""
    api_key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; where it is not set, none is sent."""
    timeout_s: float = 120.0
    """Longest wait for one answer."""
    attempts: int = 5
    """Tries of one request before the run is given up; pauses between them grow, up to 30 s."""
    concurrency: int = 16
    """Requests at the same time, from each runner."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")) or not self.model:
            raise MemR1Error(
                f"an endpoint needs a url such as http://localhost:8000/v1 and a model, got url={self.url!r} and "
                f"model={self.model!r}"
            )
        if self.timeout_s <= 0 or self.attempts < 1 or self.concurrency < 1:
            raise MemR1Error(
                f"endpoint {self.url}: timeout_s above 0, attempts and concurrency of at least 1 are needed"
            )


class _Retry(Exception):
    """Worth another try; `pause_s` is how long the server asks to wait first."""

    def __init__(self, message: str, pause_s: float = 0.0) -> None:
        super().__init__(message)
        self.pause_s = pause_s


class Endpoint:
    """A client of `/chat/completions`. Thread-safe."""

    def __init__(self, config: EndpointConfig) -> None:
        import httpx

        self.config = config
        key = os.environ.get(config.api_key_variable, "")
        self._http = httpx.Client(
            base_url=config.url.rstrip("/"),
            timeout=config.timeout_s,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=httpx.Limits(max_connections=config.concurrency),
        )

    def chat(self, messages: Sequence[Mapping[str, str]], sampling: SamplingParams) -> tuple[str, str]:
        """The reply and why it ended (`stop` or `length`). MemR1Error when the server cannot be had or refuses."""
        from tenacity import RetryError, Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

        grow = wait_exponential_jitter(initial=0.2, max=LONGEST_PAUSE_S)

        def pause(state: Any) -> float:
            return max(grow(state), min(state.outcome.exception().pause_s, LONGEST_PAUSE_S))

        body: dict[str, Any] = {
            "model": self.config.model,
            "messages": list(messages),
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "seed": sampling.seed % 2**31,  # servers take 32 bits
        }
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        attempts = Retrying(
            stop=stop_after_attempt(self.config.attempts), wait=pause, retry=retry_if_exception_type(_Retry)
        )
        try:
            return attempts(self._post, body)
        except RetryError as error:
            raise MemR1Error(
                f"{self.config.url}: no answer in {self.config.attempts} attempts; the last said: "
                f"{error.last_attempt.exception()}. Check that the server runs, or raise the endpoint's attempts"
            ) from error

    def _post(self, body: Mapping[str, Any]) -> tuple[str, str]:
        import httpx

        try:
            response = self._http.post("/chat/completions", json=body)
        except httpx.RequestError as error:  # a reply that cannot be decoded, too
            raise _Retry(f"{type(error).__name__}: {error}") from error
        if response.status_code in RETRIED:
            raise _Retry(_said(response), _retry_after(response))
        if response.status_code != 200:
            raise MemR1Error(
                f"{self.config.url}: refused with {_said(response)}. Check the endpoint's url and model, and the key "
                f"in {self.config.api_key_variable}"
            )
        try:
            choice = response.json()["choices"][0]
            text, reason = choice["message"]["content"] or "", choice.get("finish_reason")
        except (ValueError, LookupError, TypeError) as error:
            raise MemR1Error(
                f"{self.config.url}: the answer is no chat completion ({_said(response)}); is it an OpenAI-compatible "
                "server, and does the url end in the version?"
            ) from error
        return str(text), "length" if reason == "length" else "stop"

    def close(self) -> None:
        """Close its connections."""
        self._http.close()


def _said(response: httpx.Response) -> str:
    return f"{response.status_code} {' '.join(response.text.split())[:200]}"


def _retry_after(response: httpx.Response) -> float:
    value = response.headers.get("Retry-After", "")
    return float(value) if value.replace(".", "", 1).isdigit() else 0.0


class EndpointEngine:
    """An `Engine` without weights of ours: it answers as one frozen policy. What it says has no log-probabilities
    (they are NaN), so it can never be trained on."""

    def __init__(self, endpoint: Endpoint, policy: str, encode: Callable[[str], Sequence[int]], eos_id: int) -> None:
        """encode: text to token ids of our tokenizer, in which completions are counted and kept."""
        self.endpoint, self.policy, self.encode, self.eos_id = endpoint, policy, encode, eos_id
        self._threads = ThreadPoolExecutor(endpoint.config.concurrency, f"endpoint-{policy}")
        self.timings: dict[str, float] = defaultdict(float)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """See `Engine.generate`. Equal greedy requests are asked once."""
        start = time.perf_counter()
        asked: dict[Any, int] = {}
        for i, r in enumerate(requests):
            if not r.messages:
                raise ValueError(f"request {i} has no messages, and an endpoint reads no token ids")
            asked.setdefault(_key(r, i), i)
        replies = self._threads.map(
            lambda i: self.endpoint.chat(_plain(requests[i]), requests[i].sampling), list(asked.values())
        )
        by_key = {key: self._completion(*reply) for key, reply in zip(asked, replies, strict=True)}
        self.timings["endpoint_s"] += time.perf_counter() - start
        self.timings["endpoint_requests"] += len(asked)
        return [by_key[_key(r, i)] for i, r in enumerate(requests)]

    def _completion(self, text: str, reason: str) -> Completion:
        ids = (*self.encode(text), *([self.eos_id] if reason == "stop" else []))
        return Completion(ids, (float("nan"),) * len(ids), reason, 0)

    def load_weights(self, update: WeightUpdate) -> int:
        """Refused: whoever trains a role has to generate with its weights."""
        raise MemR1Error(f"{self.policy} speaks through {self.endpoint.config.url}, so it cannot take new weights")

    def weight_versions(self) -> dict[str, int]:
        """Always 0: a frozen policy."""
        return {self.policy: 0}

    def set_weight_versions(self, versions: Mapping[str, int]) -> None:
        """Nothing to set."""

    def pop_timings(self) -> dict[str, float]:
        """`endpoint_s` and `endpoint_requests` since the last call."""
        timings, self.timings = dict(self.timings), defaultdict(float)
        return timings

    def close(self) -> None:
        """Close its connections, and end its threads as soon as they have their answers."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.endpoint.close()


class RoutedEngine:
    """Sends the requests of some policies to engines of their own, the rest to the first one."""

    def __init__(self, local: Engine, routes: Mapping[str, EndpointEngine]) -> None:
        self.local, self.routes = local, dict(routes)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """See `Engine.generate`."""
        results: dict[int, Completion] = {}
        for engine in (self.local, *self.routes.values()):
            members = [i for i, r in enumerate(requests) if self.routes.get(r.policy, self.local) is engine]
            if members:
                results.update(zip(members, engine.generate([requests[i] for i in members]), strict=True))
        return [results[i] for i in range(len(requests))]

    def load_weights(self, update: WeightUpdate) -> int:
        """See `Engine.load_weights`."""
        return self.routes.get(update.policy, self.local).load_weights(update)

    def weight_versions(self) -> dict[str, int]:
        """See `Engine.weight_versions`."""
        return self.local.weight_versions() | {name: 0 for name in self.routes}

    def set_weight_versions(self, versions: Mapping[str, int]) -> None:
        """See `Engine.set_weight_versions`; a routed policy has none."""
        self.local.set_weight_versions({name: v for name, v in versions.items() if name not in self.routes})

    def pop_timings(self) -> dict[str, float]:
        """See `Engine.pop_timings`."""
        totals = self.local.pop_timings()
        for engine in self.routes.values():
            for name, value in engine.pop_timings().items():
                totals[name] = totals.get(name, 0.0) + value
        return totals

    def close(self) -> None:
        """Close the servers' engines."""
        for engine in self.routes.values():
            engine.close()


def _plain(request: GenerationRequest) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in request.messages]


def _key(request: GenerationRequest, number: int) -> Any:
    sampling = request.sampling
    greedy = sampling.temperature == 0
    return (request.messages, sampling.max_new_tokens, sampling.stop) if greedy else number
