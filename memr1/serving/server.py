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

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from memr1.serving.app import Services, make_app
from memr1.serving.errors import ApiError, body_of

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 1 << 16
"""Of a request's line and headers, beyond the piece they begin in."""

FLUSH_S = 5
"""Time for clients to take the rest of their answers when the service stops."""


class Connection(HttpToolsProtocol):
    """One client's: a request's head, and what is left of a body when the answer is out already, must come in time."""

    timeout_s = 20.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio."""
        super().connection_made(transport)
        self._in_head, self._head_bytes = False, 0
        self._overdue: asyncio.TimerHandle | None = None
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        begun = self._in_head
        super().data_received(data)
        if begun and self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(ApiError(431, "head_too_large", f"a request's head may hold {MAX_HEAD_BYTES} bytes"))

    def on_message_begin(self) -> None:
        """See httptools."""
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        self._expect()

    def on_headers_complete(self) -> None:
        """See httptools."""
        self._in_head = False
        self._came()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """See httptools."""
        self._came()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """See uvicorn."""
        if self.cycle.more_body:  # of a refused request, which nobody reads any more
            self._expect()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """See uvicorn; called for what is no HTTP."""
        self._refuse(ApiError(400, "invalid_request", msg))

    def _expect(self) -> None:
        if self._overdue is None:
            self._overdue = self.loop.call_later(self.timeout_s, self._give_up)

    def _came(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None

    def _give_up(self) -> None:
        if self._in_head:
            self._refuse(ApiError(408, "head_timeout", "the request did not come in time; send it again"))
        else:
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        if self.transport.is_closing():
            return
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


class Server(uvicorn.Server):
    """Serves some services until a signal."""

    def __init__(self, services: Services, host: str, port: int) -> None:
        """port: 0 takes a free one."""

        class Patient(Connection):
            timeout_s = services.settings.body_timeout_s

        self._services = services
        super().__init__(
            uvicorn.Config(
                make_app(services),
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
        end = time.monotonic() + self._services.settings.timeout_s + 1
        while self._services.in_flight and not self.force_exit and time.monotonic() < end:
            await asyncio.sleep(0.05)
        await super().shutdown(sockets)
