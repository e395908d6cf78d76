"""In the processes of Ray Serve that take requests in: what Serve itself refuses, in plain text, is refused in JSON.

A request whose replica is gone gets no answer at all from Serve, for which uvicorn then writes a plain 500; it gets one
here as well.

Serve asks the function that RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names when such a process starts, so the variable
has to be set where the cluster is started; `memr1 serve --ray` sets it for a cluster of its own.
"""

from __future__ import annotations

import json
import logging
import uuid

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from memr1.serving.errors import ApiError, body_of, not_found

log = logging.getLogger(__name__)

VARIABLE, CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "memr1.serving.proxy:middlewares"


def middlewares() -> list[Middleware]:
    """What Serve puts around its own application."""
    return [Middleware(JsonErrors)]


class JsonErrors:
    """ASGI middleware: an error that is no JSON gets a body in the dialect of its route. The application's own errors
    are JSON already and pass. So does a request that the application leaves without an answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = refused = False

        async def passed(message: Message) -> None:
            nonlocal begun, refused
            begun = True
            if message["type"] == "http.response.start" and message["status"] >= 400:
                headers = Headers(raw=message["headers"])
                if not headers.get("content-type", "").startswith("application/json"):
                    refused = True
                    await _refuse(_as_ours(message["status"]), scope["path"], headers.get("x-request-id"), send)
            if not refused:
                await send(message)

        try:
            await self._app(scope, receive, passed)
        except Exception:
            if begun:  # the connection is cut, which tells the client that the answer is not whole
                raise
            log.exception("a request was left without an answer")
        if not begun:
            request_id = Headers(scope=scope).get("x-request-id")
            await _refuse(_as_ours(500), scope["path"], request_id, send)


def _as_ours(status: int) -> ApiError:
    if status == 404:
        return not_found("what this path names")
    if status == 408:
        return ApiError(504, "timeout", "the service took too long")
    later = {"Retry-After": "1"}
    if status == 429:
        return ApiError(429, "overloaded", "too many requests wait already", headers=later)
    return ApiError(
        503,
        "unavailable",
        "the process that worked on this is gone, or there is none now; whether a write was done is not known, unless "
        "it had an Idempotency-Key: repeat it under that",
        headers=later,
    )


async def _refuse(error: ApiError, path: str, request_id: str | None, send: Send) -> None:
    request_id = request_id or uuid.uuid4().hex
    body = json.dumps(body_of(error, path, request_id)).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), "x-request-id": request_id}
    named = [(k.lower().encode(), v.encode()) for k, v in {**headers, **error.headers}.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": named})
    await send({"type": "http.response.body", "body": body})
