"""What a client may send, and how long it may take: bytes of a body, seconds of both ways.

`BoundedProtocol` closes connections whose head does not come; `Bounded` reads the body whole before
the app begins, and gives up on answers that are not taken or whose client has gone.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

CLIENT_SECONDS = 10.0


class BoundedProtocol(H11Protocol):
    """A connection's request line and headers have to come within `client_seconds`."""

    client_seconds = CLIENT_SECONDS
    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        if self._head is None and self._is_idle():
            self._wait_for_head()
        super().data_received(data)
        if not self._is_idle():
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _is_idle(self) -> bool:
        """Between requests: none is read or answered."""
        return self.cycle is None or self.cycle.response_complete

    def _wait_for_head(self) -> None:
        self._head = self.loop.call_later(self.client_seconds, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None


class Bounded:
    """An ASGI app behind bounds of requests.

    Args:
        body_bytes: of a request; a larger one gets 413 and its connection is closed.
        client_seconds: for a body to come (else 408), and for each part of an answer to be taken.
    """

    def __init__(self, app: Any, body_bytes: int, client_seconds: float) -> None:
        self.app, self.body_bytes, self.client_seconds = app, body_bytes, client_seconds

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            body = await asyncio.wait_for(self._body(scope, receive), self.client_seconds)
        except TimeoutError:
            await refuse(send, 408, f"the request took more than {self.client_seconds:g} s")
            return
        if body is None:
            await refuse(send, 413, f"the request has more than {self.body_bytes:,} bytes")
            return
        answering = asyncio.create_task(self._answer(scope, body, send))
        gone = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait((answering, gone), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:  # the server's patience is at its end
            await refuse(send, 503, "the server ends")
        else:
            if answering.done():
                answering.result()
        finally:
            gone.cancel()
            answering.cancel()

    async def _answer(self, scope: Any, body: bytes, send: Any) -> None:
        """What the app makes of a request that is here whole."""
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_body() -> Any:
            if not waiting:
                await asyncio.get_running_loop().create_future()  # who goes is seen by `_gone`
            return waiting.pop()

        async def send_in_time(message: Any) -> None:
            await asyncio.wait_for(send(message), self.client_seconds)

        await self.app(scope, receive_body, send_in_time)

    async def _body(self, scope: Any, receive: Any) -> bytes | None:
        """The whole body; None where it is too large."""
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.body_bytes:
            return None
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return bytes(body)
            body += message.get("body", b"")
            if len(body) > self.body_bytes:
                return None
            if not message.get("more_body", False):
                return bytes(body)


async def _gone(receive: Any) -> None:
    """Until the client has its answer, or has closed the connection without."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def refuse(send: Any, status: int, error: str) -> None:
    """An answer that says why, and ends the connection: the rest of the body is not read."""
    body = json.dumps({"error": error}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
