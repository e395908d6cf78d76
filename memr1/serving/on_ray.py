"""The same application on Ray Serve: a gateway, a model, and one owner of the banks.

    memr1 serve runs/train_local --ray
    serve run memr1.serving.on_ray:build source=runs/train_local threads=4
    serve deploy configs/serve.yaml

A deployment of one replica is no exclusive owner: while it is redeployed, two run. So the banks are owned by a named,
detached actor, and the store's lock keeps out a second one. It outlives redeployments and is restarted when it dies.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_type_hints

import ray
from omegaconf import OmegaConf
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError

from memr1.errors import MemR1Error
from memr1.rollout.engine import Completion, GenerationRequest
from memr1.serving import proxy
from memr1.serving.app import Services, embedder_name, make_app, put_together
from memr1.serving.banks import BankService
from memr1.serving.errors import ApiError, overloaded
from memr1.serving.inference import MODEL_PATIENCE_S, MODEL_READY_S, RoundStats, wait_for_model
from memr1.serving.observe import log_to_stderr
from memr1.serving.reading import BankReader
from memr1.serving.settings import ServingConfig
from memr1.serving.source import default_source, find_source, load_model

logger = logging.getLogger(__name__)

NAMESPACE = "memr1"
OWNER_PATIENCE_S = 30.0
"""How long a restarted owner waits for the lock of the one that died, and callers for the owner."""
_MODEL_AWAY = (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError)
_REPEATABLE = frozenset(
    {name for name in vars(BankReader) if not name.startswith("_")}
    | {"decided", "trial", "held", "gauges", "job", "put_job", "renew_job", "finish_job"}
)
"""Calls that can be made again when nobody knows whether they were done."""


class BankOwner:
    """The actor: see `BankService`."""

    def __init__(self, settings: ServingConfig, embedder: str) -> None:
        from memr1.memory.embed import load_embedder

        end = time.monotonic() + OWNER_PATIENCE_S
        while True:
            try:
                self._service = BankService(settings, load_embedder(embedder, max_texts=settings.cached_vectors))
                return
            except MemR1Error as error:
                if "belongs to" not in str(error) or time.monotonic() > end:
                    raise
                time.sleep(0.2)  # the process that died holds its lock until it is gone

    def call(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """`BankService.method(*args, **kwargs)`."""
        return getattr(self._service, method)(*args, **kwargs)

    def close(self) -> None:
        """Close the store."""
        self._service.close()


def owner_name(db: str) -> str:
    """Name of the actor that owns a store."""
    return f"memr1-banks-{hashlib.sha256(db.encode()).hexdigest()[:16]}"


def owner_of(settings: ServingConfig, embedder: str) -> Any:
    """The actor that owns the store, made where there is none."""
    actor: Any = ray.remote(BankOwner)
    return actor.options(
        name=owner_name(settings.db),
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        max_concurrency=32,
        num_cpus=0,
    ).remote(settings, embedder)


class RemoteBanks:
    """See `memr1.serving.banks.Banks`; in the owner's process."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """See `Banks.call`. While the owner is restarted, what may be repeated waits for it; a write without an
        idempotency key is 503, since nobody knows whether it was done."""
        end = time.monotonic() + OWNER_PATIENCE_S
        while True:
            try:
                return await self._owner.call.remote(method, args, kwargs)
            except RayTaskError as error:
                if isinstance(error.cause, MemR1Error):
                    raise error.cause from None
                raise
            except RayActorError as error:
                again = method in _REPEATABLE or kwargs.get("key") is not None
                if not again or time.monotonic() > end:
                    logger.warning("the owner of the banks is away: %s", type(error).__name__)
                    raise ApiError(
                        503,
                        "storage_unavailable",
                        "the owner of the banks is restarted; whether this was done is not known, unless it had an "
                        "Idempotency-Key: repeat it under that",
                        headers={"Retry-After": "2"},
                    ) from None
                await asyncio.sleep(0.2)


class RemoteModel:
    """See `Generator` and `Model` of `memr1.serving.inference`; in the model's replicas."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """See `Generator.generate`. Generation changes nothing, so what a replica took with it is asked for again."""
        end = time.monotonic() + MODEL_PATIENCE_S
        while True:
            response = self._handle.generate.remote(list(requests))
            try:
                completions: list[Completion] = await response
            except asyncio.CancelledError:
                response.cancel()
                raise
            except RayTaskError as error:
                raise _known(error) from None
            except BackPressureError:
                raise overloaded("too many generations wait for the model") from None
            except _MODEL_AWAY as error:
                await wait_for_model(error, end)
            else:
                return completions

    async def stream(self, request: GenerationRequest) -> AsyncIterator[int | Completion]:
        """See `Generator.stream`. Asked again as in `generate`, but not once somebody has heard a part."""
        end = time.monotonic() + MODEL_PATIENCE_S
        while True:
            response = self._handle.options(stream=True).stream.remote(request)
            try:
                async for heard in response:
                    end = 0.0
                    yield heard
            except RayTaskError as error:
                raise _known(error) from None
            except _MODEL_AWAY as error:
                await wait_for_model(error, end)
            else:
                return
            finally:
                response.cancel()  # after the end this changes nothing

    async def ready(self) -> bool:
        """See `Model.ready`: whether a replica answers."""
        try:
            await asyncio.wait_for(self._handle.ready.remote(), MODEL_READY_S)
        except (TimeoutError, RayTaskError, BackPressureError, *_MODEL_AWAY):
            return False
        return True

    async def counts(self) -> Mapping[str, RoundStats]:
        """See `Model.counts`."""
        try:
            told = self._handle.broadcast("counts").results_async(timeout_s=MODEL_READY_S, return_exceptions=True)
            return dict(found for found in await told if isinstance(found, tuple))
        except (TimeoutError, *_MODEL_AWAY):
            return {}

    def close(self, timeout_s: float) -> None:
        """See `Model.close`: its replicas are Serve's to stop."""


def _known(error: RayTaskError) -> Exception:
    return error.cause if isinstance(error.cause, MemR1Error) else error


class ModelReplica:
    """One base model with an adapter per role; every replica batches by itself."""

    def __init__(self, settings: ServingConfig) -> None:
        assert settings.source is not None
        self._inference = load_model(find_source(settings.source), settings)

    async def generate(self, requests: list[GenerationRequest]) -> list[Completion]:
        """See `Generator.generate`."""
        return await self._inference.generate(requests)

    async def stream(self, request: GenerationRequest) -> AsyncIterator[int | Completion]:
        """See `Generator.stream`."""
        async for heard in self._inference.stream(request):
            yield heard

    def ready(self) -> None:
        """Answers, which is what is asked for."""

    def counts(self) -> tuple[str, RoundStats]:
        """Name of this replica, and its counts."""
        return serve.get_replica_context().replica_id.unique_id, self._inference.snapshot()

    def check_health(self) -> None:
        """Asked by Serve, which replaces a replica that raises."""
        if not self._inference.alive:
            raise RuntimeError("the model's thread has ended")


_MODEL: Any = serve.deployment(name="model", max_ongoing_requests=1024, graceful_shutdown_timeout_s=30)(ModelReplica)


def build(args: dict[str, Any]) -> serve.Application:
    """The application of some settings: what `serve run` and `serve deploy` call with `args`.

    Paths are taken from where this runs; with `serve deploy` that is a worker of the cluster, so write them in full.
    """
    settings = ServingConfig.from_mapping(_in_full(_read(args)), "args")
    model = None if settings.source is None else _MODEL.bind(settings)

    def gateway_app() -> Any:
        log_to_stderr()
        return make_app(_services(settings))

    gateway: Any = serve.deployment(
        name="gateway",
        max_ongoing_requests=4 * settings.max_in_flight,  # the gateway itself refuses what is too much, in JSON
        graceful_shutdown_timeout_s=settings.timeout_s + 5,
    )(serve.ingress(gateway_app)())
    return gateway.bind() if model is None else gateway.bind(model)


def _read(args: dict[str, Any]) -> dict[str, Any]:
    """`serve run` hands every value over as text: `null`, and that of a field which holds no text, is read as YAML."""
    of_text = {name for name, hint in get_type_hints(ServingConfig).items() if hint in (str, str | None)}

    def read(name: str, value: Any) -> Any:
        if not isinstance(value, str) or (name in of_text and value != "null"):
            return value
        return OmegaConf.from_dotlist([f"value={value}"]).value

    return {name: read(name, value) for name, value in args.items()}


def _in_full(args: dict[str, Any]) -> dict[str, Any]:
    full = dict(args)
    if "source" not in full:
        full["source"] = default_source().path
    for name in ("source", "db", "keys", "runs"):
        value = full.get(name, ServingConfig.db if name == "db" else None)
        if isinstance(value, str) and "://" not in value and (name != "source" or Path(value).exists()):
            full[name] = str(Path(value).resolve())
    return full


def _services(settings: ServingConfig) -> Services:
    """A gateway's."""
    source = None if settings.source is None else find_source(settings.source)
    banks = RemoteBanks(owner_of(settings, embedder_name(settings, source)))
    return put_together(settings, source, banks, lambda: RemoteModel(serve.get_deployment_handle("model")))


def run(settings: ServingConfig, host: str, port: int) -> None:
    """`memr1 serve --ray`: until a signal, on the cluster that `RAY_ADDRESS` names, or one of its own."""
    from memr1.rllib.cluster import connect
    from memr1.serving.commands import leave_on_sigterm

    # Serve kills a proxy that is not up within 5 s, which a busy machine can miss; read when a cluster starts
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    os.environ.setdefault(proxy.VARIABLE, proxy.CALLBACK)
    connected = connect()
    leave_on_sigterm()
    try:
        start(settings, host, port)
        print(f"memr1 serves at http://{host}:{port} on Ray Serve", file=sys.stderr, flush=True)
        while True:
            time.sleep(3600)
    finally:
        stop(settings)
        if connected:
            ray.shutdown()


def start(settings: ServingConfig, host: str, port: int) -> None:
    """Deploy on the connected cluster; returns when requests are served."""
    serve.start(http_options={"host": host, "port": port})
    serve.run(build(asdict(settings)), name="memr1", route_prefix="/")


def stop(settings: ServingConfig) -> None:
    """Take the application down and give up the store."""
    serve.shutdown()
    try:
        owner = ray.get_actor(owner_name(str(_in_full(asdict(settings))["db"])), namespace=NAMESPACE)
    except ValueError:
        return
    ray.get(owner.close.remote())
    ray.kill(owner)
