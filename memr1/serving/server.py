"""Plain uvicorn with what it lacks: an end for clients that never say what they want, errors in JSON, and a door that
stays open until what is under way is done."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
import uuid
from http import HTTPStatus
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from memr1.serving.app import Services, make_app
from memr1.serving.errors import ApiError, body_of

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 1 << 16
"""Of a request's line, headers and trailers."""

FLUSH_S = 5
"""Time for clients to take the rest of their answers when the service stops."""


class _Transport:
    """A client's, which `close` ends in time whether or not the client takes what is still to be sent."""

    def __init__(self, inner: asyncio.Transport, timeout_s: float) -> None:
        self._inner, self._timeout_s = inner, timeout_s
        self._overdue: asyncio.TimerHandle | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def close(self) -> None:
        """See asyncio, which would wait for such a client for ever."""
        if not self._inner.is_closing():
            self._overdue = asyncio.get_running_loop().call_later(self._timeout_s, self._inner.abort)
        self._inner.close()

    def lost(self) -> None:
        """The connection is closed."""
        if self._overdue is not None:
            self._overdue.cancel()


class Connection(HttpToolsProtocol):
    """One client's: a request's head, and what is left of a body when the answer is out already, must come in time; so
    must what is left of an answer be taken when the connection is closed."""

    timeout_s = 20.0
    send_timeout_s = 60.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio."""
        self._bounded = _Transport(transport, self.send_timeout_s)
        super().connection_made(self._bounded)  # type: ignore[arg-type]  # one in all that uvicorn asks of it
        self._in_head, self._head_bytes = False, 0
        self._understood, self._held_bytes = False, 0
        self._refused = False
        self._overdue: asyncio.TimerHandle | None = None
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._came()
        self._bounded.lost()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if self._refused:
            return
        self._understood = False
        super().data_received(data)
        # the parser tells of a header when it is whole, and keeps what has come of it until then
        self._held_bytes = 0 if self._understood else self._held_bytes + len(data)
        if self._head_bytes + self._held_bytes > MAX_HEAD_BYTES:
            self._refuse(_too_large())
        if not self._in_head and not self._answering() and self.timeout_keep_alive_task is None:
            self._expect()  # what came was no request: the rest of a refused body, or an empty line

    def on_message_begin(self) -> None:
        """See httptools."""
        super().on_message_begin()
        self._in_head, self._head_bytes, self._understood = True, 0, True
        self._came()
        self._expect()

    def on_url(self, url: bytes) -> None:
        """See httptools."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools; trailers, too, come here, and are no headers."""
        self._count(len(name) + len(value) + len(": \r\n"))
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """See httptools."""
        self._in_head = False
        self._came()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        self._understood = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """See httptools."""
        self._came()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """See uvicorn."""
        if self.cycle.response_complete and self.cycle.more_body:  # of a refused request, which nobody reads any more
            self._expect()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """See uvicorn; called for what is no HTTP."""
        self._refuse(ApiError(400, "invalid_request", msg))

    def _count(self, size: int) -> None:
        self._understood = True
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(_too_large())
            raise ValueError("the head is too large")  # which makes the parser stop

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _expect(self) -> None:
        if self._overdue is None and not self.transport.is_closing():
            self._overdue = self.loop.call_later(self.timeout_s, self._give_up)

    def _came(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None

    def _give_up(self) -> None:
        self._overdue = None
        if self._answering():  # the next request has time until this one's answer is out
            self._expect()
        elif self._in_head:
            self._refuse(ApiError(408, "head_timeout", "the request did not come in time; send it again"))
        else:
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        """Read no more; answer with the error and hang up, or only hang up after the answers that come first."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        self._came()
        if self._answering():
            cycle = self.cycle
            if self._in_head or self.pipeline or cycle.response_started or not cycle.more_body:
                cycle.keep_alive = False
                return
            cycle.disconnected = True  # its own body is what is refused: nobody else may answer it
            cycle.message_event.set()
        request_id = uuid.uuid4().hex
        body = json.dumps(body_of(error, "", request_id)).encode()
        head = [
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            f"x-request-id: {request_id}",
            "connection: close",
        ]
        self.transport.write("\r\n".join([*head, "", ""]).encode() + body)
        self.transport.close()
        logger.info("%s", json.dumps({"request_id": request_id, "status": error.status, "code": error.code}))


def _too_large() -> ApiError:
    said = f"a request's line, headers and trailers may hold {MAX_HEAD_BYTES} bytes"
    return ApiError(431, "head_too_large", said)


class Server(uvicorn.Server):
    """Serves some services until a signal."""

    def __init__(self, services: Services, host: str, port: int) -> None:
        """port: 0 takes a free one."""

        class Patient(Connection):
            timeout_s = services.settings.body_timeout_s
            send_timeout_s = services.settings.send_timeout_s

        self._services, self._app = services, make_app(services)
        super().__init__(
            uvicorn.Config(
                self._app,
                host=host,
                port=port,
                http=Patient,
                ws="none",
                access_log=False,  # the application writes its own, without what people said
                log_config=None,
                timeout_graceful_shutdown=FLUSH_S,  # `shutdown` has waited before
                timeout_keep_alive=30,
                server_header=False,
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what is under way; who comes meanwhile hears 503, and so does who asks `/readyz`."""
        self._services.stopping = True
        jobs = asyncio.create_task(self._app.state.jobs.stop())
        end = time.monotonic() + self._services.settings.timeout_s + 1
        while (self._services.in_flight or not jobs.done()) and not self.force_exit and time.monotonic() < end:
            await asyncio.sleep(0.05)
        await super().shutdown(sockets)
