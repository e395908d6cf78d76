"""The application: services put together, and the FastAPI app over them. The same under uvicorn and on Ray Serve."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from memr1 import __version__
from memr1.errors import MemR1Error
from memr1.memory.scopes import Scope
from memr1.serving import console, mem0_api, native_api, openai_api, runs_api
from memr1.serving.agents import AgentService
from memr1.serving.banks import Banks, BankService, InProcess
from memr1.serving.errors import ApiError, as_api_error, body_of
from memr1.serving.inference import Generator, Model
from memr1.serving.jobs_worker import JobsWorker
from memr1.serving.keys import LOCAL_TENANT, KeyFile, Principal, RateLimiter
from memr1.serving.middleware import Gate
from memr1.serving.observe import Metrics, TimedGenerator
from memr1.serving.requests import ADMINISTRATOR, Caller
from memr1.serving.schemas import ERRORS
from memr1.serving.settings import ServingConfig
from memr1.serving.tracing import TracedBanks, TracedGenerator, Traces

if TYPE_CHECKING:
    from memr1.serving.source import Source

_EVERYBODY = Principal(Scope(tenant=LOCAL_TENANT))


@dataclass
class Services:
    """What a request handler works with."""

    settings: ServingConfig
    banks: Banks
    agents: AgentService | None = None
    """None for a service without a model."""
    model: Model | None = None
    keys: KeyFile | None = None
    metrics: Metrics = field(default_factory=Metrics)
    rates: RateLimiter = field(default_factory=RateLimiter)
    traces: Traces | None = None
    stop: Callable[[], None] = lambda: None
    """Closes what was opened for the service."""
    stopping: bool = False
    """Set when no more requests are taken."""
    in_flight: int = 0
    """Requests worked on now."""

    @property
    def label(self) -> str:
        """What is served, in words."""
        return self.agents.label if self.agents else "memory without a model"

    def authenticate(self, key: str | None) -> Principal:
        """Whose request it is. Without a key file everybody is the local administrator."""
        return self.keys.authenticate(key) if self.keys is not None else _EVERYBODY

    def agent(self) -> AgentService:
        """The agents; `ApiError` 501 where there are none."""
        if self.agents is None:
            raise ApiError(501, "no_model", "this service has no model: add with infer=false, and search")
        return self.agents

    async def ready(self) -> None:
        """`ApiError` 503 while requests should go elsewhere."""
        if self.stopping or (self.model is not None and not await self.model.ready()):
            raise ApiError(503, "not_ready", "the service starts or stops", headers={"Retry-After": "1"})
        await self.banks.call("ready")

    def close(self) -> None:
        """Finish what is under way and release everything."""
        self.stopping = True
        if self.model is not None:
            self.model.close(self.settings.timeout_s)
        self.stop()
        if self.traces is not None:
            self.traces.close()


def start(settings: ServingConfig, *, own_process: bool = False) -> Services:
    """Services over a store in this process and, where the settings name one, a model.

    own_process: the model is in a child process, where nothing that this one does slows it down.
    """
    from memr1.memory.embed import load_embedder

    source = _source(settings)
    service = BankService(settings, load_embedder(embedder_name(settings, source), max_texts=settings.cached_vectors))

    def model() -> Model:
        from memr1.serving.model_process import ModelProcess
        from memr1.serving.source import load_model

        assert source is not None
        load = partial(load_model, source, settings)
        return ModelProcess(load) if own_process else load()

    try:
        return put_together(settings, source, InProcess(service), model, service.close)
    except BaseException:
        service.close()
        raise


def put_together(
    settings: ServingConfig,
    source: Source | None,
    banks: Banks,
    model: Callable[[], Model],
    stop: Callable[[], None] = lambda: None,
) -> Services:
    """Services over banks and a model, wherever these are; by itself nothing heavy but the tokenizer.

    model: called last, and only where there is a source. stop: see `Services.stop`.
    """
    keys = KeyFile(settings.keys) if settings.keys is not None else None
    traces = Traces() if settings.traces else None
    if traces is not None:
        banks = TracedBanks(banks, traces)
    if source is None:
        return Services(settings, banks, keys=keys, traces=traces, stop=stop)
    from memr1.agents.roles import make_agents
    from memr1.models.registry import load_tokenizer

    agents, metrics = make_agents(source.config, load_tokenizer(source.config.model.name)), Metrics()
    served = model()
    service = AgentService(source.config, agents, observed(served, metrics, traces), banks, settings, source.label)
    return Services(settings, banks, service, served, keys, metrics, traces=traces, stop=stop)


def observed(generator: Generator, metrics: Metrics, traces: Traces | None = None) -> Generator:
    """A generator whose work metrics and traces show."""
    traced = generator if traces is None else TracedGenerator(generator, traces)
    return TimedGenerator(traced, metrics)  # outside: it hears a stream out, so that spans have the model's time, too


def _source(settings: ServingConfig) -> Source | None:
    from memr1.serving.source import find_source

    return None if settings.source is None else find_source(settings.source)


def embedder_name(settings: ServingConfig, source: Source | None) -> str:
    """Of the settings, else of the run, else the default."""
    if settings.embedder is not None:
        return settings.embedder
    return "minilm" if source is None else source.config.memory.embedder


def make_app(services: Services) -> FastAPI:
    """The whole HTTP surface over some services."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        app.state.jobs = JobsWorker(services)
        try:
            yield
        finally:
            services.stopping = True
            await app.state.jobs.stop()

    app = FastAPI(
        title="memr1",
        version=__version__,
        description="Memory for agents: banks of short texts, kept by a trained manager, asked through a trained "
        "answerer. Errors are JSON everywhere and carry the id of the request.",
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.services = services
    app.include_router(native_api.router)
    app.include_router(mem0_api.router)
    app.include_router(openai_api.router)
    app.include_router(runs_api.router)
    app.include_router(console.router)

    @app.get("/healthz", tags=["service"], summary="Whether the process lives")
    async def healthz() -> dict[str, str]:
        return {"status": "ok", "version": __version__}

    @app.get("/readyz", responses=ERRORS, tags=["service"], summary="Whether requests can be served")
    async def readyz() -> dict[str, str]:
        await services.ready()
        return {"status": "ready", "serves": services.label}

    @app.get("/metrics", responses=ERRORS, tags=["service"], summary="Metrics for Prometheus", response_class=Response)
    async def metrics(_: Caller = ADMINISTRATOR) -> Response:
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        models = {} if services.model is None else await services.model.counts()
        services.metrics.show(await services.banks.call("gauges"), models)
        return Response(generate_latest(services.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(MemR1Error)
    async def refused(request: Request, error: MemR1Error) -> JSONResponse:
        return _error(request, as_api_error(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        found = error.errors()
        if any(e["type"] == "json_invalid" for e in found):
            return _error(request, ApiError(400, "invalid_json", "the body is not JSON"))
        # without the values: they may be what somebody said, and error bodies end up in logs
        details = [{"field": ".".join(map(str, e["loc"])), "problem": e["msg"]} for e in found]
        first = details[0]
        message = f"{first['field']}: {first['problem']}"
        return _error(request, ApiError(422, "invalid_field", message, param=first["field"], details=details))

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> JSONResponse:
        codes = {404: "not_found", 405: "method_not_allowed"}
        code = codes.get(error.status_code, "invalid_request")
        said = f"{request.method} {request.url.path}: {error.detail}"
        return _error(request, ApiError(error.status_code, code, said, headers=error.headers))

    app.add_middleware(Gate, services=services)
    return app


def _error(request: Request, error: ApiError) -> JSONResponse:
    body: dict[str, Any] = body_of(error, request.url.path, request.state.request_id)
    return JSONResponse(body, status_code=error.status, headers=error.headers)
