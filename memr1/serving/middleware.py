"""What every request goes through before a route sees it: id, key, rate, room, a body within bounds; and what every
response carries. Plain ASGI, so that streams are not buffered."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import re
import time
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from memr1.errors import MemR1Error
from memr1.serving.errors import ApiError, as_api_error, body_of, overloaded, shutting_down
from memr1.serving.keys import ADMIN, Principal, key_of
from memr1.serving.observe import log_request

if TYPE_CHECKING:
    from memr1.serving.app import Services

logger = logging.getLogger(__name__)

PUBLIC = re.compile(r"/healthz|/readyz|/openapi\.json|/console(/.*)?")
"""Need no key: they show nothing of anybody. The console is a page that asks for a key itself."""
GONE = 499
"""Status in logs and metrics of a request whose client went away."""
MIB = 1 << 20
PIECE = 1 << 18
"""Bytes of an answer that are sent at a time."""
IMPORT_FACTOR = 64
"""An import may be this many times as large as another body."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Those that metrics name; a client may make up others."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

_SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Gate:
    """ASGI middleware; see the module."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app, self._services = app, services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope["state"] = {**scope.get("state", {}), "request_id": request_id}
        if len(scope["path"]) > 1 and scope["path"].endswith("/"):  # with and without are one route
            scope["path"] = scope["path"].rstrip("/") or "/"
            scope["raw_path"] = scope["path"].encode()
        answer = _Answer(send, request_id, self._services.settings.send_timeout_s)
        start = time.perf_counter()
        self._count(1)
        try:
            with self._traced(scope, headers, request_id, answer):
                await self._answer(scope, headers, receive, answer, request_id)
        finally:
            self._count(-1)
            self._note(scope, request_id, answer.status, time.perf_counter() - start)

    async def _answer(self, scope: Scope, headers: Headers, receive: Receive, answer: _Answer, request_id: str) -> None:
        try:
            self._admit(scope, headers, answer)
            body = await self._read(scope, headers, receive)
            await self._work(scope, body, receive, answer)
        except (_Stuck, ClientDisconnect):
            answer.status = GONE
        except MemR1Error as error:
            await answer.refuse(as_api_error(error), scope["path"])
        except Exception:
            logger.exception("request %s failed", request_id)
            await answer.refuse(ApiError(500, "internal_error", "the service failed; see its log"), scope["path"])

    def _count(self, more: int) -> None:
        self._services.in_flight += more
        self._services.metrics.in_flight.set(self._services.in_flight)

    def _admit(self, scope: Scope, headers: Headers, answer: _Answer) -> None:
        path, services = scope["path"], self._services
        if PUBLIC.fullmatch(path):
            return
        if services.stopping:
            raise shutting_down()
        if services.in_flight > services.settings.max_in_flight:
            raise overloaded(f"{services.settings.max_in_flight} requests are worked on already")
        if services.keys is None:
            _check_local(scope, headers)
        principal = services.authenticate(key_of(headers))
        scope["state"]["principal"] = principal
        answer.extra |= services.rates.check(principal)

    async def _read(self, scope: Scope, headers: Headers, receive: Receive) -> bytes:
        principal: Principal | None = scope["state"].get("principal")
        if principal is None:  # public routes take no body, and whoever has no key cannot make the service hold one
            return b""
        limit = self._services.settings.max_body_bytes
        if scope["path"].endswith("/import") and principal.may(ADMIN):
            limit *= IMPORT_FACTOR
        too_large = ApiError(413, "body_too_large", f"a body may hold {limit} bytes here; send less at a time")
        announced = headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > limit:
            raise too_large
        parts: list[bytes] = []
        size, begun = 0, time.monotonic()
        while True:
            due = begun + self._services.settings.body_timeout_s * (1 + size / MIB)
            try:
                async with asyncio.timeout(due - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                raise ApiError(408, "body_timeout", "the body did not come in time; send it again") from None
            if message["type"] == "http.disconnect":
                raise ApiError(GONE, "disconnected", "the client went away")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limit:
                raise too_large
            if not message.get("more_body", False):
                return b"".join(parts)

    async def _work(self, scope: Scope, body: bytes, receive: Receive, answer: _Answer) -> None:
        """The application, until it is done or its client went away: then the model is given up, and what a bank has
        begun to write is written."""
        gone = asyncio.ensure_future(_disconnect(receive))
        work = asyncio.ensure_future(self._app(scope, _replay(body, gone), answer.send))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if answer.finished:  # servers say so after a whole response, too
                await asyncio.wait({work})
        finally:
            gone.cancel()
            work.cancel()
            await asyncio.wait({work})
        if not work.cancelled():
            work.result()
        if not answer.finished:
            answer.status = GONE

    @contextlib.contextmanager
    def _traced(self, scope: Scope, headers: Headers, request_id: str, answer: _Answer) -> Iterator[None]:
        traces = self._services.traces
        if traces is None:
            yield
            return
        with traces.request(headers, scope["method"], request_id) as span:
            try:
                yield
            finally:
                route = getattr(scope.get("route"), "path", "unmatched")
                span.update_name(f"{scope['method']} {route}")
                span.set_attributes({"http.route": route, "http.response.status_code": answer.status})

    def _note(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        principal = scope["state"].get("principal")
        metrics = self._services.metrics
        method = scope["method"] if route != "unmatched" and scope["method"] in METHODS else "any"
        metrics.requests.labels(method, route, str(status)).inc()
        metrics.seconds.labels(route).observe(seconds)
        log_request(
            {
                "request_id": request_id,
                "method": scope["method"],
                "route": route,
                "status": status,
                "ms": round(seconds * 1e3, 2),
                "key": principal.key_id if principal else None,
                "tenant": principal.scope.tenant if principal else None,
            }
        )


class _Stuck(OSError):
    """The client takes nothing more of its answer."""


class _Answer:
    """The response on its way out."""

    def __init__(self, send: Send, request_id: str, timeout_s: float) -> None:
        self._send, self._request_id, self._timeout_s = send, request_id, timeout_s
        self.status = GONE
        """Until something was sent, the client went away without it."""
        self.finished = False
        self.extra: dict[str, str] = {}

    async def send(self, message: Message) -> None:
        """Pass a message on, with the headers that every response carries."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in {**_SECURITY, **self.extra, "X-Request-Id": self._request_id}.items():
                headers.setdefault(name, value)
        body, more = message.get("body", b""), message.get("more_body", False)
        while len(body) > PIECE:  # servers wait for a slow client between two messages only
            await self._pass({**message, "body": body[:PIECE], "more_body": True})
            body = body[PIECE:]
        self.finished = message["type"] == "http.response.body" and not more
        await self._pass({**message, "body": body} if body else message)

    async def _pass(self, message: Message) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._send(message)
        except TimeoutError:
            raise _Stuck from None

    async def refuse(self, error: ApiError, path: str) -> None:
        """Answer with an error, unless a response has begun; then it breaks off, which the client notices."""
        if self.status != GONE:
            return
        body = json.dumps(body_of(error, path, self._request_id)).encode()
        headers: list[tuple[bytes, bytes]] = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        headers += [(k.lower().encode(), v.encode()) for k, v in error.headers.items()]
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})


def _check_local(scope: Scope, headers: Headers) -> None:
    """Without keys only programs on this machine may ask: neither others nor pages that had a name of theirs resolve to
    it. Whoever starts the service on another address is refused already; Ray Serve's own configuration is not."""
    client = (scope.get("client") or ("", 0))[0]
    host = re.sub(r":\d+$", "", headers.get("host", "")).strip("[]")
    if not _is_loopback(client) or not (host == "localhost" or _is_loopback(host)):
        raise ApiError(403, "keys_needed", "without API keys this service answers programs on its own machine only")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _disconnect(receive: Receive) -> Message:
    """What the connection says when the client goes away."""
    while (message := await receive())["type"] != "http.disconnect":
        pass
    return message


def _replay(body: bytes, gone: asyncio.Future[Message]) -> Receive:
    """The body that was read, then that the client went away."""
    told = False

    async def replayed() -> Message:
        nonlocal told
        if not told:
            told = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await asyncio.shield(gone)

    return replayed
